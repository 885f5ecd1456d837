"""A rollout worker's way to the generators: each group has a slot, and each slot a process, which may change while a request waits."""

import asyncio
import time
from collections.abc import Sequence

from rl.crew import RemotePart
from rl.errors import PartGone, PartUnreachable
from rl.generator_pool import Serving
from rl.records import Completion, GenerateRequest

_LOSSES = 3
"""Processes that one request may lose before it is recorded as failed: it may be what kills them."""


class GeneratorRouter:
    """One a worker. The driver tells it of every change."""

    def __init__(self, serving: Serving, *, start_timeout: float, part_timeout: float) -> None:
        """`start_timeout`: seconds that a request waits for anybody. `part_timeout`: seconds after which a process that has not answered
        is asked whether it is alive."""
        self._serving = serving
        self._start_timeout, self._part_timeout = start_timeout, part_timeout
        self._changed = asyncio.Event()

    @property
    def clients(self) -> "tuple[SlotClient, ...]":
        """One a slot."""
        return tuple(SlotClient(self, slot) for slot in range(len(self._serving.by_slot)))

    def update(self, serving: Serving) -> None:
        """Who serves from now on; news may overtake each other."""
        if serving.serial > self._serving.serial:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    async def generate(self, slot: int, request: GenerateRequest) -> tuple[Completion, ...]:
        """Sample. When the process is lost, the request is put to the next one that serves the slot."""
        gone: set[str] = set()
        unreachable: dict[str, float] = {}
        while True:
            remote = await self._server(slot, gone=gone)
            try:
                return await self._asked(remote, request)
            except PartUnreachable:
                # Others may reach it: the driver does not give it up.
                if time.monotonic() - unreachable.setdefault(remote.name, time.monotonic()) > self._part_timeout:
                    gone.add(remote.name)
                await asyncio.sleep(1.0)
            except PartGone:
                gone.add(remote.name)
            if len(gone) > _LOSSES:
                raise PartGone(f"the request {request.key} has lost {len(gone)} generators: {', '.join(sorted(gone))}")

    async def release(self, slot: int, episodes: Sequence[str]) -> None:
        """Tell the process that these episodes have ended; one that is lost need not know."""
        remote = self._serving.by_slot[slot]
        if remote is not None:
            try:
                await remote.call("release", episodes, timeout=self._part_timeout)
            except PartGone:
                return

    async def _server(self, slot: int, *, gone: set[str]) -> RemotePart:
        try:
            async with asyncio.timeout(self._start_timeout):
                while True:
                    remote = self._serving.by_slot[slot]
                    if remote is not None and remote.name not in gone:
                        return remote
                    await self._changed.wait()
        except TimeoutError:
            raise PartGone(f"no generator has served slot {slot} for cluster.start_timeout={self._start_timeout:.0f} s") from None

    async def _asked(self, remote: RemotePart, request: GenerateRequest) -> tuple[Completion, ...]:
        call = asyncio.ensure_future(remote.call("generate", request))
        try:
            while True:
                changed = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait({call, changed}, timeout=self._part_timeout, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if call.done():
                    completions: tuple[Completion, ...] = call.result()
                    return completions
                if remote.name not in {other.name for other in self._serving.by_slot if other is not None}:
                    raise PartGone(f"{remote.name} no longer serves")
                await remote.call("ready", timeout=self._part_timeout)
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)


class SlotClient:
    """The generators as the groups of one slot see them."""

    def __init__(self, router: GeneratorRouter, slot: int) -> None:
        self._router, self._slot = router, slot

    async def generate(self, request: GenerateRequest) -> tuple[Completion, ...]:
        """See GeneratorRouter.generate."""
        return await self._router.generate(self._slot, request)

    async def release(self, episodes: Sequence[str]) -> None:
        """See GeneratorRouter.release."""
        await self._router.release(self._slot, episodes)
