"""Groups between admission and the buffer: which run, which have landed, and when those are offered. A pure rule, without a clock.

The loop follows it in a run, the planner in a simulated one (rl/planner/simulate.py).
"""

from rl.buffer import Buffer
from rl.rollout import GroupJob, GroupOutcome


class InFlight:
    """In lockstep a wave of groups starts together and is offered in index order once all have landed, so nothing depends on who was
    faster. Otherwise each group is offered as it lands."""

    def __init__(self, buffer: Buffer, *, lockstep: bool) -> None:
        self._buffer, self._lockstep = buffer, lockstep
        self._running: dict[str, GroupJob] = {}
        self._landed: list[GroupOutcome] = []

    @property
    def running(self) -> tuple[str, ...]:
        """Ids of the groups under way."""
        return tuple(self._running)

    @property
    def landed(self) -> int:
        """Groups that wait for the rest of their wave."""
        return len(self._landed)

    @property
    def room(self) -> int:
        """How many more groups may start."""
        return self._buffer.room(running=len(self._running) + len(self._landed))

    def start(self, job: GroupJob) -> None:
        """A group is under way."""
        self._running[job.group_id] = job

    def land(self, outcome: GroupOutcome) -> list[GroupOutcome]:
        """A group has ended; those that are to be offered to the buffer now, in index order."""
        del self._running[outcome.job.group_id]
        self._landed.append(outcome)
        if self._lockstep and self._running:
            return []
        landed, self._landed = sorted(self._landed, key=lambda one: one.job.index), []
        return landed

    def unfinished(self) -> list[GroupJob]:
        """Whatever the buffer has not been offered yet, in index order."""
        jobs = [*self._running.values(), *(outcome.job for outcome in self._landed)]
        return sorted(jobs, key=lambda job: job.index)
