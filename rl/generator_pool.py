"""All generator replicas as one: publishes weights, brings replicas that join up to date, and says which replica serves which group."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rl.crew import Crew, Member, RemotePart
from rl.errors import BaseMissing, BroadcastFailed, PartDied, PartGone, WeightSyncError
from rl.records import Loaded, Publication
from rl.rollout import GroupJob
from rl.weight_groups import WeightGroups


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """Which process serves the groups of each slot, as rollout workers must know it."""

    serial: int
    """Grows with every change."""
    by_slot: tuple[RemotePart | None, ...]
    """None while nobody does."""


class Faults(Protocol):
    """What `rl chaos` asks of a run; see rl/chaos/requests.py."""

    def drop_weights(self, part: str) -> bool: ...


class GeneratorPool:
    """Groups are spread over slots by their index; a slot without a process of its own is served by another's."""

    def __init__(
        self,
        crew: Crew,
        *,
        slots: int,
        lockstep: bool,
        timeout: float,
        faults: Faults,
        say: Callable[[str], None],
        groups: WeightGroups | None = None,
    ) -> None:
        """`timeout`: seconds for one swap of weights. `groups`: broadcast them; without it each replica reads the object store."""
        self._crew, self._slots, self._lockstep, self._groups = crew, slots, lockstep, groups
        self._timeout, self._faults, self._say = timeout, faults, say
        self.tell: Callable[[Serving], None] = lambda serving: None
        """Hands each change on to the rollout workers."""
        self._chain: list[Publication] = []
        """A whole version and the deltas on it, which make the current one. They stay in the object store, to seed replicas that join."""
        self._members: dict[int, Member] = {}
        """Who serves, by slot. In lockstep one that has joined waits for the next version: groups under way stay where they are."""
        self._serial = 0
        self._load_lock = asyncio.Lock()
        crew.joined, crew.changed = self._seed, self._spread

    async def load(self, publication: Publication) -> Loaded:
        """Swap the weights of all replicas. A replica that does not manage is given up."""
        async with self._load_lock:
            self._chain = [*self._chain, publication] if publication.base is not None else [publication]
            failed_before = self._groups.failures if self._groups else 0
            sums: dict[str, list[str]] = {}
            while not sums:
                await self._crew.someone()
                members = list(self._crew.serving.values())
                for member, checksum in zip(members, await self._load_all(members), strict=True):
                    if checksum is not None:
                        sums.setdefault(checksum, []).append(member.part)
            if len(sums) != 1:
                raise PartDied(f"generators disagree on the weights of version {publication.version}: checksums {sums}")
            self._crew.progressed()
            self._adopt(dict(self._crew.serving))
        failed = self._groups.failures - failed_before if self._groups else 0
        return Loaded(checksum=next(iter(sums)), broadcasts_failed=failed)

    async def expect(self, jobs: Sequence[GroupJob]) -> None:
        """Announce the episodes of these jobs to the replicas that will serve them. One that is lost meanwhile needs to know nothing."""
        for slot, member in sorted(self._by_slot().items()):
            mine = [episode for job in jobs if job.index % self._slots == slot for episode in job.episodes]
            if mine:
                try:
                    await member.ask("expect", mine, timeout=self._timeout)
                except PartGone as error:
                    self._crew.drop(member, str(error))

    async def watch(self) -> None:
        """Runs until cancelled: see Crew.watch."""
        await self._crew.watch()

    async def close(self) -> None:
        """Start none any more."""
        await self._crew.close()

    def serving(self) -> Serving:
        """Now."""
        by_slot = self._by_slot()
        return Serving(serial=self._serial, by_slot=tuple(by_slot[slot].remote if slot in by_slot else None for slot in range(self._slots)))

    def _spread(self) -> None:
        """Somebody has joined or is lost."""
        now = self._crew.serving
        kept = {slot: member for slot, member in self._members.items() if now.get(slot) is member}
        self._adopt(kept if self._lockstep and kept else dict(now))

    def _adopt(self, members: dict[int, Member]) -> None:
        if members != self._members:
            self._members = members
            self._serial += 1
            self.tell(self.serving())

    def _by_slot(self) -> dict[int, Member]:
        """Slots without their own process are dealt out evenly among the processes there are."""
        there = [self._members[slot] for slot in sorted(self._members)]
        missing = [slot for slot in range(self._slots) if slot not in self._members]
        return {**self._members, **{slot: there[i % len(there)] for i, slot in enumerate(missing) if there}}

    async def _seed(self, member: Member) -> None:
        """Bring a process up to date that is not yet asked for anything; the others go on meanwhile."""
        loaded: list[Publication] = []
        while self._chain and loaded != self._chain:
            loaded = self._chain
            await self._load_one(member, loaded)

    async def _load_all(self, members: Sequence[Member]) -> list[str | None]:
        """The checksums; None for a replica that is given up."""
        if self._groups is None or not await self._groups.meet(members):
            return await asyncio.gather(*(self._load_or_drop(member) for member in members))
        loads = asyncio.gather(*(self._load_or_drop(member, groups=self._groups) for member in members))
        both = asyncio.gather(loads, self._groups.send(self._chain[-1].version))
        try:
            sums, _ = await both  # a rank that dies ends it at once: its buckets are gone from the object store too
        except BaseException:
            self._groups.stop("the run is ending")
            both.cancel()
            loads.cancel()
            raise
        return sums

    async def _load_or_drop(self, member: Member, *, groups: WeightGroups | None = None) -> str | None:
        """`groups`: a broadcast to the replica is under way."""
        try:
            return await self._load_one(member, self._chain, broadcast=groups is not None)
        except (PartGone, WeightSyncError) as error:
            if groups is not None:
                groups.stop(str(error))
            self._crew.drop(member, str(error))
            return None

    async def _load_one(self, member: Member, chain: Sequence[Publication], *, broadcast: bool = False) -> str:
        """The newest version; the whole chain where the replica lacks what that is told against, or got it wrong."""
        version = chain[-1].version
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    if broadcast and (checksum := await self._hear(member, chain[-1])) is not None:
                        return checksum
                    return await self._send(member, chain[-1:])
                except BaseMissing:
                    return await self._send(member, chain)
                except WeightSyncError as error:
                    self._say(f"{member.part} got the weights of version {version} wrong and gets them again: {error}")
                    return await self._send(member, chain)
        except TimeoutError:
            raise PartGone(f"no swap to the weights of version {version} within rollout.timeout={self._timeout:.0f} s") from None

    async def _hear(self, member: Member, publication: Publication) -> str | None:
        """The checksum; None when the broadcast has failed."""
        try:
            lose_first = self._faults.drop_weights(member.part)
            return str(await member.ask("take_broadcast", publication.version, publication.base, lose_first))
        except BroadcastFailed:
            return None  # WeightGroups tells of it

    async def _send(self, member: Member, publications: Sequence[Publication]) -> str:
        for publication in publications:
            await member.ask("begin_weights", publication.version, publication.base)
            buckets = publication.buckets[1:] if self._faults.drop_weights(member.part) else publication.buckets
            for bucket in buckets:
                await member.ask("load_bucket", bucket)
        return str(await member.ask("commit_weights", publications[-1].version))
