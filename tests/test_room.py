"""Who may start when episodes keep containers: first come first served, or in waves."""

import asyncio
import dataclasses
from collections.abc import Sequence

from rl.rollout import GroupJob
from rl.room import Room
from tests.fakes import make_problem
from tests.test_rollout import make_job


def jobs(count: int, *, samples: int = 2) -> list[GroupJob]:
    job = make_job(make_problem(), tokens=1)
    return [dataclasses.replace(job, group_id=f"{i:08d}", index=i, n_samples=samples) for i in range(count)]


class Stage:
    """Runs jobs through a room; each lasts until it is told to end."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.running: set[int] = set()
        self._ends: dict[int, asyncio.Event] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def begin(self, work: Sequence[GroupJob]) -> None:
        for job in work:
            self._ends[job.index] = asyncio.Event()
            self._tasks[job.index] = asyncio.create_task(self._run(job))
        await self.settle()

    async def end(self, index: int) -> None:
        self._ends[index].set()
        await self._tasks[index]
        await self.settle()

    async def give_up(self, index: int) -> None:
        self._tasks[index].cancel()
        await asyncio.gather(self._tasks[index], return_exceptions=True)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def _run(self, job: GroupJob) -> None:
        try:
            await self.room.enter(job)
            self.running.add(job.index)
            await self._ends[job.index].wait()
            self.running.discard(job.index)
        finally:
            await self.room.leave(job)


async def told_nothing(jobs: Sequence[GroupJob]) -> None:
    raise AssertionError("an asynchronous run announces nothing")


def test_an_asynchronous_run_starts_the_next_group_as_soon_as_there_is_room() -> None:
    async def body() -> None:
        stage = Stage(Room(episodes=4, lockstep=False, announce=told_nothing))
        await stage.begin(jobs(5))
        assert stage.running == {0, 1}
        await stage.end(1)
        assert stage.running == {0, 2}
        await stage.give_up(3)
        await stage.end(0)
        assert stage.running == {2, 4}, "one that was given up while it waited takes no room"

    asyncio.run(body())


def test_a_lockstep_run_goes_in_waves_that_are_announced_together() -> None:
    announced: list[list[int]] = []

    async def announce(wave: Sequence[GroupJob]) -> None:
        announced.append([job.index for job in wave])

    async def body() -> None:
        room = Room(episodes=4, lockstep=True, announce=announce)
        stage, work = Stage(room), jobs(3)
        await room.expect(work)
        await stage.begin(work)
        await stage.end(1)
        assert (stage.running, announced) == ({0}, [[0, 1]]), "the wave is not over"
        await stage.end(0)
        assert (stage.running, announced) == ({2}, [[0, 1], [2]])
        await stage.end(2)

    asyncio.run(body())


def test_a_group_larger_than_the_room_runs_alone_and_no_bound_holds_nobody() -> None:
    async def body() -> None:
        stage = Stage(Room(episodes=4, lockstep=False, announce=told_nothing))
        await stage.begin(jobs(2, samples=9))
        assert stage.running == {0}
        free = Stage(Room(episodes=None, lockstep=False, announce=told_nothing))
        await free.begin(jobs(9, samples=9))
        assert free.running == set(range(9))

    asyncio.run(body())
