"""Says why rollouts got no reward, for the message that ends a run in which none can be trained on."""

from collections import Counter

from rl.filters import DropReason, ungraded
from rl.records import RolloutGroup

_REASON_CHARS = 300


class Unrewarded:
    """Counts rollouts of rejected groups, and why those without a reward have none."""

    def __init__(self) -> None:
        self._rollouts = 0
        self._reasons: Counter[tuple[DropReason, str]] = Counter()

    def add(self, group: RolloutGroup) -> None:
        """Count the rollouts of one rejected group."""
        self._rollouts += len(group.rollouts)
        for rollout in group.rollouts:
            if (status := ungraded(rollout)) is not None:
                self._reasons[status, rollout.score.reason[:_REASON_CHARS]] += 1

    def clear(self) -> None:
        """Start anew: there is something to learn from again."""
        self._rollouts = 0
        self._reasons.clear()

    def told(self) -> str:
        """What is wrong, when most of these rollouts got no reward; else empty."""
        total = self._reasons.total()
        if 2 * total <= self._rollouts:
            return ""
        (status, reason), count = self._reasons.most_common(1)[0]
        what = "the reference of their problems cannot be used" if status is DropReason.UNGRADABLE else "the infrastructure failed"
        return (
            f"{total} of {self._rollouts} rollouts got no reward, most often ({count} times, {status.value}) because {what}: "
            f"{' '.join(reason.split())}"
        )
