"""What two runs had reached when they had sampled equally many tokens.

A run that is further has had more to learn from: comparing its end with the other's end would say little about settings. The budget is
what the shorter run has sampled in training. Training counts over the last quarter of that budget, held-out problems at the newest
evaluation of a policy that had been trained on no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rl.statistics import Tally
from rl.view.open_run import OpenRun

_WINDOW = 0.25
"""Share of the budget, at its end, over which training counts."""
_MANY = 10_000_000
"""No bound on rows: one a policy version, or one a task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Tokens that a run has sampled in training."""

    versions: tuple[int, ...]
    """Policy versions at which rollouts were started, in order."""
    through: tuple[int, ...]
    """Tokens of rollouts started at that version or before."""

    @property
    def total(self) -> int:
        """Tokens so far."""
        return self.through[-1] if self.through else 0

    def within(self, budget: int) -> tuple[int, int]:
        """First and last version of the last quarter of a budget; the first version alone where that is more than all of it."""
        last = max((i for i, tokens in enumerate(self.through) if tokens <= budget), default=0)
        first = next((i for i, tokens in enumerate(self.through) if tokens > (1 - _WINDOW) * budget), last)
        return self.versions[min(first, last)], self.versions[last]

    def before(self, version: int) -> int:
        """Tokens on which the policy of a version can have been trained."""
        return max((tokens for own, tokens in zip(self.versions, self.through, strict=True) if own < version), default=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """One run at the budget."""

    versions: Mapping[str, tuple[int, int] | None]
    """By split: first and last policy version that count; None where nothing does."""
    tasks: Mapping[tuple[str, str], Mapping[str, Tally]]
    """By task source and split: how each task fared."""


def read_spent(run: OpenRun) -> Spent:
    """Raises QueryError."""
    sql = "SELECT dispatch_version AS v, sum(sampled_tokens)::BIGINT AS n FROM rollouts WHERE split = 'train' GROUP BY v ORDER BY v"
    versions, through, total = [], [], 0
    for row in run.rows(sql, limit=_MANY):
        total += row["n"]
        versions.append(row["v"])
        through.append(total)
    return Spent(versions=tuple(versions), through=tuple(through))


def read_reached(run: OpenRun, spent: Spent, *, budget: int) -> Reached:
    """What a run had reached when it had sampled `budget` tokens. Raises QueryError."""
    evaluated = run.rows("SELECT DISTINCT dispatch_version AS v FROM rollouts WHERE split = 'heldout' ORDER BY v", limit=_MANY)
    newest = max((row["v"] for row in evaluated if spent.before(row["v"]) <= budget), default=None)
    windows = {
        "train": spent.within(budget) if spent.versions else None,
        "heldout": None if newest is None else (newest, newest),
    }
    tasks: dict[tuple[str, str], dict[str, Tally]] = {}
    for split, window in windows.items():
        if window is None:
            continue
        sql = (
            "SELECT source, task_id, count(*) FILTER (status = 'ok') AS passed, count(reward) AS graded, "
            "count(*) - count(reward) AS ungraded FROM rollouts WHERE split = ? AND dispatch_version BETWEEN ? AND ? "
            "GROUP BY source, task_id ORDER BY source, task_id"
        )
        for row in run.rows(sql, (split, *window), limit=_MANY):
            tally = Tally(passed=row["passed"], graded=row["graded"], ungraded=row["ungraded"])
            tasks.setdefault((row["source"], split), {})[row["task_id"]] = tally
    return Reached(versions=windows, tasks=tasks)
