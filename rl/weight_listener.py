"""A generator process's side of a broadcast: hears all buckets of a version and hands them to the generator."""

import asyncio
import time
from typing import TYPE_CHECKING

import numpy as np

from rl.errors import BroadcastFailed, WeightSyncError
from rl.weight_broadcast import WeightBroadcast
from rl.weight_frame import decode
from rl.weight_store import Place

if TYPE_CHECKING:
    from rl.generator import Generator


class WeightListener:
    """Each bucket is written into the weights while the next one is heard."""

    def __init__(self, generator: "Generator", *, address: str) -> None:
        """`address`: of this node."""
        self._generator, self._address = generator, address
        self._place: Place | None = None
        self._broadcast: WeightBroadcast | None = None
        self._doing: tuple[str, float] | None = None

    async def meet(self, place: Place) -> None:
        """Take a place in a group, and leave the one before. Raises BroadcastFailed."""
        if self._broadcast is not None:
            self._broadcast.leave()
        self._broadcast = None
        try:
            self._broadcast = await asyncio.to_thread(WeightBroadcast, place, address=self._address, note=self._note)
            self._place = place
        finally:
            self._doing = None

    async def take(self, version: int, base: int | None, *, lose_first: bool) -> str:
        """Hear a version to its end and put it to use; its checksum. `lose_first`: leave out the first bucket, a fault on purpose.

        Raises what the generator does for wrong weights, when all has been heard: the others need this process until then. Raises
        BroadcastFailed when there is no end; then a part of the version may have been written.
        """
        wrong: WeightSyncError | None = None
        try:
            await self._generator.begin_weights(version, base=base)
        except WeightSyncError as error:
            wrong = error
        wrong = await self._hear_all(wrong, lose_first=lose_first)
        if wrong is not None:
            raise wrong
        return await self._generator.commit_weights(version)

    def describe(self) -> tuple[str, float]:
        """What it waits for in a broadcast, else what the generator does, and since when (Unix seconds)."""
        return self._doing or self._generator.describe()

    async def _hear_all(self, wrong: WeightSyncError | None, *, lose_first: bool) -> WeightSyncError | None:
        """The first thing that was wrong."""
        if self._broadcast is None or self._place is None:
            raise BroadcastFailed("this process is in no group")
        applied: asyncio.Task[WeightSyncError | None] | None = None
        try:
            for root in range(self._place.senders):
                last = False
                while not last:
                    frame, last = await asyncio.to_thread(self._broadcast.hear, root)
                    if applied is not None:
                        late, applied = await applied, None
                        wrong = wrong or late
                    if wrong is None and not lose_first:
                        applied = asyncio.create_task(self._apply(frame))
                    lose_first = False
        finally:
            self._doing = None
            if applied is not None:  # nothing of this version may be written any more when another way is tried
                wrong = wrong or await applied
        return wrong

    async def _apply(self, frame: np.ndarray) -> WeightSyncError | None:
        try:
            await self._generator.load_bucket(decode(frame))
        except WeightSyncError as error:
            return error
        return None

    def _note(self, what: str) -> None:
        self._doing = (what, time.time())
