"""Where processes are put, on a real Ray of several nodes on this machine whose GPUs are made up: only the placing is real."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rl.placement
from configs.load import load_config
from configs.schema import Config
from rl.actors import ActorContext, GeneratorActor, LearnerActor, Report
from rl.cli import main
from rl.log.alive import Heartbeat
from rl.log.runs import RunPaths, prepare_run
from rl.placement import Cluster, _neighbourhoods, _options, start_cluster, watch_parts
from rl.places import Node, Place, Places, check_machine, lacking
from rl.plan import make_plan
from rl.supervise import supervised

ON_GPUS = ("cluster.gpus=true", "generator.engine=vllm", f"vllm.python={sys.executable}", "vllm.tensor_parallel_size=4")


def configured(folder: Path, *overrides: str) -> Config:
    path = folder / "config.yaml"
    path.write_text("tasks: {a: {kind: programs, env: math}}\nmodel: {path: m}\nrun: {name: r, threads: 1}\nrollout: {max_staleness: 1}\n")
    return load_config([path], overrides)


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    """Two nodes for ranks with three GPUs each, the first of which is the head, and one for generators with four."""
    import ray
    from ray.cluster_utils import Cluster as RayCluster

    head = {"num_cpus": 4, "num_gpus": 3, "resources": {"trainer": 3, "rollout": 1}, "include_dashboard": False}
    cluster = RayCluster(initialize_head=True, head_node_args={**head, "node_ip_address": "127.0.0.1"})
    try:
        cluster.add_node(num_cpus=3, num_gpus=3, resources={"trainer": 3}, node_ip_address="127.0.0.1")
        cluster.add_node(num_cpus=2, num_gpus=4, node_ip_address="127.0.0.1")
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("nodes")
def test_ranks_that_share_sequences_share_a_node_and_have_a_gpu_each(tmp_path: Path) -> None:
    import ray

    class Where:  # of this function: a process needs none of the project's modules for it
        def told(self) -> tuple[str, str]:
            import os

            return ray.get_runtime_context().get_node_id(), os.environ["CUDA_VISIBLE_DEVICES"]

    config = configured(tmp_path, *ON_GPUS, "learner.ranks=4", "learner.sequence_parallel=2", "cluster.learner_resources.trainer=1")
    rank = Places.of(config, make_plan(config)).rank
    actor: Any = ray.remote(Where)
    options = [{**_options(rank), **where} for where in _neighbourhoods(rank, processes=4)]
    ranks = [actor.options(**each).remote() for each in options]
    where = ray.get([rank.told.remote() for rank in ranks])
    assert [where[0][0], where[2][0]] == [where[1][0], where[3][0]], "three of four ranks fit on one node, and groups of two do not"
    assert len(set(where)) == 4 and all(gpu in ("0", "1", "2") for _, gpu in where), "a GPU each, and nobody else's"
    for each in options[::2]:
        ray.util.remove_placement_group(each["scheduling_strategy"].placement_group)


class Stub:
    """A generator or a worker that holds its place and does nothing."""

    def __init__(self, context: ActorContext, report: Report, *rest: Any) -> None:
        self._reporter = report.start()

    async def ready(self) -> bool:
        return True

    async def stay(self) -> None:
        await asyncio.Event().wait()

    async def serve(self, serving: Any) -> None:
        """Which generators serve."""

    async def close(self) -> None:
        self._reporter.close()

    async def gpus(self) -> int:
        return len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("nodes")
def test_a_process_that_finds_no_place_is_shown_with_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rl.placement, "GeneratorActor", Stub)
    monkeypatch.setattr(rl.placement, "RolloutActor", Stub)
    elastic = ("cluster.most_generators=2", "cluster.most_workers=2", "cluster.worker_resources.rollout=1")
    config = configured(tmp_path, *ON_GPUS, *elastic)
    identity, run = prepare_run(tmp_path / "run"), RunPaths(root=tmp_path / "run")
    wanted = {
        "generator-1": "waits for a place: 4 GPU, 1 CPU; no node has them free",
        "worker-1": "waits for a place: 1 rollout, 1 CPU; no node has them free",
    }

    async def look(cluster: Cluster) -> None:
        (member,) = cluster.generators._crew.serving.values()
        assert await member.remote.call("gpus") == 4
        while {part["part"]: part["waits_for"] for part in waiting(run, capsys)} != wanted:
            await asyncio.sleep(0.1)
        assert all(time.time() - 120 < part["since"] < time.time() for part in waiting(run, capsys))
        assert main(["status", str(run.root)]) == 0
        words = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
        assert [words[part][1] for part in ("generator-0", "worker-0", "generator-1", "worker-1")] == ["live", "live", "absent", "absent"]
        assert words["generator-1"][4:] == wanted["generator-1"].split()

    async def play() -> None:
        watch = watch_parts(run, run_id=identity.run_id, attempt=1)
        context = ActorContext(config=config, model_path=tmp_path, run_dir=run.root, run_id=identity.run_id, attempt=1)
        async with supervised([watch.run]):
            cluster = await start_cluster(context, plan=make_plan(config), watch=watch, with_learner=False, say=lambda line: None)
            try:
                async with supervised(cluster.watches):
                    await look(cluster)
            finally:
                await cluster.close()

    heartbeat = Heartbeat(run.alive)
    asyncio.run(play())
    heartbeat.end("finished")


def waiting(run: RunPaths, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What `rl status` says of the parts that have no process."""
    assert main(["status", str(run.root), "--json"]) == 0
    told: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["waiting"]
    return told


