"""Intervals and comparisons of evaluations, where a problem is sampled several times.

Samples of one problem are alike, so that problems, not samples, are the independent draws here. A sample without a verdict is
neither a success nor a failure: it is left out of every estimate and counted. All intervals are of 95%.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_Z95 = 1.959964
"""97.5th percentile of the normal distribution."""
_DRAWS = 10_000
"""Resamples: the error of a bound, from that of the bootstrap itself, is about a fiftieth of the interval."""
_AT_ONCE = 4_000_000
"""Numbers of a bootstrap in memory, 8 bytes each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """How the samples of one problem fared."""

    passed: int
    graded: int
    """Samples with a verdict."""
    ungraded: int = 0
    """Samples without: infrastructure failures, unusable references, prompts over the limit."""

    @property
    def rate(self) -> float:
        """Share of the graded that passed; NaN when nothing was graded."""
        return self.passed / self.graded if self.graded else math.nan

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(passed=self.passed + other.passed, graded=self.graded + other.graded, ungraded=self.ungraded + other.ungraded)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A share, or another mean over problems, with its interval."""

    value: float
    """NaN without any problem; the interval is then (0, 1)."""
    low: float
    high: float
    problems: int
    """Problems that count."""
    left_out: int
    """Problems with too few graded samples to count."""
    ungraded: int
    """Samples without a verdict, over all problems."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Two evaluations of the same problems."""

    first: float
    """Mean over the problems that count; NaN without any."""
    second: float
    difference: float
    """`second - first`."""
    low: float
    high: float
    p_value: float
    """Two-sided: how often chance alone would differ as much. Never 0: at least 1 / (draws + 1)."""
    problems: int
    """Problems with a value on both sides."""
    left_out: int
    """Problems of either side without a value on both: absent, or nothing graded."""


