"""The buffer between rollouts and the learner: bounded staleness, two doors, every rejection counted.

Admission keeps `accepted + running <= (max_staleness + version + 1) * batch` (the bound of AReaL, arXiv 2505.24298,
section 4.1, in groups): a group that starts now is trained at most `max_staleness` versions later. A rejected group
gives its place back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rl.records import RolloutGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferState:
    """What a checkpoint keeps of the buffer."""

    accepted: int
    """Groups accepted since the start of the run, trained ones included; stale ones given back."""
    version: int
    """Policy version: training steps done."""
    groups: tuple[RolloutGroup, ...]
    """Accepted groups that wait for the learner."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A group that will not be trained on, and why."""

    group: RolloutGroup
    reason: str


class Buffer:
    """Accepted groups in index order. Not thread-safe: owned by the loop."""

    def __init__(
        self,
        *,
        batch_size: int,
        max_staleness: int,
        put_door: Callable[[RolloutGroup], str | None],
        get_door: Callable[[RolloutGroup, int], str | None],
    ) -> None:
        """`batch_size` in groups. The doors return a reason to reject; `get_door` also sees the current version."""
        self._batch_size = batch_size
        self._max_staleness = max_staleness
        self._put_door = put_door
        self._get_door = get_door
        self._groups: dict[int, RolloutGroup] = {}
        self._accepted = 0
        self.version = 0

    def __len__(self) -> int:
        return len(self._groups)

    def room(self, *, running: int) -> int:
        """How many more groups may start while `running` are under way."""
        return max(0, (self._max_staleness + self.version + 1) * self._batch_size - self._accepted - running)

    def put(self, group: RolloutGroup) -> Rejection | None:
        """Offer a finished group; a rejection gives its place back."""
        reason = self._put_door(group)
        if reason is not None:
            return Rejection(group=group, reason=reason)
        self._accepted += 1
        self._groups[group.index] = group
        return None

    def take(self) -> tuple[tuple[RolloutGroup, ...], tuple[Rejection, ...]]:
        """The next batch, oldest groups first (empty when there are too few), and the groups found too old on the way."""
        rejected = []
        for index in sorted(self._groups):
            reason = self._get_door(self._groups[index], self.version)
            if reason is not None:
                rejected.append(Rejection(group=self._groups.pop(index), reason=reason))
        self._accepted -= len(rejected)
        if len(self._groups) < self._batch_size:
            return (), tuple(rejected)
        batch = tuple(self._groups.pop(index) for index in sorted(self._groups)[: self._batch_size])
        return batch, tuple(rejected)

    def state(self) -> BufferState:
        """For the checkpoint."""
        groups: Sequence[RolloutGroup] = [self._groups[index] for index in sorted(self._groups)]
        return BufferState(accepted=self._accepted, version=self.version, groups=tuple(groups))

    def restore(self, state: BufferState) -> None:
        """Continue from a checkpoint; the staleness bound goes on as if nothing had happened."""
        self._accepted = state.accepted
        self.version = state.version
        self._groups = {group.index: group for group in state.groups}
