"""Processor cores in virtual time: with more busy threads than cores, everything that computes gets slower together. Processes that
compute beside each other take caches and memory from each other, too, and are slower even where each has a core."""

import asyncio
from typing import Protocol

_DONE = 1e-9
"""Seconds."""


class Worker(Protocol):
    """Keeps a clock of its own that depends on the speed."""

    def catch_up(self) -> None:
        """The speed is about to change."""
        ...

    def go_on(self) -> None:
        """It has changed."""
        ...


class Cores:
    """Shared by all processes of a machine. Where every process has its own processors, nothing slows down."""

    def __init__(self, count: float | None, *, beside: float = 1.0) -> None:
        """`count`: None for any number. `beside`: how many times longer work takes while another process computes."""
        self._count, self._beside = count, beside
        self._busy, self._processes = 0.0, 0
        self._workers: list[Worker] = []
        self._changed = asyncio.Event()

    @property
    def speed(self) -> float:
        """Seconds of work that a busy thread does in a second."""
        if self._count is None:
            return 1.0
        return min(1.0, self._count / self._busy if self._busy else 1.0) / (self._beside if self._processes > 1 else 1.0)

    def join(self, worker: Worker) -> None:
        """Tell this one of every change of speed."""
        self._workers.append(worker)

    def use(self, threads: float) -> None:
        """A process has so many busy threads more; it has none any more when negative."""
        if self._count is None:
            return
        for worker in self._workers:
            worker.catch_up()
        before = self.speed
        self._busy += threads
        self._processes += 1 if threads > 0 else -1
        if self.speed != before:
            for worker in self._workers:
                worker.go_on()
            self._changed.set()
            self._changed = asyncio.Event()

    async def work(self, seconds: float, *, threads: float = 1) -> None:
        """Returns when so many seconds of work are done on each of the threads."""
        if self._count is None or seconds <= 0:
            await asyncio.sleep(seconds)
            return
        clock, left = asyncio.get_running_loop().time, seconds
        self.use(threads)
        try:
            while left > _DONE:
                began, speed, changed = clock(), self.speed, self._changed
                try:
                    async with asyncio.timeout(left / speed):
                        await changed.wait()
                except TimeoutError:
                    pass
                left -= (clock() - began) * speed
        finally:
            self.use(-threads)


class Thread:
    """A process that does one thing at a time."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._lock = asyncio.Lock()

    async def work(self, seconds: float) -> None:
        """Returns when it has come to this work and done it."""
        if seconds:
            async with self._lock:
                await self._cores.work(seconds)
