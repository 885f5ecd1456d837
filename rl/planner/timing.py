"""Measurements, and the factors that explain them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One measurement: how much work of each kind, and the seconds it took."""

    work: tuple[float, ...]
    seconds: float


def fit(timings: Sequence[Timing]) -> list[float]:
    """Factors >= 0 whose sum of products with the work is nearest to the seconds, in proportion."""
    work = np.array([timing.work for timing in timings], dtype=np.float64)
    seconds = np.array([timing.seconds for timing in timings])
    work, wanted = work / seconds[:, None], np.ones(len(seconds))
    scale = np.where(work.any(axis=0), np.abs(work).max(axis=0), 1.0)
    kept = list(range(work.shape[1]))
    factors = np.zeros(work.shape[1])
    while kept:
        solution = np.linalg.lstsq(work[:, kept] / scale[kept], wanted, rcond=None)[0]
        if (solution >= 0).all():
            factors[kept] = solution / scale[kept]
            break
        kept.pop(int(solution.argmin()))
    return [float(factor) for factor in factors]
