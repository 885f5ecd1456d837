"""`rl status`: a live run's parts as they are, a run that ended or died as it was last seen."""

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import psutil

from rl.log.alive import RunState, run_state
from rl.log.runs import RunPaths, find_run
from rl.log.text import visible
from rl.status.record import PartStatus, RunStatus, WaitingPart

_SILENT_SECONDS = 20.0
"""A driver that has written nothing for so long is told as silent: ten beats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One part, judged from here."""

    part: PartStatus
    state: str
    """`live`; `frozen` or `dead` as this machine sees the process; `unseen` on another machine while the driver is silent; `ended` with the
    run; `lost` when the run gave it up."""


def status_command(run: str, *, as_json: bool, clock: Callable[[], float] = time.time) -> int:
    """Print it. Raises ValueError when there is no such run, or it has no status."""
    paths = RunPaths(root=find_run(run))
    status = RunStatus.read(paths.status)
    if status is None:
        raise ValueError(f"{paths.root} has no status.json: it has not started its parts, or is older than the file")
    now = clock()
    state, why = run_state(paths.alive, all_steps_done=False)
    shown = judge(status, state=state, now=now)
    if as_json:
        print(json.dumps(_to_json(shown, status, state=state, why=why, now=now)))
        return 0
    age = now - status.time
    silent = f", but its driver has written nothing for {age:.0f} s" if state is RunState.LIVE and age > _SILENT_SECONDS else ""
    head = f"{paths.root.name}: {state.value}{silent}" + (f" ({why})" if why else "")
    print(visible(head if state is RunState.LIVE else f"{head}; as it was {_ago(age)} ago", one_line=True))
    # Ages of a run that is over are those of its last moment.
    for line in _lines(shown, status.waiting, now=now if state is RunState.LIVE else status.time):
        print(visible(line, one_line=True))
    return 0


def judge(status: RunStatus, *, state: RunState, now: float) -> tuple[Shown, ...]:
    """What became of each part."""
    parts = [Shown(part=part, state=_state(part, run=state, age=now - status.time)) for part in status.parts]
    return (*parts, *(Shown(part=part, state="lost") for part in status.lost))


def _state(part: PartStatus, *, run: RunState, age: float) -> str:
    if run in (RunState.FINISHED, RunState.STOPPED):
        return "ended"
    if part.host == socket.gethostname():
        process = process_of(part)
        if process is None:
            return "dead"
        return "frozen" if process.status() == psutil.STATUS_STOPPED else "live"
    return "live" if age < _SILENT_SECONDS else "unseen"


def process_of(part: PartStatus) -> psutil.Process | None:
    """The very process on this machine, not a later one of the same id; None when it has ended."""
    try:
        process = psutil.Process(part.pid)
        same = abs(process.create_time() - part.process_started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if same else None


def _lines(shown: Sequence[Shown], waiting: Sequence[WaitingPart], *, now: float) -> Iterator[str]:
    """Two a part that has a process, one for a part that has none yet."""
    yield f"{'part':<14} {'state':<7} {'for':>7}  does or waits for"
    for one in shown:
        part = one.part
        event = f"last: {part.event}, {_ago(now - part.event_at)} ago; " if part.event else ""
        yield f"{part.part:<14} {one.state:<7} {_ago(now - part.since):>7}  {part.lost or part.doing}"
        yield f"{'':<32}{event}{part.host} {part.address}{' ' if part.address else ''}process {part.pid}"
    for absent in waiting:
        yield f"{absent.part:<14} {'absent':<7} {_ago(now - absent.since):>7}  {absent.waits_for}"


def _ago(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"


def _to_json(shown: Sequence[Shown], status: RunStatus, *, state: RunState, why: str, now: float) -> dict[str, object]:
    parts = [{**asdict(one.part), "state": one.state} for one in shown]
    return {
        "state": state.value,
        "why": why,
        "attempt": status.attempt,
        "written_seconds_ago": now - status.time,
        "parts": parts,
        "waiting": [asdict(absent) for absent in status.waiting],
    }
