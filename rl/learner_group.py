"""All ZeRO ranks as one learner. None can be replaced: a rank that dies or falls silent ends the run, by name."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.crew import Health, RemotePart
from rl.errors import PartDied, PartGone
from rl.records import Batch, Publication, StepStats
from rl.weight_store import Place

_DELTAS_SHARE = 0.5
"""Of the bytes of a whole version: when the deltas on it have as many, the next version is sent whole. They wait in the object store."""
_LOOK_SECONDS = 1.0
_FIX = "Look at that machine, then go on with --resume"


class LearnerGroup:
    """What the loop sees."""

    def __init__(self, ranks: Sequence[RemotePart], *, health: Health, timeout: float, part_timeout: float, deltas: bool) -> None:
        """`timeout`: seconds of one call. `part_timeout`: seconds without a sign of life from a rank. `deltas`: publish what has changed
        where that is enough."""
        self._ranks, self._health, self._timeout, self._part_timeout = ranks, health, timeout, part_timeout
        self._deltas = deltas
        self._version: int | None = None
        self._whole_bytes = self._delta_bytes = 0
        self._published: list[Sequence[Any]] = [()] * len(ranks)
        """References to the buckets that each rank published last."""

    @property
    def size(self) -> int:
        """Ranks."""
        return len(self._ranks)

    async def train_step(self, batches: Sequence[Sequence[Batch]]) -> tuple[StepStats, ...]:
        """`batches[rank][optimizer step]`; the statistics of every rank."""
        return tuple(await self._all("train_step", [(own,) for own in batches]))

    async def publish(self, version: int) -> Publication:
        """References to every rank's buckets of this version: whole, or against the version published before."""
        base = self._version if self._deltas and self._delta_bytes < _DELTAS_SHARE * self._whole_bytes else None
        per_rank = await self._all("publish", [(version, base is not None)] * len(self._ranks))
        nbytes = sum(size for _, size in per_rank)
        self._version = version
        if base is None:
            self._whole_bytes, self._delta_bytes = nbytes, 0
        else:
            self._delta_bytes += nbytes
        self._published = [references for references, _ in per_rank]
        buckets = tuple(reference for references in self._published for reference in references)
        return Publication(version=version, base=base, buckets=buckets, nbytes=nbytes)

    async def meet(self, places: Sequence[Place]) -> list[str]:
        """Let every rank take its place in a group that broadcasts weights; for each, why it could not, or nothing."""
        return await self._all("meet", [(place,) for place in places])

    async def broadcast(self, version: int) -> list[str]:
        """Let every rank send what it has published, in the group that it met last; for each, why it could not, or nothing."""
        return await self._all("broadcast", [(version, *buckets) for buckets in self._published])

    async def save(self, folder: Path) -> None:
        """Write every rank's state."""
        await self._all("save", [(folder,)] * len(self._ranks))

    async def load(self, folder: Path) -> None:
        """Restore every rank's state. Raises ValueError when the checkpoint is damaged."""
        await self._all("load", [(folder,)] * len(self._ranks))

    async def export(self, folder: Path) -> None:
        """Write a Hugging Face checkpoint."""
        await self._all("export", [(folder,)] * len(self._ranks))

    async def close(self) -> None:
        """Leave the process group; best effort."""
        with contextlib.suppress(PartDied):
            await self._all("close", [()] * len(self._ranks))

    async def _all(self, action: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Wait for every rank; the first failure counts at once, since the other ranks then wait in a collective for it."""
        calls = [asyncio.ensure_future(rank.call(action, *own)) for rank, own in zip(self._ranks, arguments, strict=True)]
        try:
            await self._until_done(action, calls)
            for rank, call in enumerate(calls):
                error = call.exception() if call.done() else None
                if isinstance(error, PartGone):
                    raise PartDied(
                        f"learner rank {rank} died during {action}: {error}. Its last status: {self._told(rank)}. {_FIX}"
                    ) from error
            for call in calls:
                if call.done():
                    call.result()
            return [call.result() for call in calls]
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _until_done(self, action: str, calls: "Sequence[asyncio.Future[Any]]") -> None:
        """Returns when all are done or one has failed. Raises PartDied for a rank that is silent, and at the deadline."""
        events = asyncio.get_running_loop()
        deadline = events.time() + self._timeout
        pending = set(calls)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            if any(call.exception() is not None for call in done):
                return
            for rank, call in enumerate(calls):
                if call in pending:
                    self._check_heard(rank, action)
            if pending and events.time() > deadline:
                waits = "; ".join(f"rank {rank}: {self._told(rank)}" for rank, call in enumerate(calls) if call in pending)
                raise PartDied(
                    f"the learner did not finish {action} within {self._timeout:.0f} s (the larger of rollout.timeout and "
                    f"cluster.start_timeout). {waits}. The rank whose last event is oldest holds the others up; raise rollout.timeout "
                    "when all of them move on"
                )

    def _check_heard(self, rank: int, action: str) -> None:
        silent = self._health.silent_for(f"learner-{rank}")
        if silent > self._part_timeout:
            raise PartDied(
                f"learner rank {rank} has given no sign of life for {silent:.0f} s (cluster.part_timeout={self._part_timeout:.0f}) during "
                f"{action}, and the other ranks wait for it: {self._told(rank)}. It is frozen, or its node is cut off. {_FIX}"
            )

    def _told(self, rank: int) -> str:
        return self._health.told(f"learner-{rank}") or "nothing was heard of it"
