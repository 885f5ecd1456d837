"""The bounded queue between the ring and the log's disk.

Callers hand over immutable records and go on; a thread seals what has gathered, at most once a second, because many tiny files are
slow to read. Optional records are left out when the queue is half full, so that a slow disk costs them first; required ones wait
only when it is full. Both are counted.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from rl.log.manifest import WriterHealth
from rl.log.storage import LogWriteError

_SEAL_SECONDS = 1.0
"""Least time between two seals, unless someone waits for a flush."""
_MAX_WAITING = 4_000_000
"""Cost that may wait, in tokens: about 50 MB of arrays."""

_STUCK_SECONDS = 600.0
"""A seal that takes longer is taken for a disk that hangs, such as a network file system whose server is gone."""
_STUCK = f"the disk of the log has taken nothing for {_STUCK_SECONDS:.0f} s: look at the file system of run.dir, then go on with --resume"

Item = TypeVar("Item")


class SealQueue(Generic[Item]):
    """A bounded queue whose thread seals what has gathered. Its first failure is everyone's."""

    def __init__(
        self,
        *,
        seal: Callable[[Sequence[Item]], None],
        close: Callable[[], None],
        seconds: float = _SEAL_SECONDS,
        limit: int = _MAX_WAITING,
    ) -> None:
        """`seconds`: least time between two seals. `limit`: cost that may wait."""
        self._seal = seal
        self._close = close
        self._seconds = seconds
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: list[tuple[Item, int]] = []
        self._cost = 0
        self._n_put = 0
        self._n_sealed = 0
        self._flush_to = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._waits = 0
        self._wait_seconds = 0.0
        self._dropped: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="rollout-log", daemon=True)
        self._thread.start()

    def put(self, item: Item, *, cost: int) -> None:
        """Hand over what must be written; waits, and counts that, only while too much is not yet on disk."""
        with self._changed:
            if not self._has_room(cost):
                started = time.monotonic()
                self._wait_for(lambda: self._has_room(cost))
                self._waits += 1
                self._wait_seconds += time.monotonic() - started
            self._append(item, cost)

    def offer(self, item: Item, *, cost: int, dataset: str) -> None:
        """Hand over what may be left out; never waits and never raises for a disk that fails."""
        with self._changed:
            if self._failure or self._closing or 2 * (self._cost + cost) > self._limit:
                self._count(dataset, 1)
                return
            self._append(item, cost)

    def spare(self, cost: int, *, records: Mapping[str, int]) -> bool:
        """Whether optional records that cost this much may go along with a required one; if not, they count as dropped."""
        with self._changed:
            if not self._cost or 2 * (self._cost + cost) <= self._limit:
                return True
            for dataset, count in records.items():
                self._count(dataset, count)
            return False

    @property
    def pressed(self) -> bool:
        """Whether more than half the bound waits behind what is being sealed."""
        with self._changed:
            return 2 * sum(cost for _, cost in self._waiting) > self._limit

    def drop(self, dataset: str, count: int = 1) -> None:
        """Count optional records that could not be written."""
        with self._changed:
            self._count(dataset, count)

    @property
    def health(self) -> WriterHealth:
        """Counts so far."""
        with self._changed:
            return WriterHealth(waits=self._waits, wait_seconds=self._wait_seconds, dropped=dict(self._dropped))

    def flush(self) -> None:
        """Return once everything handed over so far is durable."""
        with self._changed:
            target = self._flush_to = self._n_put
            self._changed.notify_all()
            self._wait_for(lambda: self._n_sealed >= target)
            self._check()

    def close(self) -> None:
        """Flush and end the thread. A second call does nothing."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_STUCK_SECONDS)
        if self._thread.is_alive():
            raise LogWriteError(_STUCK)
        self._close()
        self._check()

    def _wait_for(self, true: Callable[[], bool]) -> None:
        """Returns when it is true, or sealing has failed. Raises LogWriteError when the disk takes nothing any more."""
        if not self._changed.wait_for(lambda: self._failure or true(), timeout=_STUCK_SECONDS):
            raise LogWriteError(_STUCK)

    def _has_room(self, cost: int) -> bool:
        return not self._cost or self._cost + cost <= self._limit

    def _append(self, item: Item, cost: int) -> None:
        self._check()
        if self._closing:
            raise LogWriteError("the log writer is closed; nothing more can be written through it")
        self._waiting.append((item, cost))
        self._cost += cost
        self._n_put += 1
        self._changed.notify_all()

    def _count(self, dataset: str, count: int) -> None:
        self._dropped[dataset] = self._dropped.get(dataset, 0) + count

    def _check(self) -> None:
        if self._failure is not None:
            raise LogWriteError(str(self._failure)) from self._failure

    def _run(self) -> None:
        last_seal = -self._seconds
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                pause = last_seal + self._seconds - time.monotonic()
                self._changed.wait_for(self._urgent, timeout=max(0.0, pause))
                batch, self._waiting = self._waiting, []
            try:
                self._seal([item for item, _ in batch])
            except BaseException as error:  # whatever it is, the callers must hear of it
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            last_seal = time.monotonic()
            with self._changed:
                self._n_sealed += len(batch)
                self._cost -= sum(cost for _, cost in batch)
                self._changed.notify_all()

    def _urgent(self) -> bool:
        return self._closing or self._flush_to > self._n_sealed or self._cost > self._limit // 4
