"""Faults on purpose: the right process and no other, undone when the time is up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rl.chaos.command import Request, _fill
from rl.chaos.requests import FaultRequests
from rl.cli import main
from rl.log.alive import Heartbeat
from rl.log.runs import RunPaths, prepare_run
from rl.status.record import PartStatus, RunStatus


@pytest.fixture
def run(tmp_path: Path, child: "subprocess.Popen[bytes]") -> Iterator[RunPaths]:
    """A live run whose generator is `child`."""
    prepare_run(tmp_path / "a")
    paths = RunPaths(root=tmp_path / "a")
    heartbeat = Heartbeat(paths.alive)
    write_status(paths, child.pid)
    yield paths
    heartbeat.end("finished")


def write_status(run: RunPaths, pid: int, *, host: str = os.uname().nodename, started: float | None = None) -> None:
    part = PartStatus(
        part="generator-0",
        host=host,
        address="127.0.0.1",
        pid=pid,
        process_started=started or psutil.Process(pid).create_time(),
        doing="waits for requests",
        since=time.time(),
        event="",
        event_at=0.0,
        beat=1,
    )
    RunStatus(attempt=1, time=time.time(), parts=(part,), lost=(), waiting=()).write(run.status)


def chaos(run: RunPaths, *words: str) -> int:
    return main(["chaos", str(run.root), *words])


def test_freeze_and_slow_stop_the_process_and_let_it_go_on(
    run: RunPaths, child: "subprocess.Popen[bytes]", capsys: pytest.CaptureFixture[str]
) -> None:
    for fault in ("freeze", "slow"):
        command = subprocess.Popen([sys.executable, "-m", "rl.cli", "chaos", str(run.root), fault, "generator-0", "--seconds", "600"])
        while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        command.send_signal(signal.SIGTERM)
        assert command.wait(timeout=30) == 130
        assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
    assert chaos(run, "freeze", "generator-0", "--seconds", "0.1") == 0
    assert f"froze generator-0, process {child.pid}, for 0.1 s; it has gone on" in capsys.readouterr().out


def test_undo_thaws_frees_and_withdraws(run: RunPaths, child: "subprocess.Popen[bytes]", capsys: pytest.CaptureFixture[str]) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    assert chaos(run, "drop-weights", "generator-0") == 0
    (run.root / "chaos" / "ballast").write_bytes(b"x")
    assert chaos(run, "undo") == 0
    assert f"thawed generator-0, process {child.pid}; freed the disk; withdrew 1 requests" in capsys.readouterr().out
    assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
    assert not list((run.root / "chaos").iterdir())


def test_kill_ends_that_process(run: RunPaths, child: "subprocess.Popen[bytes]") -> None:
    assert chaos(run, "kill", "generator-0") == 0
    assert child.wait(timeout=30) == -signal.SIGKILL


def test_what_is_not_the_runs_is_let_alone(run: RunPaths, child: "subprocess.Popen[bytes]", capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos(run, "kill", "generator-7") == 2
    assert "the run has no part 'generator-7': generator-0" in capsys.readouterr().err
    write_status(run, child.pid, started=1.0)
    assert chaos(run, "kill", "generator-0") == 2
    assert "has ended already" in capsys.readouterr().err, "a later process of the same id"
    write_status(run, child.pid, host="elsewhere")
    assert chaos(run, "kill", "generator-0") == 2
    assert "runs on elsewhere" in capsys.readouterr().err
    assert child.poll() is None


def test_only_a_live_run_is_disturbed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_run(tmp_path / "b")
    Heartbeat(RunPaths(root=tmp_path / "b").alive).end("finished")
    assert main(["chaos", str(tmp_path / "b"), "kill", "generator-0"]) == 2
    assert "not a live run (finished)" in capsys.readouterr().err


def test_a_request_to_drop_weights_is_done_once(run: RunPaths) -> None:
    requests = FaultRequests(run_dir=run.root)
    assert not requests.drop_weights("generator-0")
    assert chaos(run, "drop-weights", "generator-0") == 0
    assert [requests.drop_weights(part) for part in ("generator-1", "generator-0", "generator-0")] == [False, True, False]


def test_a_disk_that_is_not_small_is_not_filled(run: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos(run, "fill-disk", "--most-gb", "0.000001") == 2
    assert "--most-gb is 1e-06" in capsys.readouterr().err
    assert not (run.root / "chaos").exists()
    assert Request(fault="fill-disk").most_gb == 4.0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_is_filled_to_the_last_byte(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.decode()}")
    try:
        assert _fill(tmp_path / "ballast") == 3 << 20
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "more").write_bytes(b"x")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
