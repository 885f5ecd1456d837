"""The processes of one kind that a run can lose and gain: generators, or rollout workers.

    slot: start ─► wait for a place ─► ready ─► joined ─► serves ─► lost ─► left ─► start again ...

Each slot asks for one process as long as the run lasts. Where the cluster has no room it simply waits, so a node that joins is used, and
one that leaves costs what was unfinished on it. The crew knows who serves; what they serve is its owner's business.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from rl.errors import PartDied, PartGone, PartUnreachable

_LOSSES = 3
"""Processes that may be lost for each slot between two signs of progress."""
_BACKOFF = (5.0, 60.0)
"""Seconds before another try after a start that failed: the first, and the most."""


class RemotePart(Protocol):
    """A process elsewhere; see rl/remote.py."""

    name: str

    async def call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any: ...
    def kill(self) -> None: ...


class Health(Protocol):
    """Signs of life; see rl/status/watch.py."""

    def silent_for(self, part: str) -> float: ...
    def told(self, part: str) -> str: ...
    def waits_for(self, part: str) -> str: ...


@dataclass(kw_only=True, eq=False)
class Member:
    """One process that serves, or is about to."""

    slot: int
    part: str
    """Its name in the status: `generator-0`."""
    remote: RemotePart
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    why: str = ""
    """Why it was lost."""

    async def ask(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Call it; ends with PartGone as soon as the process is given up, however long the call would still wait."""
        call = asyncio.ensure_future(self.remote.call(method, *arguments, timeout=timeout))
        lost = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait({call, lost}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            raise PartGone(f"{self.part}: {self.why}")
        finally:
            for task in (call, lost):
                task.cancel()
            await asyncio.gather(call, lost, return_exceptions=True)


class Crew:
    """Keeps up to `most` processes of one kind going."""

    def __init__(
        self,
        kind: str,
        *,
        start: Callable[[int], RemotePart],
        needed: int,
        most: int,
        start_timeout: float,
        part_timeout: float,
        health: Health,
        gave_up: Callable[[Member], None],
        say: Callable[[str], None],
        room: Callable[[], str],
    ) -> None:
        """
        Args:
            start: begins to start the process of a slot; it answers `ready` once it is built.
            needed: as many must be there before the run begins.
            start_timeout: seconds until a start, or a time with nobody of this kind, ends the run.
            part_timeout: seconds without a sign of life until a process is given up.
            gave_up: hears of each process that is lost, so that it ends should it still be alive.
            room: what the cluster has, for a diagnosis.
        """
        self.kind, self._start, self._needed, self._most = kind, start, needed, most
        self._start_timeout, self._part_timeout = start_timeout, part_timeout
        self._health, self._gave_up, self._say, self._room = health, gave_up, say, room
        self._serving: dict[int, Member] = {}
        self._starting: dict[int, Member] = {}
        self._heard_since: dict[str, float] = {}
        """By process that is being started: when its first sign of life was seen."""
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._losses = 0
        self._nobody_since = time.monotonic()
        self._last_words = ""
        self._begun = False
        self.joined: Callable[[Member], Awaitable[None]] = _nothing
        """Prepares a process before it serves. PartGone counts as its loss."""
        self.changed: Callable[[], None] = lambda: None
        """Hears when somebody has begun or ceased to serve."""

    @property
    def serving(self) -> dict[int, Member]:
        """By slot."""
        return {slot: member for slot, member in self._serving.items() if not member.lost.is_set()}

    async def begin(self) -> None:
        """Returns when as many serve as are needed. Raises PartDied, or what the first constructor that failed raised."""
        self._tasks = [asyncio.create_task(self._keep(slot, first=True)) for slot in range(self._needed)]
        deadline = time.monotonic() + self._start_timeout
        while len(self.serving) < self._needed:
            for task in self._tasks:
                if task.done():
                    task.result()
            if time.monotonic() > deadline:
                missing = [slot for slot in range(self._needed) if slot not in self._serving]
                raise PartDied(
                    f"{self.kind} {', '.join(map(str, missing))} did not start within cluster.start_timeout={self._start_timeout:.0f} s: "
                    f"{self._of(missing[0])}; {self._room()}"
                )
            await self._wait(1.0)
        self._begun = True
        self._tasks += [asyncio.create_task(self._keep(slot, first=False)) for slot in range(self._needed, self._most)]

    async def watch(self) -> None:
        """Runs until cancelled. Raises PartDied when nobody of this kind is there for too long, or too many are lost in a row."""
        while True:
            for task in self._tasks:
                if task.done():
                    task.result()
            for member in (*self.serving.values(), *self._starting.values()):
                self._look_at(member)
            alone = time.monotonic() - self._nobody_since
            if not self.serving and alone > self._start_timeout:
                raise PartDied(
                    f"no {self.kind} has served for {alone:.0f} s (cluster.start_timeout={self._start_timeout:.0f}): "
                    f"{self._last_words}; {self._room()}"
                )
            await self._wait(1.0)

    def _look_at(self, member: Member) -> None:
        silent = self._health.silent_for(member.part)
        if silent > self._part_timeout:
            self.drop(member, f"no sign of life for {silent:.0f} s (cluster.part_timeout={self._part_timeout:.0f})")
        if self._starting.get(member.slot) is member and self._health.told(member.part):
            starts = time.monotonic() - self._heard_since.setdefault(member.remote.name, time.monotonic())
            if starts > self._start_timeout:
                self.drop(member, f"not ready {starts:.0f} s after it found a place (cluster.start_timeout={self._start_timeout:.0f})")

    def progressed(self) -> None:
        """The run gets on: losses so far are forgiven."""
        self._losses = 0

    def drop(self, member: Member, why: str) -> None:
        """Go on without this process."""
        if member.lost.is_set():
            return
        told = self._health.told(member.part)
        member.why = f"{why}{f' ({told})' if told else ''}"
        member.lost.set()
        member.remote.kill()
        self._gave_up(member)
        self._tell()

    async def someone(self) -> None:
        """Returns when somebody serves; `watch` has the deadline."""
        while not self.serving:
            await self._wait(None)

    async def close(self) -> None:
        """Start nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, slot: int, *, first: bool) -> None:
        """The life of one slot."""
        failures = 0
        while True:
            member = self._starting[slot] = Member(slot=slot, part=f"{self.kind}-{slot}", remote=self._start(slot))
            try:
                await self._until_ready(member)
                await self.joined(member)
            except Exception as error:
                self.drop(member, str(error))
                if first and not self._begun:
                    raise _start_failure(self.kind, slot, error) from error
                self._last_words = f"{self.kind} {slot} could not start: {error}"
                if not failures:
                    self._say(self._last_words)
                await asyncio.sleep(min(_BACKOFF[1], _BACKOFF[0] * 2**failures))
                failures += 1
                continue
            finally:
                self._heard_since.pop(member.remote.name, None)
                self._starting.pop(slot, None)
            failures = 0
            self._serving[slot] = member
            if self._begun:
                self._say(f"{self.kind} {slot} has joined: {len(self._serving)} of {self._most} serve")
            self._tell()
            await self._until_lost(member)
            del self._serving[slot]
            if not self._serving:
                self._nobody_since = time.monotonic()
            self._last_words = f"{self.kind} {slot} was lost: {member.why}"
            self._say(f"{self._last_words}; its unfinished work goes to others, {len(self._serving)} of {self._most} serve")
            self._tell()
            self._count_loss()

    async def _until_ready(self, member: Member) -> None:
        """A place may be long in coming: nothing but the lack of anyone has a deadline here."""
        while True:
            try:
                await member.ask("ready")
                return
            except PartUnreachable:
                await asyncio.sleep(1.0)

    async def _until_lost(self, member: Member) -> None:
        """A call that is never answered ends with the process."""
        while not member.lost.is_set():
            try:
                await member.ask("stay")
            except PartUnreachable:
                await asyncio.sleep(1.0)
            except PartGone as error:
                self.drop(member, str(error))

    def _count_loss(self) -> None:
        self._losses += 1
        if self._begun and self._losses > _LOSSES * self._most:
            raise PartDied(f"{self._losses} times a {self.kind} was lost and nothing got on between: {self._last_words}")

    def _of(self, slot: int) -> str:
        part = f"{self.kind}-{slot}"
        return self._health.told(part) or self._health.waits_for(part)

    def _tell(self) -> None:
        self._changed.set()
        self.changed()

    async def _wait(self, seconds: float | None) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)


def _start_failure(kind: str, slot: int, error: Exception) -> Exception:
    if isinstance(error, PartGone):
        return PartDied(f"{kind} {slot} could not start: {error}")
    return error


async def _nothing(member: Member) -> None:
    return None
