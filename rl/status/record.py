"""The record of one part, and the file that holds those of a run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class PartStatus:
    """One process of a run, or a part of the driver's process, at one moment."""

    part: str
    """`loop`, `buffer`, `learner-0`, `generator-0`, `worker-0`."""
    host: str
    address: str
    """Of the Ray node that it is on."""
    pid: int
    process_started: float
    """Unix seconds; with the id it tells a process from a later one of the same id."""
    doing: str
    """What it does or waits for."""
    since: float
    """Unix seconds at which that began."""
    event: str
    """The last thing that it finished."""
    event_at: float
    """Unix seconds."""
    beat: int
    """Grows as long as the process is alive, whatever it does."""
    lost: str = ""
    """Why the run gave it up; empty while it takes part."""

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def decode(data: bytes) -> "PartStatus":
        """Raises ValueError when it is not one."""
        try:
            return PartStatus(**json.loads(data))
        except TypeError as error:
            raise ValueError(f"not the status of a part: {error}") from error

    def told(self, *, now: float) -> str:
        """For a diagnosis: where it is, what it does and since when, and what it did last."""
        last = f"; last event {max(0.0, now - self.event_at):.0f} s ago: {self.event}" if self.event else ""
        return f"process {self.pid} on {self.host} ({self.address}): {self.doing} for {max(0.0, now - self.since):.0f} s{last}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnPart:
    """A part of the driver's own process; the fields are those of `PartStatus`."""

    part: str
    doing: str
    since: float
    event: str
    event_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingPart:
    """A process that was asked for and has not been heard of."""

    part: str
    waits_for: str
    since: float
    """Unix seconds at which it was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """The content of `status.json`."""

    attempt: int
    time: float
    """Unix seconds at which it was written; a live run writes it every few seconds."""
    parts: tuple[PartStatus, ...]
    lost: tuple[PartStatus, ...]
    """The last ones that the run gave up."""
    waiting: tuple[WaitingPart, ...]

    def write(self, path: Path) -> None:
        """Whole or not at all. Raises OSError."""
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(asdict(self)) + "\n")
        temporary.replace(path)

    @staticmethod
    def read(path: Path) -> "RunStatus | None":
        """None when there is none, or it cannot be read."""
        try:
            values: Mapping[str, Any] = json.loads(path.read_text())
            return RunStatus(
                attempt=int(values["attempt"]),
                time=float(values["time"]),
                parts=tuple(PartStatus(**part) for part in values["parts"]),
                lost=tuple(PartStatus(**part) for part in values["lost"]),
                waiting=tuple(WaitingPart(**part) for part in values.get("waiting", ())),  # older runs did not write it
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
