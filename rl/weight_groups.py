"""The driver's side of broadcasts: keeps a group of all learner ranks and generators, and makes another when one of them has changed.

meet ─► the same processes as before and nothing has failed: the group stands
     └► else: leave, number + 1, all meet again
send ─► every rank sends its buckets ─► fine
     └► somebody has failed: all stop, the version goes through the object store, the group is not used again
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from rl.crew import Member
from rl.errors import BroadcastFailed, PartGone
from rl.learner_group import LearnerGroup
from rl.weight_store import Place, open_store, stop_group, why_stopped

_TRIES = 3
"""Groups that may fail one after the other, with the same generators."""


class WeightGroups:
    """One a run."""

    def __init__(
        self, learner: LearnerGroup, *, address: str, backend: Literal["gloo", "nccl"], timeout: float, say: Callable[[str], None]
    ) -> None:
        """
        Args:
            address: of this node, where the store by which processes meet listens.
            timeout: seconds for a group to be made, and for one bucket to get through.
            say: hears of what has failed.
        """
        self._learner, self._address, self._backend = learner, address, backend
        self._timeout, self._say = timeout, say
        self._store = open_store(address)
        self._number = 0
        self._members: tuple[Member, ...] = ()
        self._stands = False
        self._failed_in_a_row = 0
        self.failures = 0
        """Broadcasts and meetings that have failed so far."""

    async def meet(self, members: Sequence[Member]) -> bool:
        """Whether a group of all ranks and these generators stands; made anew where it does not, unless that has failed too often.

        Raises PartDied when a rank dies.
        """
        if tuple(members) != self._members:
            self._failed_in_a_row, self._stands = 0, False
        self._members = tuple(members)
        if self._stands or self._failed_in_a_row >= _TRIES:
            return self._stands
        self._number += 1
        ranks = self._learner.size
        place = Place(
            group=self._number,
            backend=self._backend,
            host=self._address,
            port=self._store.port,
            rank=0,
            senders=ranks,
            size=ranks + len(members),
            timeout=self._timeout,
        )
        generators = [self._take_place(member, replace(place, rank=ranks + i)) for i, member in enumerate(members)]
        learner = self._learner.meet([replace(place, rank=rank) for rank in range(ranks)])
        _, reasons = await asyncio.gather(asyncio.gather(*generators), learner)
        if not self._note_end([*reasons, why_stopped(self._store, self._number)], what=f"group {self._number} for broadcasts was not made"):
            return False
        self._stands = True
        return True

    async def send(self, version: int) -> None:
        """Let all ranks send what they have published. Raises PartDied when one dies; a failure is told, and ends the group."""
        reasons = await self._learner.broadcast(version)
        if self._note_end([*reasons, why_stopped(self._store, self._number)], what=f"the broadcast of version {version} failed"):
            self._failed_in_a_row = 0

    def stop(self, why: str) -> None:
        """All who wait in the group stop."""
        stop_group(self._store, self._number, why)

    async def _take_place(self, member: Member, place: Place) -> None:
        try:
            await member.ask("meet", place)
        except BroadcastFailed as error:
            self.stop(f"{member.part}: {error}")
        except PartGone as error:
            self.stop(str(error))

    def _note_end(self, reasons: Sequence[str], *, what: str) -> bool:
        """Whether there are no reasons."""
        why = next(filter(None, reversed(reasons)), "")
        if not why:
            return True
        self._stands = False
        self.failures += 1
        self._failed_in_a_row += 1
        after = "another group is tried for the next version"
        if self._failed_in_a_row >= _TRIES:
            after = f"after {_TRIES} in a row no other is tried with these generators"
        self._say(f"{what}: {why}; the version goes through the object store, and {after}")
        return False