def test_what_each_process_asks_for_follows_from_the_configuration(tmp_path: Path) -> None:
    def asked(*overrides: str) -> tuple[str, str, str]:
        config = configured(tmp_path, *overrides)
        places = Places.of(config, make_plan(config))
        return places.rank.told(), places.generator.told(), places.worker.told()

    assert asked() == ("1 CPU", "1 CPU", "1 CPU")
    assert asked("cluster.gpus=true") == ("1 GPU, 1 CPU", "1 CPU", "1 CPU"), "the torch engine computes on CPUs"
    assert asked(*ON_GPUS, "cluster.worker_resources.GPU=0.5", "learner.ranks=8", "learner.sequence_parallel=8") == (
        "8 x (1 GPU, 1 CPU) on one node",
        "4 GPU, 1 CPU",
        "0.5 GPU, 1 CPU",
    )


def test_a_node_takes_what_it_has_free() -> None:
    pair = Place(amounts={"CPU": 1, "GPU": 2}, neighbours=2)
    busy, small = Node(total={"CPU": 8, "GPU": 4}, free={"CPU": 8, "GPU": 3}), Node(total={"CPU": 8, "GPU": 3}, free={"CPU": 8, "GPU": 3})
    assert lacking(pair, [small, Node(total=busy.total, free=busy.total)]) == ""
    assert lacking(pair, [small, busy]) == "no node has them free"
    assert lacking(pair, [small]) == "no node has as much"


def test_a_machine_without_what_the_run_asks_for_is_told(tmp_path: Path) -> None:
    config = configured(tmp_path, *ON_GPUS, "generator.replicas=2", "cluster.worker_resources.sandbox=1")
    plan = make_plan(config)
    wanted = Places.of(config, plan).total(plan)
    with pytest.raises(
        ValueError, match=r"asks for 9 GPU and this machine has 1: name a Ray cluster .* RAY_ADDRESS, or change cluster\.gpus"
    ):
        check_machine(wanted, {"CPU": 1, "GPU": 1})
    with pytest.raises(ValueError, match=r"asks for 1 sandbox and this machine has 0: .* change sandbox in cluster\.\*_resources"):
        check_machine(wanted, {"CPU": 1, "GPU": 9})
    check_machine(wanted, {"GPU": 9, "sandbox": 1})


def test_a_process_that_should_be_on_a_gpu_says_that_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it loads the model, which is not even there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = configured(tmp_path, *ON_GPUS)
    context = ActorContext(config=config, model_path=tmp_path, run_dir=tmp_path, run_id="r", attempt=1)
    report = Report(part="learner-0", name="a", address=lambda: "", board=lambda record, *, name: True)
    with pytest.raises(ValueError, match=r"cluster\.gpus is true, and torch .* finds no CUDA device"):
        LearnerActor(context, report, 0, 1, "", 1, lambda bucket: None)
    with pytest.raises(ValueError, match=r"cluster\.gpus is true"):
        GeneratorActor(context, report, 1)
