"""Generators and rollout workers that come and go, on fake processes: who serves, what is given to others, when the run ends."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import rl.crew
from rl.crew import Crew, Member
from rl.errors import PartDied, PartGone
from rl.generator_client import GeneratorRouter
from rl.generator_pool import GeneratorPool
from rl.records import Publication
from rl.rollout import GroupOutcome
from rl.rollout_pool import RolloutPool
from rl.supervise import supervised
from rl.weight_sync import WeightSyncError
from tests.fakes import FakeHealth, FakePart, make_group, make_problem, make_request
from tests.test_rollout import make_job


class NoFaults:
    def drop_weights(self, part: str) -> bool:
        return False


class Stage:
    """A crew over fake processes; `made` has all that were started, in order."""

    def __init__(self, kind: str = "generator", *, needed: int = 2, most: int = 2, start_timeout: float = 20.0, **answers: Any) -> None:
        self.made: list[FakePart] = []
        self.said: list[str] = []
        self.gave_up: list[str] = []
        self.health = FakeHealth()
        self.answers: dict[str, Callable[..., Any]] = answers
        self.room = {slot: True for slot in range(most)}
        """Whether the cluster has room for the process of a slot."""
        self.crew = Crew(
            kind,
            start=self._start,
            needed=needed,
            most=most,
            start_timeout=start_timeout,
            part_timeout=60.0,
            health=self.health,
            gave_up=self._give_up,
            say=self.said.append,
            room=lambda: "free: 0 CPU",
        )

    def _start(self, slot: int) -> FakePart:
        part = FakePart(f"{self.crew.kind}-{slot}.{len(self.made)}", self.answers)
        if not self.room[slot]:
            part.built.clear()
        self.made.append(part)
        return part

    def _give_up(self, member: Member) -> None:
        self.gave_up.append(member.remote.name)
        self.health.silent.pop(member.part, None)

    def serving(self) -> list[str]:
        return [member.remote.name for _, member in sorted(self.crew.serving.items())]


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def publication(version: int, base: int | None = None) -> Publication:
    return Publication(version=version, base=base, buckets=(f"bucket of {version}",), nbytes=1)


def pool_of(stage: Stage, *, slots: int = 2, lockstep: bool = False) -> GeneratorPool:
    return GeneratorPool(stage.crew, slots=slots, lockstep=lockstep, timeout=5.0, faults=NoFaults(), say=stage.said.append)


def test_one_that_dies_or_falls_silent_is_replaced_and_told_to_end() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.crew.begin()
        async with supervised([stage.crew.watch]):
            stage.made[0].kill()
            await until(lambda: stage.serving() == ["generator-0.2", "generator-1.1"])
            stage.health.silent["generator-1"] = 99.0
            await until(lambda: "generator-1.1" in stage.gave_up)
            assert stage.made[1].dead.is_set()
            await until(lambda: stage.serving() == ["generator-0.2", "generator-1.3"])
        await stage.crew.close()
        assert any("no sign of life for 99 s" in said and "status of generator-1" in said for said in stage.said)

    play(scenario)


def test_a_node_that_joins_is_used_and_not_waited_for() -> None:
    async def scenario() -> None:
        stage = Stage(needed=1, most=2)
        stage.room[1] = False
        await stage.crew.begin()
        assert stage.serving() == ["generator-0.0"]
        pool = pool_of(stage)
        await pool.load(publication(0))
        await pool.load(publication(1, base=0))
        assert [part.name if part else "" for part in pool.serving().by_slot] == ["generator-0.0"] * 2
        await until(lambda: len(stage.made) == 2)
        stage.made[1].built.set()
        await until(lambda: [part.name for part in pool.serving().by_slot if part] == ["generator-0.0", "generator-1.1"])
        begun = [call for call in stage.made[1].calls if call[0] == "begin_weights"]
        assert begun[0] == ("begin_weights", 1, 0), "it is tried with the newest version"
        await stage.crew.close()

    play(scenario)


def test_weights_that_went_wrong_are_sent_again_whole() -> None:
    async def scenario() -> None:
        wrong = [WeightSyncError("element 0 of parameter w was not received")]

        def commit(version: int) -> str:
            if wrong:
                raise wrong.pop()
            return f"sum {version}"

        stage = Stage(commit_weights=commit)
        await stage.crew.begin()
        pool = pool_of(stage)
        assert (await pool.load(publication(3))).checksum == "sum 3"
        assert any("got the weights of version 3 wrong and gets them again" in said for said in stage.said)
        assert len(stage.serving()) == 2
        await stage.crew.close()

    play(scenario)


def test_a_generator_that_does_not_swap_is_given_up_and_the_version_goes_on() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.crew.begin()
        pool = pool_of(stage)
        stage.made[0].dead.set()
        await pool.load(publication(0))
        await until(lambda: stage.serving() == ["generator-0.2", "generator-1.1"])
        assert ("commit_weights", 0) in stage.made[2].calls
        await stage.crew.close()

    play(scenario)


def test_in_lockstep_one_that_joins_waits_for_the_next_version() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.crew.begin()
        pool = pool_of(stage, lockstep=True)
        await pool.load(publication(0))
        stage.made[0].kill()
        await until(lambda: stage.serving() == ["generator-0.2", "generator-1.1"])
        assert [part.name for part in pool.serving().by_slot if part] == ["generator-1.1"] * 2
        await pool.load(publication(1))
        assert [part.name for part in pool.serving().by_slot if part] == ["generator-0.2", "generator-1.1"]
        await stage.crew.close()

    play(scenario)


def test_a_request_goes_to_the_next_generator_when_its_own_is_lost() -> None:
    async def scenario() -> None:
        stage = Stage(generate=lambda request: asyncio.Event().wait())
        await stage.crew.begin()
        pool = pool_of(stage)
        await pool.load(publication(0))
        router = GeneratorRouter(pool.serving(), start_timeout=5.0, part_timeout=5.0)
        pool.tell = router.update
        request = asyncio.create_task(router.clients[0].generate(make_request("a")))
        await until(lambda: any(call[0] == "generate" for call in stage.made[0].calls))
        stage.answers["generate"] = lambda request: ("a completion",)
        stage.made[0].kill()
        await until(lambda: len(stage.made) == 3)
        assert await request == ("a completion",)
        await stage.crew.close()

    play(scenario)


def test_a_request_that_kills_generators_ends_as_a_failure() -> None:
    async def scenario() -> None:
        stage = Stage(generate=lambda request: asyncio.Event().wait())
        await stage.crew.begin()
        pool = pool_of(stage)
        await pool.load(publication(0))
        router = GeneratorRouter(pool.serving(), start_timeout=5.0, part_timeout=5.0)
        pool.tell = router.update

        async def hunt() -> None:
            while True:
                for part in stage.made:
                    if any(call[0] == "generate" for call in part.calls):
                        part.kill()
                await asyncio.sleep(0.005)

        hunter = asyncio.create_task(hunt())
        with pytest.raises(PartGone, match="the request a has lost 4 generators"):
            await router.clients[0].generate(make_request("a"))
        hunter.cancel()
        await stage.crew.close()

    play(scenario)


def test_jobs_of_a_lost_worker_go_to_others_and_its_unwritten_groups_are_written() -> None:
    async def scenario() -> None:
        hold = asyncio.Event()
        job = make_job(make_problem(), tokens=1)
        jobs = [dataclasses.replace(job, group_id=f"{i:08d}", index=i) for i in range(2)]

        async def run_group(job: Any) -> Any:
            if job.index == 1:
                await hold.wait()
            return GroupOutcome(job=job, group=make_group(job.index)), ()

        workers, generators = Stage("worker", run_group=run_group), Stage()
        pool = RolloutPool(workers.crew, generators=pool_of(generators), lockstep=False, live_episodes=None, part_timeout=5.0)
        await workers.crew.begin()
        await pool.run(jobs[0])
        first = next(part for part in workers.made if ("run_group", jobs[0]) in part.calls)
        second = asyncio.create_task(pool.run(jobs[1]))
        await until(lambda: any(("run_group", jobs[1]) in part.calls for part in workers.made))
        (holder,) = (part for part in workers.made if ("run_group", jobs[1]) in part.calls)
        for part in {first, holder}:
            part.kill()
        await until(lambda: sum(("run_group", jobs[1]) in part.calls for part in workers.made) == 2)
        hold.set()
        assert (await second).job is jobs[1]
        await pool.flush()
        again = [call[1] for part in workers.made if part is not first for call in part.calls if call[0] == "log_again"]
        assert [[group.group_id for group in groups] for groups in again] == [["00000000"]]
        await pool.close()

    play(scenario)


def test_a_run_with_nobody_left_ends_with_what_was_missing() -> None:
    async def scenario() -> None:
        stage = Stage(start_timeout=0.3)
        await stage.crew.begin()
        stage.room = {0: False, 1: False}
        stage.health.heard = False
        for part in list(stage.made):
            part.kill()
        with pytest.raises(PartDied, match=r"no generator has served for .*generator \d was lost.*free: 0 CPU"):
            async with supervised([stage.crew.watch]):
                await asyncio.Event().wait()
        await stage.crew.close()

    play(scenario)


def test_one_that_dies_again_and_again_ends_the_run_unless_the_run_gets_on() -> None:
    async def scenario() -> None:
        stage = Stage(needed=1, most=1)
        await stage.crew.begin()

        async def lose() -> None:
            losses = len(stage.made)
            stage.made[-1].kill()
            await until(lambda: len(stage.made) > losses and bool(stage.serving()))

        for _ in range(6):
            await lose()
            stage.crew.progressed()
        with pytest.raises(PartDied, match="4 times a generator was lost and nothing got on between"):
            async with supervised([stage.crew.watch]):
                for _ in range(9):
                    await lose()
        await stage.crew.close()

    play(scenario)


def test_a_start_that_fails_is_told_and_a_later_one_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.crew, "_BACKOFF", (0.01, 0.02))

    async def scenario() -> None:
        def refuse(*_: Any) -> None:
            raise PartGone("node b has other code")

        with pytest.raises(PartDied, match="generator 0 could not start: node b has other code"):
            await Stage(ready=refuse).crew.begin()
        stage = Stage(needed=1, most=1)
        await stage.crew.begin()
        stage.answers["ready"] = refuse
        stage.made[0].kill()
        await until(lambda: len(stage.made) > 4)
        del stage.answers["ready"]
        await until(lambda: bool(stage.serving()))
        assert sum("could not start" in said for said in stage.said) == 1
        await stage.crew.close()

    play(scenario)


def test_a_start_that_hangs_or_freezes_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.crew, "_BACKOFF", (0.01, 0.02))

    async def scenario() -> None:
        stage = Stage(start_timeout=0.5)
        await stage.crew.begin()
        async with supervised([stage.crew.watch]):
            stage.room[0] = False
            stage.made[0].kill()
            await until(lambda: len(stage.made) == 4)  # the one in its place has been heard of, and does not get ready
            stage.health.silent["generator-0"] = 99.0
            await until(lambda: len(stage.made) == 5)
            stage.room[0] = True
            stage.made[-1].built.set()
            await until(lambda: len(stage.serving()) == 2)
        await stage.crew.close()
        assert any("not ready 1 s after it found a place" in said for said in stage.said)

    play(scenario)


def test_a_start_without_room_ends_by_name() -> None:
    async def scenario() -> None:
        stage = Stage(start_timeout=0.2)
        stage.room = {0: True, 1: False}
        with pytest.raises(PartDied, match=r"generator 1 did not start within cluster\.start_timeout=0 s: .*; free: 0 CPU"):
            await stage.crew.begin()
        await stage.crew.close()

    play(scenario)
