"""All rollout workers as one: sends each job to the least busy one, and gives the jobs of a worker that is lost to others."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence

from rl.crew import Crew, Member
from rl.errors import PartDied, PartGone, PartUnreachable
from rl.generator_pool import GeneratorPool, Serving
from rl.records import RolloutGroup
from rl.rollout import GroupJob, GroupOutcome
from rl.room import Room

_LOSSES = 3
"""Workers that one job may lose before the run is given up: it may be what kills them."""
_CLOSE_DEADLINE = 30.0


class RolloutPool:
    """What the loop sees."""

    def __init__(
        self,
        crew: Crew,
        *,
        generators: GeneratorPool,
        lockstep: bool,
        live_episodes: int | None,
        part_timeout: float,
    ) -> None:
        """`live_episodes`: most that run at a time; None means any number."""
        self._crew, self._generators, self._part_timeout = crew, generators, part_timeout
        self._room = Room(episodes=live_episodes, lockstep=lockstep, announce=generators.expect)
        self._load: Counter[str] = Counter()
        self._telling: set[asyncio.Task[None]] = set()
        self._unwritten: dict[str, dict[str, RolloutGroup]] = {}
        """By process: groups that it has finished and is not known to have made durable."""
        crew.joined, generators.tell = self._welcome, self.tell

    async def expect(self, jobs: Sequence[GroupJob]) -> None:
        """Announce jobs before the first of them is run (strictly on-policy runs start a whole wave together)."""
        await self._room.expect(jobs)

    async def run(self, job: GroupJob) -> GroupOutcome:
        """Collect one group; started again on another worker when its worker is lost."""
        try:
            await self._room.enter(job)
            return await self._run(job)
        finally:
            await self._room.leave(job)

    async def _run(self, job: GroupJob) -> GroupOutcome:
        losses = 0
        while True:
            await self._crew.someone()
            member = min(self._crew.serving.values(), key=lambda one: (self._load[one.remote.name], one.slot))
            self._load[member.remote.name] += 1
            try:
                outcome, durable = await member.ask("run_group", job)
                self._crew.progressed()
                self._note(member, outcome, durable)
                return outcome
            except PartUnreachable as error:
                # The call may be under way there, or may not: an end of the process settles it.
                self._crew.drop(member, str(error))
            except PartGone as error:
                losses += 1
                if losses > _LOSSES:
                    raise PartDied(f"{losses} rollout workers were lost on group {job.group_id}: {error}") from error
                self._crew.drop(member, str(error))
            finally:
                self._load[member.remote.name] -= 1

    def _note(self, member: Member, outcome: GroupOutcome, durable: Sequence[str]) -> None:
        """Keep what the worker has not yet made durable: should it be lost, another one writes it."""
        held = self._unwritten.setdefault(member.remote.name, {})
        if outcome.group is not None:
            held[outcome.group.group_id] = outcome.group
        for group_id in durable:
            held.pop(group_id, None)

    async def _write_for_lost(self) -> None:
        """What lost workers finished and may not have written. The log shows a rollout that was written twice once."""
        there = {member.remote.name for member in self._crew.serving.values()}
        for name in [name for name in self._unwritten if name not in there]:
            if groups := tuple(self._unwritten[name].values()):
                await self._crew.someone()
                heir = next(iter(self._crew.serving.values()))
                await heir.ask("log_again", groups, timeout=self._part_timeout)
                self._unwritten.setdefault(heir.remote.name, {}).update({group.group_id: group for group in groups})
            del self._unwritten[name]

    def tell(self, serving: Serving) -> None:
        """Which generators serve from now on."""
        for member in self._crew.serving.values():
            task = asyncio.create_task(self._tell(member, serving))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def watch(self) -> None:
        """Runs until cancelled: see Crew.watch."""
        await self._crew.watch()

    async def flush(self) -> None:
        """Make every finished group durable. A worker that does not answer is given up, and another writes what it had finished."""
        while True:
            try:
                await self._write_for_lost()
                members = list(self._crew.serving.values())
                for member in members:
                    held = tuple(self._unwritten.get(member.remote.name, ()))
                    await self._flush(member)
                    for group_id in held:
                        self._unwritten[member.remote.name].pop(group_id, None)
            except PartGone:
                continue
            if not self._unwritten.keys() - {member.remote.name for member in self._crew.serving.values()}:
                return

    async def _flush(self, member: Member) -> None:
        try:
            await member.ask("flush", timeout=self._part_timeout)
        except PartGone as error:
            self._crew.drop(member, str(error))
            raise

    async def close(self) -> None:
        """End graders and writers; best effort."""
        with contextlib.suppress(PartGone, TimeoutError):
            async with asyncio.timeout(_CLOSE_DEADLINE):
                await self._write_for_lost()
        members = list(self._crew.serving.values())
        await self._crew.close()
        await asyncio.gather(*(member.remote.call("close", timeout=_CLOSE_DEADLINE) for member in members), return_exceptions=True)

    async def _welcome(self, member: Member) -> None:
        await member.ask("serve", self._generators.serving(), timeout=self._part_timeout)

    async def _tell(self, member: Member, serving: Serving) -> None:
        try:
            await member.ask("serve", serving, timeout=self._part_timeout)
        except PartGone as error:
            self._crew.drop(member, str(error))
