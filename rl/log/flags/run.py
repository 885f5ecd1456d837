"""Rules on the run as a whole, from its metrics."""

from collections import defaultdict
from collections.abc import Sequence

from rl.log.metrics import EvalMetrics, RunFlag, StepMetrics

_LEAST_STEPS = 3
"""Training steps on either side of an evaluation."""


class RunRules:
    """Sees steps and evaluations in their order."""

    def __init__(self) -> None:
        self._since: dict[str, list[float]] = defaultdict(list)
        """By task source: pass rates of the training steps since its last evaluation."""
        self._before: dict[str, float] = {}
        """By task source: mean pass rate of training before the last evaluation."""
        self._last: dict[str, EvalMetrics] = {}

    def step(self, metrics: StepMetrics) -> None:
        """A training step is done."""
        for source, rate in metrics.pass_rate.items():
            self._since[source].append(rate)

    def evaluated(self, found: EvalMetrics) -> RunFlag | None:
        """`reward_up_heldout_down`: training passes more often than before the last evaluation, held-out problems significantly less."""
        earlier, rates = self._last.get(found.source), self._since.pop(found.source, [])
        before = self._before.get(found.source)
        self._last[found.source] = found
        mean = _mean(rates)
        if mean is not None:
            self._before[found.source] = mean
        if earlier is None or mean is None or before is None or not found.graded or not earlier.graded:
            return None
        if not (mean > before and found.interval[1] < earlier.interval[0]):
            return None
        reason = (
            f"{found.source}: training passes {before:.3f} -> {mean:.3f}, held out {earlier.pass_rate:.3f} (step {earlier.step}) -> "
            f"{found.pass_rate:.3f}; the 95% intervals do not meet"
        )
        return RunFlag(name="reward_up_heldout_down", step=found.step, time=found.time, reason=reason)


def _mean(rates: Sequence[float]) -> float | None:
    known = [rate for rate in rates if rate == rate]
    return sum(known) / len(known) if len(known) >= _LEAST_STEPS else None
