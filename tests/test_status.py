"""What parts say of themselves: beats, silence, `status.json`, `rl status` of a live, a finished and a killed run."""

import asyncio
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rl.status.reporter
from rl.cli import main
from rl.log.alive import Heartbeat
from rl.log.runs import RunPaths, prepare_run
from rl.status.record import OwnPart, PartStatus, RunStatus
from rl.status.reporter import Reporter
from rl.status.watch import Watch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.status.reporter, "BEAT_SECONDS", 0.01)


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    prepare_run(tmp_path / "a")
    return RunPaths(root=tmp_path / "a")


def record_of(part: str, *, pid: int | None = None, beat: int = 1) -> PartStatus:
    """Of a process of this machine."""
    reporter = Reporter(part, mailbox=lambda record: True, address="10.0.0.1")
    reporter.close()
    record = dataclasses.replace(reporter.record(), beat=beat)
    if pid is None:
        return record
    import psutil

    return dataclasses.replace(record, pid=pid, process_started=psutil.Process(pid).create_time())


def test_a_process_beats_and_says_what_it_does() -> None:
    heard: list[PartStatus] = []
    reporter = Reporter("learner-0", mailbox=lambda record: heard.append(record) or True, address="10.0.0.1")  # type: ignore[func-returns-value]
    with reporter.phase("training step", then="waits for the loop"):
        while not heard or heard[-1].doing != "training step":
            time.sleep(0.001)
    while heard[-1].doing != "waits for the loop":
        time.sleep(0.001)
    reporter.close()
    assert (heard[-1].event, heard[-1].pid, heard[-1].address) == ("training step", os.getpid(), "10.0.0.1")
    assert [record.beat for record in heard] == list(range(1, len(heard) + 1))
    assert PartStatus.decode(heard[-1].encode()) == heard[-1]
    assert "learner" not in heard[-1].told(now=time.time()) and "training step" in heard[-1].told(now=time.time())


def test_a_process_that_was_given_up_ends_itself_when_it_hears_of_it() -> None:
    code = (
        "import time\nfrom rl.status.reporter import Reporter\n"
        "def mailbox(record):\n    if record.beat == 1: raise ConnectionError\n    return record.beat < 3\n"
        "import rl.status.reporter\nrl.status.reporter.BEAT_SECONDS = 0.01\n"
        "Reporter('generator-0', mailbox=mailbox)\ntime.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 1


def test_silence_is_measured_by_beats_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("rl.status.watch.time.monotonic", lambda: now[0])
    watch = Watch(tmp_path / "status.json", attempt=1, read=lambda: ())
    assert watch.silent_for("learner-1") == 0.0, "nothing was heard yet"
    watch.take([record_of("learner-0"), record_of("learner-1")])
    now[0] += 30
    watch.take([record_of("learner-0", beat=2), record_of("learner-1")])
    assert (watch.silent_for("learner-0"), watch.silent_for("learner-1")) == (0.0, 30.0)
    watch.lose("learner-1", "no sign of life")
    assert watch.silent_for("learner-1") == 0.0
    watch.own = lambda: (OwnPart(part="loop", doing="step 1: rollout", since=1.0, event="", event_at=0.0),)
    watch.write()
    status = RunStatus.read(tmp_path / "status.json")
    assert status is not None
    assert [part.part for part in status.parts] == ["loop", "learner-0"]
    assert [part.lost for part in status.lost] == ["no sign of life"]


def test_the_watch_outlives_a_failing_network_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.status.watch.BEAT_SECONDS", 0.01)
    calls = []

    def read() -> list[PartStatus]:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError
        return [record_of("worker-0")]

    async def body() -> None:
        watch = Watch(tmp_path / "not" / "there" / "status.json", attempt=1, read=read)
        task = asyncio.create_task(watch.run())
        while watch.record("worker-0") is None:
            await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(asyncio.wait_for(body(), 20))


def shown(run: RunPaths, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["status", str(run.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    return {"": told["state"], **{part["part"]: part["state"] for part in told["parts"]}}


def test_rl_status_of_a_run_that_lives_and_dies(
    run: RunPaths, child: "subprocess.Popen[bytes]", capsys: pytest.CaptureFixture[str]
) -> None:
    heartbeat = Heartbeat(run.alive)
    elsewhere = dataclasses.replace(record_of("worker-1"), host="elsewhere")
    lost = dataclasses.replace(record_of("generator-1"), lost="killed")
    parts = (record_of("worker-0", pid=child.pid), elsewhere)
    RunStatus(attempt=1, time=time.time(), parts=parts, lost=(lost,), waiting=()).write(run.status)
    assert shown(run, capsys) == {"": "live", "worker-0": "live", "worker-1": "live", "generator-1": "lost"}
    os.kill(child.pid, 19)
    assert shown(run, capsys)["worker-0"] == "frozen"
    child.kill()
    child.wait()
    RunStatus(attempt=1, time=time.time() - 600, parts=parts, lost=(), waiting=()).write(run.status)
    assert shown(run, capsys) == {"": "live", "worker-0": "dead", "worker-1": "unseen"}
    assert main(["status", str(run.root)]) == 0
    assert re.search(r"its driver has written nothing for 60\d s", capsys.readouterr().out)
    heartbeat.end("finished")
    assert shown(run, capsys) == {"": "finished", "worker-0": "ended", "worker-1": "ended"}


def test_a_run_without_a_status_is_told_so(run: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run.root)]) == 2
    assert "has not started its parts" in capsys.readouterr().err
