"""The whole ring for real: Ray actors, DeepSpeed, the torch engine, the log. Determinism, resume, and parts that die."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rl.log.alive import RunState
from rl.log.list_runs import summarize_run
from rl.log.query import RunLog
from rl.status.record import PartStatus, RunStatus
from tests.ring import (
    DEADLINE,
    actor_pids,
    command_line,
    descendants,
    finish,
    make_tiny_model,
    metrics,
    model_bytes,
    rl,
    start,
    wait_for_step,
    write_config,
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted strictly on-policy run with one rollout worker."""
    folder = tmp_path_factory.mktemp("reference")
    output = rl("train", write_config(folder, model=model))
    assert "held-out pass rate" in output
    return folder / "runs" / "tiny"


def test_a_run_learns_and_leaves_everything_behind(reference: Path) -> None:
    recorded = metrics(reference)
    assert [step.step for step in recorded.steps] == [1, 2, 3, 4, 5, 6]
    assert all(step.staleness_max == 0 for step in recorded.steps)
    assert max(abs(step.kl) for step in recorded.steps) < 1e-6, "generator and learner agree on the logprobs"
    assert {line.step for line in recorded.evals} == {0, 6}
    assert (reference / "config.yaml").is_file() and (reference / "model" / "config.json").is_file()
    assert sorted(path.name for path in (reference / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    assert not list(reference.glob(".*")), "nothing hidden stays"


def test_the_log_has_every_rollout_once(reference: Path) -> None:
    with RunLog(reference) as reader:
        rows = list(reader.query("SELECT count(*), count(DISTINCT rollout_id) FROM rollouts WHERE split = 'train'").rows)
        assert rows == [(6 * 4 * 4, 6 * 4 * 4)]
        assert list(reader.query("SELECT count(*) FROM learner").rows) == [(6 * 4 * 4,)]
        versions = list(reader.query("SELECT DISTINCT dispatch_version FROM rollouts WHERE split = 'train' ORDER BY 1").rows)
        assert versions == [(v,) for v in range(6)]
        made_by = "SELECT DISTINCT scorer, max_tokens, len(scorer_hash), len(tokenizer_hash), len(template_hash) FROM rollouts"
        assert list(reader.query(made_by).rows) == [("digits", 6, 16, 16, 16)]
        assert list(reader.query("SELECT count(*), count(DISTINCT rollout_id) FROM scores WHERE live").rows) == [(96 + 16, 96 + 16)]
        loop = "SELECT DISTINCT name FROM spans WHERE actor = 'loop' AND train_step = 2 ORDER BY name"
        assert list(reader.query(loop).rows) == [("checkpoint",), ("log",), ("rollout",), ("sync",), ("train",)]
        worker = "SELECT name, count(DISTINCT rollout_id) FROM spans WHERE rollout_id NOT LIKE 'h%' GROUP BY name ORDER BY name"
        assert list(reader.query(worker).rows) == [("environment", 96), ("generate", 96), ("score", 96)]
    run = summarize_run(reference)
    assert (run.state, run.steps, run.steps_in_all, run.log_drops, run.problems) == (RunState.FINISHED, 6, 6, {}, 0)
    assert {path.parent.name for path in (reference / "log").rglob("*.parquet")} == {"compacted"}, "the end of a run compacts its log"


@pytest.mark.parametrize("transport", ["object_store", "collective"])
def test_neither_rollout_workers_nor_the_way_of_weights_change_a_bit(reference: Path, model: Path, tmp_path: Path, transport: str) -> None:
    words = ("rollout.workers=3", "learner.weight_sync=delta", f"learner.weight_transport={transport}")
    rl("train", write_config(tmp_path, model=model), *words)
    run = tmp_path / "runs" / "tiny"
    assert not any(step.broadcasts_failed for step in metrics(run).steps)
    assert model_bytes(run) == model_bytes(reference)
    assert [step.weights_checksum for step in metrics(run).steps] == [step.weights_checksum for step in metrics(reference).steps]
    sent, sent_whole = (sum(step.sync_bytes for step in metrics(folder).steps) for folder in (run, reference))
    assert 0 < sent < sent_whole, "steps that train nothing send nothing"


def test_a_run_that_was_interrupted_and_then_killed_resumes_bit_for_bit(reference: Path, model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, model=model)
    run = tmp_path / "runs" / "tiny"
    process = start("train", config, delay=0.4)
    wait_for_step(process, run, 1)
    process.send_signal(signal.SIGINT)
    output = finish(process, status=130)
    assert "--resume goes on" in output
    assert "Traceback" not in output
    assert summarize_run(run).state is RunState.STOPPED

    process = start("train", config, "--resume", delay=0.4)
    wait_for_step(process, run, metrics(run).steps[-1].step + 2)
    below = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert summarize_run(run).state is RunState.DIED
    # Ray's own agents look for their parent every few seconds only; what matters is that nothing of ours computes on.
    ours = [pid for pid in below if any(name in command_line(pid) for name in ("Actor", "rl.cli"))]
    for _ in range(100):
        alive = [pid for pid in ours if "Actor" in command_line(pid)]
        if not alive:
            break
        time.sleep(0.2)
    assert not alive, f"a killed run leaves processes behind: {[command_line(pid) for pid in alive]}"

    output = rl("train", config, "--resume")
    assert "resumed after step" in output
    assert model_bytes(run) == model_bytes(reference)
    with RunLog(run) as reader:
        assert list(reader.query("SELECT count(*), count(DISTINCT rollout_id) FROM rollouts WHERE split = 'train'").rows) == [(96, 96)]


def test_async_with_two_ranks_stays_within_the_bound(model: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, model=model, run={"steps": 8, "threads": 2}, rollout={"max_staleness": 2, "workers": 2}, learner={"ranks": 2}
    )
    rl("train", config)
    run = tmp_path / "runs" / "tiny"
    recorded = metrics(run)
    assert len(recorded.steps) == 8
    with RunLog(run) as reader:
        # The bound is on a rollout's newest tokens: older ones may come from before a swap in flight.
        query = "SELECT max(train_step - 1 - policy_max) FROM learner JOIN rollouts USING (rollout_id) WHERE advantage IS NOT NULL"
        ((oldest,),) = reader.query(query).rows
    assert oldest <= 2
    assert any(step.staleness_mean > 0 for step in recorded.steps), "nothing ran ahead of the learner"
    for tensor in load_file(next((run / "model").glob("*.safetensors"))).values():
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize(("weight_sync", "transport"), [("full", "object_store"), ("delta", "collective")])
def test_a_dead_worker_and_a_dead_generator_are_replaced(model: Path, tmp_path: Path, weight_sync: str, transport: str) -> None:
    learner: dict[str, object] = {"weight_sync": weight_sync, "weight_transport": transport, "learning_rate": 1e-5}
    settings = {"run": {"steps": 60}, "rollout": {"max_staleness": 1}, "learner": learner, "generator": {"dtype": "bfloat16"}}
    config = write_config(tmp_path, model=model, **settings)
    run = tmp_path / "runs" / "tiny"
    hurry = tmp_path / "hurry"
    process = start("train", config, delay=0.4, until=hurry)
    wait_for_step(process, run, 2)
    expected, parts, deadline = dict.fromkeys(("loop", "buffer", "learner-0", "generator-0", "worker-0"), "live"), {}, time.monotonic() + 20
    while parts != expected and time.monotonic() < deadline:  # it is written every two seconds
        parts = {part["part"]: part["state"] for part in json.loads(rl("status", run, "--json"))["parts"]}
    assert parts == expected
    rl("chaos", run, "drop-weights", "generator-0")
    wait_for_step(process, run, metrics(run).steps[-1].step + 2)  # the generator has lost a version, and has been seeded
    for part in ("worker-0", "generator-0"):
        rl("chaos", run, "kill", part)
    wait_for_step(process, run, metrics(run).steps[-1].step + 4)  # more than was under way: others have taken their places
    hurry.touch()
    output = finish(process)
    assert len(metrics(run).steps) == 60
    assert "generator-0 got the weights of version" in output
    assert "worker 0 was lost" in output and "generator 0 was lost" in output
    assert output.count("has joined: 1 of 1 serve") == 2


def test_a_generator_that_is_killed_in_the_middle_of_a_broadcast_holds_up_nobody(model: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        model=model,
        run={"steps": 1000, "threads": 2},
        generator={"replicas": 2},
        learner={"ranks": 2, "weight_sync": "delta", "weight_transport": "collective", "learning_rate": 1e-5},
        checkpoint={"every": 1000},
    )
    run = tmp_path / "runs" / "tiny"
    process = start("train", config, delay=1.0)
    wait_for_step(process, run, 1)
    learner, lost = part_of(run, "learner-0").pid, part_of(run, "generator-1").pid
    assert learner and lost
    os.kill(learner, signal.SIGSTOP)  # so no rollout runs when the weights come
    until(now_at(run, "loop", (": train", ": sync")), "the loop waits for the learner")
    os.kill(lost, signal.SIGSTOP)
    os.kill(learner, signal.SIGCONT)
    until(now_at(run, "learner-0", ("of group 1",)), "the broadcast waits, and rl status says for what")
    os.kill(lost, signal.SIGKILL)
    until(lambda: part_of(run, "generator-1").pid != lost and "took the weights" in part_of(run, "generator-1").event, "another is seeded")
    wait_for_step(process, run, metrics(run).steps[-1].step + 2)
    process.send_signal(signal.SIGINT)
    output = finish(process, status=130)
    assert re.search(r"the broadcast of version \d+ failed: .*; the version goes through the object store, and another group", output)
    assert sum(step.broadcasts_failed for step in metrics(run).steps) == 1, "the group with the new one works"
    assert "generator 1 has joined: 2 of 2 serve" in output


def part_of(run: Path, name: str) -> PartStatus:
    """What the run's status has of a part; an empty one when it has nothing."""
    status = RunStatus.read(run / "status.json")
    parts = {part.part: part for part in status.parts} if status else {}
    nothing = PartStatus(part=name, host="", address="", pid=0, process_started=0.0, doing="", since=0.0, event="", event_at=0.0, beat=0)
    return parts.get(name, nothing)


def now_at(run: Path, name: str, words: tuple[str, ...]) -> Callable[[], bool]:
    """Whether a part has begun something that is told with one of these words after this call."""
    begun = time.time()
    return lambda: part_of(run, name).since > begun and any(word in part_of(run, name).doing for word in words)


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}"
        time.sleep(0.1)


def test_a_dead_learner_ends_the_run_by_name(model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, model=model, run={"steps": 1000})
    process = start("train", config, delay=0.4)
    wait_for_step(process, tmp_path / "runs" / "tiny", 1)
    (pid,) = actor_pids(process.pid, "LearnerActor")
    os.kill(pid, signal.SIGKILL)
    output = finish(process, status=1)
    assert "learner rank 0 died" in output
    assert "Traceback" not in output


def test_a_frozen_learner_rank_ends_the_run_by_name(model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, model=model, run={"steps": 1000, "threads": 2}, learner={"ranks": 2}, cluster={"part_timeout": 10})
    process = start("train", config, delay=0.1)
    wait_for_step(process, tmp_path / "runs" / "tiny", 1)
    frozen = start("chaos", tmp_path / "runs" / "tiny", "freeze", "learner-1", "--seconds", "600")
    output = finish(process, status=1)
    assert "learner rank 1 has given no sign of life for 1" in output and "Look at that machine" in output
    assert "Traceback" not in output
    assert "the run has ended it meanwhile" in finish(frozen)


def test_a_nan_loss_stops_and_says_which_rollouts(model: Path, tmp_path: Path) -> None:
    tasks = {"digits": {"kind": "programs", "env": "digits-then-huge", "heldout": 8, "options": {"kind": "addition"}}}
    config = write_config(tmp_path, model=model, run={"steps": 1000}, tasks=tasks)
    output = finish(start("train", config), status=1)
    assert "not finite" in output and "rollouts: 000000" in output
    assert "Traceback" not in output
    checkpoints = sorted((tmp_path / "runs" / "tiny" / "checkpoints").glob("step-*"))
    assert checkpoints, "the last good checkpoint is kept"
    for checkpoint in checkpoints:
        state = torch.load(checkpoint / "learner" / "rank-00000.pt", weights_only=True)
        assert all(np.isfinite(master.numpy()).all() for master in state["masters"])
