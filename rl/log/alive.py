"""Whether a run is going on: `alive.json` names its process and, at the end, how it ended.

A process is told by its id and start time, so a new one with the same id is not taken for it. On another machine the file's age
counts: a live run touches it every few seconds.
"""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

import psutil

_BEAT_SECONDS = 5.0
_SILENT_SECONDS = 60.0


class RunState(Enum):
    """What became of a run."""

    LIVE = "live"
    FINISHED = "finished"
    """All of its steps are done."""
    STOPPED = "stopped"
    """It was interrupted, or failed with an error; `--resume` goes on."""
    DIED = "died"
    """Its process went away without a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alive:
    """The content of the file."""

    host: str
    pid: int
    process_started: float
    """Unix seconds."""
    started: float
    """Unix seconds at which the attempt began."""
    ended: str = ""
    """`finished`, or why it stopped; empty while it runs."""


class Heartbeat:
    """Keeps `alive.json` while a run goes on. A disk that cannot be written costs the beat, not the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        process = psutil.Process()
        self._alive = Alive(host=socket.gethostname(), pid=process.pid, process_started=process.create_time(), started=time.time())
        self._write(self._alive)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def end(self, how: str) -> None:
        """Say how the run ended: `finished`, or the reason for which it stopped."""
        self._stop.set()
        self._thread.join()
        values = asdict(self._alive) | {"ended": how or "stopped"}
        self._write(Alive(**values))

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _write(self, alive: Alive) -> None:
        temporary = self._path.with_name(self._path.name + ".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(asdict(alive)) + "\n")
            temporary.replace(self._path)


def run_state(path: Path, *, all_steps_done: bool) -> tuple[RunState, str]:
    """State of a run and why it stopped. `all_steps_done` decides for runs that are older than the file."""
    try:
        alive = Alive(**json.loads(path.read_text()))
        beat = path.stat().st_mtime
    except (OSError, ValueError, TypeError):
        return (RunState.FINISHED if all_steps_done else RunState.STOPPED), ""
    if alive.ended == RunState.FINISHED.value:
        return RunState.FINISHED, ""
    if alive.ended:
        return RunState.STOPPED, alive.ended
    return (RunState.LIVE if _runs(alive, beat) else RunState.DIED), ""


def _runs(alive: Alive, beat: float) -> bool:
    if alive.host != socket.gethostname():
        return time.time() - beat < _SILENT_SECONDS
    try:
        process = psutil.Process(alive.pid)
        return abs(process.create_time() - alive.process_started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
