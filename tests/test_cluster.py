"""A run over three Ray nodes whose generator nodes are cut off, come back, and are killed. By hand: `pytest -m cluster`."""

import itertools
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rl.log.query import RunLog
from rl.status.record import RunStatus
from tests.net_cluster import NetCluster, net_cluster, why_not
from tests.ring import ROOT, make_tiny_model, metrics, write_config

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

GENERATOR = '{"generator_node": 1}'
PART_TIMEOUT = 10


@pytest.fixture(autouse=True)
def possible() -> None:
    if reason := why_not():
        pytest.skip(reason)


class Watched:
    """A run in the head's network, and what it has said."""

    def __init__(self, net: NetCluster, config: Path, run: Path) -> None:
        self._output = run.parent.parent / "output.txt"
        self.run = run
        with self._output.open("w") as output:
            command = [str(Path(sys.executable).with_name("rl")), "train", str(config)]
            self.process = net.run("head", command, stdout=output, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def step(self) -> int:
        path = self.run / "metrics.jsonl"
        steps = metrics(self.run).steps if path.exists() else ()
        return steps[-1].step if steps else 0

    def until(self, true: Callable[[], object], *, seconds: float, what: str) -> float:
        """Wait; the seconds that it took."""
        started = time.monotonic()
        while not true():
            assert self.process.poll() is None, f"the run has ended while {what}:\n{self.output}"
            assert time.monotonic() - started < seconds, (
                f"not within {seconds:.0f} s: {what}\n{self.output}\n{RunStatus.read(self.run / 'status.json')}"
            )
            time.sleep(0.1)
        took = time.monotonic() - started
        print(f"{what}: {took:.1f} s, at step {self.step}", flush=True)
        return took

    def said(self, pattern: str) -> int:
        return len(re.findall(pattern, self.output))

    def steps_more(self, count: int, *, what: str) -> float:
        wanted = self.step + count
        return self.until(lambda: self.step >= wanted, seconds=60, what=f"{count} more steps {what}")


def longest_gap(run: Path) -> float:
    times = [step.time for step in metrics(run).steps]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("transport", ["object_store", "collective"])
def test_generator_nodes_are_cut_off_return_and_are_killed(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model(tmp_path / "model")
    config = write_config(
        tmp_path,
        model=model,
        run={"steps": 100000, "threads": 2},
        rollout={"max_staleness": 1, "prompts_per_step": 4},
        checkpoint={"every": 20},
        # It is not there to learn, and must not end for having learned all there is.
        learner={"learning_rate": 1e-9, "weight_transport": transport},
        filters={"zero_variance_patience": 100000},
        evaluation={"enabled": False},
        cluster={"most_generators": 2, "generator_resources": {"generator_node": 1}, "part_timeout": PART_TIMEOUT, "start_timeout": 120},
    )
    monkeypatch.setenv("DIGITS_DELAY", "0.3")  # of an episode: steps take long enough to be counted
    with net_cluster(tmp_path / "net") as net:
        net.start("head", cpus=3)
        net.start("one", cpus=1, resources=GENERATOR)
        watched = Watched(net, config, tmp_path / "runs" / "tiny")
        try:
            watched.until(lambda: watched.step >= 3, seconds=180, what="the run begins with one generator node")
            net.start("two", cpus=1, resources=GENERATOR)
            watched.until(lambda: watched.said("2 of 2 serve"), seconds=120, what="a node that joins is used")
            watched.steps_more(5, what="with both")

            net.cut("one")
            watched.until(lambda: watched.said("generator 0 was lost"), seconds=4 * PART_TIMEOUT, what="a node that is cut off is dropped")
            watched.steps_more(5, what="without it")
            net.mend("one")
            watched.until(lambda: watched.said("generator 0 has joined"), seconds=180, what="the node is back and used again")
            watched.steps_more(5, what="with both again")

            net.kill("two")
            watched.until(lambda: watched.said("generator 1 was lost"), seconds=4 * PART_TIMEOUT, what="a node that is killed is dropped")
            watched.steps_more(5, what="without it")
            net.start("two", cpus=1, resources=GENERATOR)
            watched.until(lambda: watched.said("generator 1 has joined"), seconds=180, what="a new node takes its place")
            watched.steps_more(5, what="with both at the end")

            watched.process.send_signal(signal.SIGINT)
            assert watched.process.wait(timeout=120) == 130, watched.output
        finally:
            watched.process.kill()
            watched.process.wait()
            print(watched.output[-6000:])
    gap = longest_gap(watched.run)
    print(f"the longest time between two steps: {gap:.1f} s")
    with RunLog(watched.run) as log:
        ((rows, distinct),) = log.query("SELECT count(*), count(DISTINCT rollout_id) FROM rollouts").rows
        ((trained, unlogged),) = log.query(
            "SELECT count(*), count(*) FILTER (rollouts.rollout_id IS NULL) FROM learner LEFT JOIN rollouts USING (rollout_id)"
        ).rows
        infra = list(log.query("SELECT status, count(*) FROM rollouts GROUP BY ALL").rows)
    failed = sum(step.broadcasts_failed for step in metrics(watched.run).steps)
    print(f"rollouts {rows}, trained {trained}, statuses {infra}, broadcasts that failed {failed}")
    assert rows == distinct and unlogged == 0 and trained >= 16 * watched.step
    assert gap < 4 * PART_TIMEOUT, "a wait beyond its deadline"
    assert failed <= 2, "only a node that was cut off, or killed, may spoil a broadcast"


def test_a_node_with_other_code_is_refused_before_anything_starts(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    config = write_config(tmp_path, model=model)
    for package in ("rl", "rewards", "environments", "configs"):
        shutil.copytree(ROOT / package, tmp_path / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "code" / "rl" / "loss.py").open("a") as stream:
        stream.write("# another version\n")
    with net_cluster(tmp_path / "net") as net:
        net.start("head", cpus=3)
        net.start("one", cpus=1, code=tmp_path / "code")
        watched = Watched(net, config, tmp_path / "runs" / "tiny")
        try:
            assert watched.process.wait(timeout=180) == 2, watched.output
        finally:
            watched.process.kill()
    assert re.search(
        r"Ray node .* \(10\.77\.0\.2\): node .* has other code than the run .*codeworld-rl \w{16} and not \w{16}", watched.output
    )
    assert "starting 1 learner rank" not in watched.output
