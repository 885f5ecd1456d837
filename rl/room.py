"""Room for episodes that keep containers between their turns: only so many groups are live at a time, the others wait.

Asynchronous runs start the next group, first come first served, as soon as there is room. In strictly on-policy runs the generator
waits for every live episode before it starts a round, so groups start in waves: the next wave when all of the last one have landed.
The size of a wave does not depend on the number of workers, and so the results do not.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from rl.rollout import GroupJob


class Room:
    """Holds jobs back until there is room."""

    def __init__(self, *, episodes: int | None, lockstep: bool, announce: Callable[[Sequence[GroupJob]], Awaitable[None]]) -> None:
        """`episodes`: most that are live; None means any number, and a larger group is live alone. `announce` tells the generators of a
        lockstep run which episodes are live."""
        self._episodes = episodes
        self._lockstep = lockstep
        self._announce = announce
        self._waiting: deque[GroupJob] = deque()
        self._starts: dict[str, asyncio.Event] = {}
        self._live: dict[str, int] = {}

    async def expect(self, jobs: Sequence[GroupJob]) -> None:
        """Lockstep: these jobs will be run, and start together as far as there is room."""
        if self._episodes is None:
            await self._announce(jobs)
        else:
            self._queue(jobs)
            await self._start()

    async def enter(self, job: GroupJob) -> None:
        """Returns when the job may start."""
        if self._episodes is None:
            return
        if job.group_id not in self._starts:
            self._queue([job])
            await self._start()
        await self._starts[job.group_id].wait()

    async def leave(self, job: GroupJob) -> None:
        """The job has ended, however it did."""
        if self._starts.pop(job.group_id, None) is None:
            return
        if self._live.pop(job.group_id, None) is None:
            self._waiting.remove(job)
        await self._start()

    def _queue(self, jobs: Sequence[GroupJob]) -> None:
        self._waiting.extend(jobs)
        self._starts.update((job.group_id, asyncio.Event()) for job in jobs)

    async def _start(self) -> None:
        if self._lockstep and self._live:
            return
        started: list[GroupJob] = []
        while self._waiting and self._has_room(self._waiting[0]):
            job = self._waiting.popleft()
            self._live[job.group_id] = job.n_samples
            started.append(job)
        if started and self._lockstep:
            await self._announce(started)
        for job in started:
            if job.group_id in self._starts:
                self._starts[job.group_id].set()

    def _has_room(self, job: GroupJob) -> bool:
        return not self._live or self._episodes is None or sum(self._live.values()) + job.n_samples <= self._episodes
