"""What an evaluation says beside pass or fail: the mean of each component of the reward, and why samples failed."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.score import Score, ScoreStatus
from rl.log.text import shorten, visible
from rl.statistics import Estimate, mean_over_problems

_PARTICULAR = re.compile(r"(?<!\w)'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|-?\d+(?:\.\d+)?")
"""What differs between two failures of one kind: quoted texts and numbers."""
_READ_CHARS, _REASON_CHARS, _SHOWN = 1000, 100, 5
_OTHER = "(other reasons)"
_MOST_KINDS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """Values of the samples of one problem."""

    total: float
    n: int

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(total=self.total + other.total, n=self.n + other.n)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreDetails:
    """Of the graded samples of a task source."""

    parts: Mapping[str, Mapping[str, Sum]] = field(default_factory=dict)
    """By component of the reward, then by problem."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Failed samples by the kind of their reason: its text without quoted texts and numbers."""

    @classmethod
    def of(cls, problem: str, scores: Sequence[Score]) -> "ScoreDetails":
        """Of the samples of one problem; those without a verdict do not count."""
        graded = [score for score in scores if score.reward is not None]
        sums: dict[str, Sum] = {}
        for score in graded:
            for name, part in score.parts.items():
                if math.isfinite(part.value):
                    sums[name] = sums.get(name, Sum(total=0.0, n=0)) + Sum(total=part.value, n=1)
        failed = Counter(kind_of(score.reason) for score in graded if score.status is ScoreStatus.POLICY_FAIL)
        return cls(parts={name: {problem: found} for name, found in sums.items()}, failures=failed)

    def mean(self, part: str) -> Estimate:
        """Mean of a component over problems, of each the mean over its samples; the interval is over problems."""
        return mean_over_problems([found.total / found.n for found in self.parts[part].values()])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        means = {name: self.mean(name) for name in self.parts}
        return {
            "parts": {
                name: {"mean": one.value, "interval_95": [one.low, one.high], "problems": one.problems} for name, one in means.items()
            },
            "failures": dict(self._by_frequency()),
        }

    def lines(self) -> list[str]:
        """For a person: the components, then the most frequent reasons."""
        means = {name: self.mean(name) for name in self.parts}
        lines = [
            f"  {f'  {visible(name, one_line=True)}':<20} {one.value:.3f}  [{one.low:.3f}, {one.high:.3f}]  {one.problems} problems"
            for name, one in means.items()
        ]
        kinds = self._by_frequency()
        lines += [f"    {count} failed: {visible(kind, one_line=True)}" for kind, count in kinds[:_SHOWN]]
        rest = sum(count for _, count in kinds[_SHOWN:])
        return lines + ([f"    {rest} failed for {len(kinds) - _SHOWN} other reasons"] if rest else [])

    def _by_frequency(self) -> list[tuple[str, int]]:
        return sorted(self.failures.items(), key=lambda item: (-item[1], item[0]))

    def __add__(self, other: "ScoreDetails") -> "ScoreDetails":
        nothing = Sum(total=0.0, n=0)
        parts = {}
        for name in dict.fromkeys([*self.parts, *other.parts]):
            ours, theirs = self.parts.get(name, {}), other.parts.get(name, {})
            parts[name] = {
                problem: ours.get(problem, nothing) + theirs.get(problem, nothing) for problem in dict.fromkeys([*ours, *theirs])
            }
        failures = Counter(self.failures)
        for kind, count in other.failures.items():
            failures[kind if kind in failures or len(failures) < _MOST_KINDS else _OTHER] += count
        return ScoreDetails(parts=parts, failures=failures)


def kind_of(reason: str) -> str:
    """The reason of a failure without what is particular to one: equal for failures of one kind."""
    return shorten(_PARTICULAR.sub("…", reason[:_READ_CHARS]), _REASON_CHARS) or "no reason is given"