def wilson_interval(passed: float, graded: float) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927); (0, 1) without observations. Counts may be effective ones, not whole."""
    if not graded:
        return (0.0, 1.0)
    share, z2 = passed / graded, _Z95 * _Z95
    centre = (share + z2 / (2 * graded)) / (1 + z2 / graded)
    half = _Z95 * math.sqrt(share * (1 - share) / graded + z2 / (4 * graded * graded)) / (1 + z2 / graded)
    return (max(0.0, centre - half), min(1.0, centre + half))


def pass_rate(tallies: Sequence[Tally]) -> Estimate:
    """Share of all graded samples that passed (pass@1); its interval knows that samples of a problem are alike.

    The cluster-robust variance of the mean (Liang and Zeger 1986, with G / (G - 1) for G problems) says how many independent
    samples there were in effect: between one a problem and all of them. The interval is Wilson's for that many, which holds near
    0 and 1 too. With one sample a problem it is Wilson's own. When no sample or every sample passed, a problem counts once.
    """
    used = [tally for tally in tallies if tally.graded]
    passed, graded = sum(tally.passed for tally in used), sum(tally.graded for tally in used)
    share = passed / graded if graded else math.nan
    size = _effective_size(used, share=share, graded=graded)
    low, high = wilson_interval(share * size, size) if used else (0.0, 1.0)
    return Estimate(value=share, low=low, high=high, problems=len(used), left_out=len(tallies) - len(used), ungraded=_ungraded(tallies))


def pass_at_k(tallies: Sequence[Tally], *, k: int, draws: int = _DRAWS, seed: int = 0) -> Estimate:
    """Chance that at least one of `k` samples of a problem passes, mean over problems, without bias (Chen et al. 2021, eq. 1).

    Problems with fewer than `k` graded samples are left out and counted. The interval is the percentile bootstrap over problems;
    where all problems agree, which leaves nothing to resample, Wilson's over the problems. Raises ValueError for k < 1.
    """
    values = _pass_at_k_values(tallies, k)
    low, high = _interval_of_mean(values, draws=draws, seed=seed)
    left_out, ungraded = len(tallies) - values.size, _ungraded(tallies)
    return Estimate(value=_mean(values), low=low, high=high, problems=values.size, left_out=left_out, ungraded=ungraded)


def mean_over_problems(values: Sequence[float], *, draws: int = _DRAWS, seed: int = 0) -> Estimate:
    """Mean of a value that each problem has, with the interval of `pass_at_k`; for values that all are one beyond 0 and 1, that one."""
    found = np.asarray(values, np.float64)
    low, high = _interval_of_mean(found, draws=draws, seed=seed)
    return Estimate(value=_mean(found), low=low, high=high, problems=found.size, left_out=0, ungraded=0)


def mean_pass_at_k(tallies: Sequence[Tally], *, k: int) -> float:
    """The value of `pass_at_k` without its interval, which is what takes time. Raises ValueError for k < 1."""
    return _mean(_pass_at_k_values(tallies, k))


def _interval_of_mean(values: np.ndarray, *, draws: int, seed: int) -> tuple[float, float]:
    if not values.size:
        return (0.0, 1.0)
    if np.ptp(values):
        return _percentiles(_resampled_means(values, draws=draws, seed=seed))
    value = float(values[0])
    return wilson_interval(value * values.size, values.size) if 0 <= value <= 1 else (value, value)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _pass_at_k_values(tallies: Sequence[Tally], k: int) -> np.ndarray:
    if k < 1:
        raise ValueError(f"k={k}: pass@k takes at least 1 sample a problem")
    return np.asarray([_unbiased(tally, k) for tally in tallies if tally.graded >= k])


def paired_bootstrap(first: Mapping[str, float], second: Mapping[str, float], *, draws: int = _DRAWS, seed: int = 0) -> PairedDifference:
    """Compare two evaluations by the values of the same problems: pass rates, or mean rewards, by problem.

    NaN is a problem of which nothing was graded. Only problems with a value on both sides count; the others are counted as left
    out. The interval is the percentile bootstrap over problems (Efron and Tibshirani 1993, chapter 13); the p value is the share
    of resampled differences, shifted to a mean of zero, that are at least as large as the one that was seen. With fewer than two
    problems nothing can be said: the interval is unbounded and the p value 1.
    """
    names = sorted(name for name in first.keys() & second.keys() if not math.isnan(first[name]) and not math.isnan(second[name]))
    left_out = len(first.keys() | second.keys()) - len(names)
    one, other = (np.asarray([side[name] for name in names], np.float64) for side in (first, second))
    seen = float((other - one).mean()) if names else math.nan
    low, high, p_value = -math.inf, math.inf, 1.0
    if len(names) > 1:
        means = _resampled_means(other - one, draws=draws, seed=seed)
        low, high = _percentiles(means)
        extreme = int(np.count_nonzero(np.abs(means - seen) >= abs(seen) - 1e-12))
        p_value = (1 + extreme) / (draws + 1)
    return PairedDifference(
        first=float(one.mean()) if names else math.nan,
        second=float(other.mean()) if names else math.nan,
        difference=seen,
        low=low,
        high=high,
        p_value=p_value,
        problems=len(names),
        left_out=left_out,
    )


def _effective_size(used: Sequence[Tally], *, share: float, graded: int) -> float:
    """Independent samples that would tell the share as exactly as these."""
    variance = share * (1 - share)
    if len(used) < 2 or variance == 0:
        return float(len(used))
    squares = sum((tally.passed - tally.graded * share) ** 2 for tally in used)
    clustered = len(used) / (len(used) - 1) * squares / graded**2
    design_effect = clustered * (graded - 1) / variance
    return min(float(graded), max(1.0, graded / design_effect)) if design_effect else float(graded)


def _unbiased(tally: Tally, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) as a product, which does not overflow."""
    failed = tally.graded - tally.passed
    return 1.0 - math.prod((failed - i) / (tally.graded - i) for i in range(k)) if failed >= k else 1.0


def _resampled_means(values: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """Means of `draws` resamples with replacement."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // values.size)
    sizes = [min(at_once, draws - done) for done in range(0, draws, at_once)]
    return np.concatenate([values[generator.integers(values.size, size=(size, values.size))].mean(axis=1) for size in sizes])


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _ungraded(tallies: Iterable[Tally]) -> int:
    return sum(tally.ungraded for tally in tallies)
