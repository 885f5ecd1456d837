"""`rl chaos`: finds the part in the run's status, and acts on that very process of this machine and on nothing else.

Whatever can be undone is undone when the time is up, on Ctrl-C, and on a signal to end; `rl chaos RUN undo` does it should the command
itself have been killed.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from rl.chaos.requests import FOLDER, FaultRequests
from rl.log.alive import RunState, run_state
from rl.log.runs import RunPaths, find_run
from rl.status.record import PartStatus, RunStatus
from rl.status.show import process_of

GIB = 1 << 30
_BALLAST = "ballast"
_PIECE = 64 << 20
_PERIOD = 0.2
"""Seconds of one turn of stopping and going on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to do to a run."""

    fault: str
    part: str | None = None
    seconds: float = 30.0
    share: float = 0.75
    """slow: part of the time that the process is stopped."""
    most_gb: float = 4.0
    """fill-disk: GiB above which it refuses."""


def chaos_command(run: str, request: Request, *, as_json: bool) -> int:
    """Do it and say what was done. Raises ValueError for a run or part that it must not touch."""
    paths = RunPaths(root=find_run(run))
    with _ended_by_signals():
        did = _undo(paths) if request.fault == "undo" else _inject(paths, request)
    print(json.dumps({"fault": request.fault, "part": request.part, "did": did}) if as_json else did, flush=True)
    return 0


def _inject(paths: RunPaths, request: Request) -> str:
    state, _ = run_state(paths.alive, all_steps_done=False)
    if state is not RunState.LIVE:
        raise ValueError(f"{paths.root} is not a live run ({state.value}): there is nothing to disturb")
    if request.fault == "fill-disk":
        return _fill_disk(paths, request)
    part = _part(paths, request.part)
    if request.fault == "drop-weights":
        return _drop_weights(paths, part)
    return _signal(part, request)


def _part(paths: RunPaths, name: str | None) -> PartStatus:
    status = RunStatus.read(paths.status)
    parts = {part.part: part for part in status.parts if part.address} if status else {}
    if name is None or name not in parts:
        wanted = "name a part" if name is None else f"the run has no part {name!r}"
        raise ValueError(f"{wanted}: {', '.join(parts) or 'none has reported yet'} (rl status shows them)")
    return parts[name]


def _process(part: PartStatus) -> psutil.Process:
    if part.host != socket.gethostname():
        raise ValueError(f"{part.part} runs on {part.host}, and this is {socket.gethostname()}: give the command there")
    process = process_of(part)
    if process is None:
        raise ValueError(f"process {part.pid} of {part.part} has ended already")
    return process


def _signal(part: PartStatus, request: Request) -> str:
    process = _process(part)
    if request.fault == "kill":
        process.kill()
        return f"killed {part.part}, process {part.pid}"
    with _thawed(process):
        if request.fault == "freeze":
            process.suspend()
            _sleep(process, request.seconds)
        else:
            _slow(process, request)
    after = "it has gone on" if process_of(part) else "the run has ended it meanwhile"
    how = "froze" if request.fault == "freeze" else f"stopped {request.share:.0%} of the time"
    return f"{how} {part.part}, process {part.pid}, for {request.seconds:g} s; {after}"


def _slow(process: psutil.Process, request: Request) -> None:
    end = time.monotonic() + request.seconds
    while time.monotonic() < end and process.is_running():
        process.suspend()
        time.sleep(_PERIOD * request.share)
        process.resume()
        time.sleep(_PERIOD * (1 - request.share))


def _sleep(process: psutil.Process, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(min(_PERIOD, max(0.0, end - time.monotonic())))


@contextlib.contextmanager
def _thawed(process: psutil.Process) -> Iterator[None]:
    """The process goes on afterwards, whatever happens; one that has ended is let alone."""
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()  # psutil sees that it is the same process


def _drop_weights(paths: RunPaths, part: PartStatus) -> str:
    if not part.part.startswith("generator-"):
        raise ValueError(f"{part.part} takes no weights: name a generator")
    FaultRequests(run_dir=paths.root).ask_to_drop_weights(part.part)
    return f"the first bucket of the next weights for {part.part} will go astray"


def _fill_disk(paths: RunPaths, request: Request) -> str:
    free = shutil.disk_usage(paths.root).free
    if free > request.most_gb * GIB:
        raise ValueError(
            f"{paths.root} is on a disk with {free / GIB:.1f} GiB free, and --most-gb is {request.most_gb:g}: put the run on a small disk "
            "of its own (a tmpfs with size=), or allow more; whoever else uses that disk would find it full as well"
        )
    ballast = _ballast(paths)
    ballast.parent.mkdir(exist_ok=True)
    try:
        taken = _fill(ballast)
        time.sleep(request.seconds)
    finally:
        ballast.unlink(missing_ok=True)
    return f"filled the disk of {paths.root} with {taken / GIB:.2f} GiB for {request.seconds:g} s; they are free again"


def _fill(ballast: Path) -> int:
    """Bytes that the file has when nothing more fits."""
    piece = _PIECE
    with ballast.open("wb") as stream:
        size = 0
        while piece:
            try:
                os.posix_fallocate(stream.fileno(), size, piece)
                size += piece
            except OSError:
                piece = 0 if piece == 1 else max(1, piece // 16)
        return size


def _ballast(paths: RunPaths) -> Path:
    return paths.root / FOLDER / _BALLAST


def _undo(paths: RunPaths) -> str:
    """Thaw what is frozen, free the disk, take back what has not been done."""
    status = RunStatus.read(paths.status)
    did = []
    for part in status.parts if status else ():
        process = process_of(part) if part.host == socket.gethostname() else None
        if process is not None and process.status() == psutil.STATUS_STOPPED:
            process.resume()
            did.append(f"thawed {part.part}, process {part.pid}")
    if _ballast(paths).exists():
        _ballast(paths).unlink()
        did.append("freed the disk")
    if withdrawn := FaultRequests(run_dir=paths.root).withdraw():
        did.append(f"withdrew {withdrawn} requests")
    return "; ".join(did) or "there was nothing to undo"


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A signal to end is a Ctrl-C: what was begun is undone on the way out."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
