"""The driver's side: collects the parts' records, notices who has fallen silent, and writes `status.json`."""

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from rl.status.record import OwnPart, PartStatus, RunStatus, WaitingPart
from rl.status.reporter import BEAT_SECONDS

_LOST_KEPT = 20


@dataclass(kw_only=True, slots=True, eq=False)
class _Expected:
    """A part that was asked for and has not been heard of."""

    why: Callable[[], str]
    since: float
    waits_for: str = "was asked for"


class Watch:
    """What is known of every part. Times are this process's own: clocks of other machines do not matter."""

    def __init__(self, path: Path, *, attempt: int, read: Callable[[], Sequence[PartStatus]]) -> None:
        """`read` gives the newest record of each remote part (called in a thread)."""
        self._path, self._attempt, self._read = path, attempt, read
        self.own: Callable[[], Sequence[OwnPart]] = lambda: ()
        """What the parts of this process are at."""
        process = psutil.Process()
        self._process: dict[str, Any] = {
            "host": socket.gethostname(),
            "address": "",
            "pid": process.pid,
            "process_started": process.create_time(),
        }
        self._beat = 0
        self._records: dict[str, PartStatus] = {}
        self._heard: dict[str, float] = {}
        self._looked = 0.0
        self._lost: deque[PartStatus] = deque(maxlen=_LOST_KEPT)
        self._expected: dict[str, _Expected] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with contextlib.suppress(Exception):  # a network or a disk that fails costs the view, not the run
                    records, waits = await asyncio.to_thread(self._look)
                    self.take(records)
                    self._explain(waits)
                self.write()
                await asyncio.sleep(BEAT_SECONDS)
        finally:
            self.write()

    def expect(self, part: str, why: Callable[[], str]) -> None:
        """A process of this part is asked for. `why`, called in a thread, says what it waits for until it is heard."""
        self._expected[part] = _Expected(why=why, since=time.time())

    def _look(self) -> tuple[Sequence[PartStatus], Mapping[str, str]]:
        records = self._read()
        heard = {record.part for record in records}
        waits = {}
        for part, expected in list(self._expected.items()):
            if part not in heard:
                with contextlib.suppress(Exception):  # what was heard counts all the same
                    waits[part] = expected.why()
        return records, waits

    def _explain(self, waits: Mapping[str, str]) -> None:
        for part, waits_for in waits.items():
            if part in self._expected:
                self._expected[part].waits_for = waits_for

    def take(self, records: Sequence[PartStatus]) -> None:
        """The newest record of each part that is heard of."""
        now = self._looked = time.monotonic()
        for record in records:
            before = self._records.get(record.part)
            if before is None or (before.pid, before.host, before.beat) != (record.pid, record.host, record.beat):
                self._heard[record.part] = now
            self._records[record.part] = record
            self._expected.pop(record.part, None)

    def write(self) -> None:
        """`status.json`; a full disk costs the view only."""
        self._beat += 1
        own = [PartStatus(**asdict(part), **self._process, beat=self._beat) for part in self.own()]
        parts = (*own, *(self._records[name] for name in sorted(self._records, key=_by_number)))
        waiting = tuple(
            WaitingPart(part=part, waits_for=self._expected[part].waits_for, since=self._expected[part].since)
            for part in sorted(self._expected, key=_by_number)
        )
        with contextlib.suppress(OSError):
            RunStatus(attempt=self._attempt, time=time.time(), parts=parts, lost=tuple(self._lost), waiting=waiting).write(self._path)

    def silent_for(self, part: str) -> float:
        """Seconds without a sign of life up to the last time that records could be read; 0 for a part that has not given the first one."""
        return self._looked - self._heard.get(part, self._looked)

    def told(self, part: str) -> str:
        """For a diagnosis; empty when nothing is known."""
        record = self._records.get(part)
        return record.told(now=time.time()) if record else ""

    def waits_for(self, part: str) -> str:
        """The same of one that was asked for and has not been heard of."""
        expected = self._expected.get(part)
        return f"{expected.waits_for} (for {time.time() - expected.since:.0f} s)" if expected else ""

    def record(self, part: str) -> PartStatus | None:
        """The newest record."""
        return self._records.get(part)

    def lose(self, part: str, why: str) -> None:
        """The run goes on without this part, or without this process of it."""
        record = self._records.get(part)
        self.forget(part)
        if record:
            self._lost.append(replace(record, lost=why))

    def forget(self, part: str) -> None:
        """The part has ended as it should."""
        for known in (self._heard, self._records, self._expected):
            known.pop(part, None)


def _by_number(part: str) -> tuple[str, int]:
    kind, _, number = part.rpartition("-")
    return kind, int(number) if number.isdecimal() else 0
