"""Two runs at equal tokens: pass rates where both had cost as much, compared problem by problem.

A run that is further has had more to learn from: its end beside the other's end would say little about their settings. Tokens are what
the policy of a version had cost in training until then. Held-out rollouts are not counted, because evaluating more often makes no policy
dearer, and neither is what an attempt did beyond the step that a later one was restored to: no policy of the run has learned from it.

The budget is what the newest policy of the cheaper run had cost. Held-out problems count at the last evaluation of a policy within the
budget, training over the last quarter of the budget.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from typing import Any

from rl.log.query import RunLog
from rl.statistics import Estimate, PairedDifference, Tally, paired_bootstrap, pass_rate

_WINDOW = 0.25
"""Share of the budget, at its end, over which training counts."""
_ROWS = 1_000_000
_TIMEOUT = 60.0
_KEPT = """(SELECT * FROM rollouts LEFT JOIN (SELECT attempt, min(restored_step) OVER (ORDER BY attempt ROWS BETWEEN 1 FOLLOWING AND
UNBOUNDED FOLLOWING) AS restored FROM attempts) USING (attempt) WHERE restored IS NULL OR dispatch_version <= restored)"""
"""Rollouts that led to the run's policies: what an attempt did beyond the step that a later one goes on from is done again, or never."""
_COSTS = {
    "sampled": f"SELECT dispatch_version + 1 AS version, sum(sampled_tokens)::BIGINT FROM {_KEPT} WHERE split = 'train' GROUP BY version",
    "trained": "SELECT train_step AS version, sum(n_tokens)::BIGINT FROM learner WHERE admitted GROUP BY version",
}
"""Tokens that a policy version had cost beyond the version before."""
_EVALUATED = "SELECT DISTINCT step FROM evals WHERE split = 'heldout'"
"""An evaluation is there when it is done: the policy's quickest answers would not do for all of them."""
_TALLIES = f"""SELECT source, task_id, min(task_hash), max(task_hash), count(*) FILTER (status = 'ok'), count(reward), count(*) FROM {_KEPT}
WHERE split = ? AND dispatch_version BETWEEN ? AND ? GROUP BY source, task_id"""


class TokenCount(Enum):
    """By which tokens two runs are put side by side."""

    SAMPLED = "sampled"
    """Of all training rollouts that were started for an earlier version, whatever became of them: rejected ones cost as much. Those that
    were still going on when the version was published count, at most `max_staleness + 1` batches."""
    TRAINED = "trained"
    """Those that the learner took a gradient on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """One run at the budget."""

    run: str
    total_tokens: int
    """What its newest policy had cost."""
    evaluated: int | None
    """Policy version of the last evaluation within the budget; None without any."""
    tokens: int
    """What that policy had cost."""
    training: tuple[int, int] | None
    """First and last policy version whose rollouts count as training; None where the budget is 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceComparison:
    """A task source, held out or in training."""

    source: str
    split: str
    tallies: tuple[Tally, Tally]
    """Over all problems of each run."""
    first: Estimate
    """Pass rate over all problems of the first run."""
    second: Estimate
    difference: PairedDifference
    """Second - first, over the problems that both have graded."""
    changed: int
    """Of the problems that both have graded those with another content: prompt, payload or reference."""

    def has(self, run: int) -> bool:
        """Whether the first (0) or the second (1) run has rollouts of it that count."""
        return self.tallies[run] != _NOTHING

    @property
    def shared(self) -> bool:
        """Whether both have."""
        return self.has(0) and self.has(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunComparison:
    """Two runs, as far as both have come."""

    by: TokenCount
    tokens: int
    """The budget."""
    first: Reached
    second: Reached
    sources: tuple[SourceComparison, ...]
    """Held-out ones first. All that either run has."""

    @property
    def no_heldout(self) -> str:
        """Why held-out problems cannot be compared; empty when they can."""
        without = [side.run for side in (self.first, self.second) if side.evaluated is None]
        if without:
            who = f"run {without[0]} has no" if len(without) == 1 else "neither run has an"
            return (
                f"{who} evaluation of held-out problems within {self.tokens:,} {self.by.value} tokens, the most that both runs reached: "
                "set evaluation.every and tasks.NAME.heldout in both runs"
            )
        own = [one for one in self.sources if one.split == "heldout"]
        if any(one.shared for one in own):
            return ""
        held = [
            f"{side.run} holds out {', '.join(one.source for one in own if one.has(index)) or 'nothing'}"
            for index, side in enumerate((self.first, self.second))
        ]
        return f"the runs have no held-out task source in common: {' and '.join(held)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    tally: Tally
    hashes: tuple[str | None, str | None]
    """Least and greatest: they differ where the task was changed while the run went on."""


_NOTHING = Tally(passed=0, graded=0)
_Tasks = Mapping[tuple[str, str], Mapping[str, _Task]]
"""By split and source, by task id."""


def compare_runs(
    first: RunLog, second: RunLog, *, names: tuple[str, str], by: TokenCount = TokenCount.SAMPLED, seed: int = 0
) -> RunComparison:
    """Compare what both logs hold; either run may still go on. `names` are the runs', `seed` is the bootstrap's. Raises QueryError."""
    logs = (first, second)
    costs = [_costs(log, by) for log in logs]
    budget = min(cost[-1] for cost in costs)
    sides = [_reached(log, cost, run=run, budget=budget) for log, cost, run in zip(logs, costs, names, strict=True)]
    tasks = [_tasks(log, side) for log, side in zip(logs, sides, strict=True)]
    keys = sorted({*tasks[0], *tasks[1]}, key=lambda key: (key[0] == "train", key))
    return RunComparison(
        by=by,
        tokens=budget,
        first=sides[0],
        second=sides[1],
        sources=tuple(_compared(key, tasks[0].get(key, {}), tasks[1].get(key, {}), seed=seed) for key in keys),
    )


def training_window(costs: Sequence[int], budget: int) -> tuple[int, int] | None:
    """First and last policy version whose rollouts make up the last quarter of a budget; None where there is nothing to count.

    `costs` are the tokens that each version from 0 on had cost. The first version alone where its rollouts are more than all of the budget.
    """
    through = costs[1:]
    """With the version's own rollouts."""
    if not budget or not through:
        return None
    last = max((version for version, tokens in enumerate(through) if tokens <= budget), default=0)
    first = next((version for version, tokens in enumerate(through) if tokens > (1 - _WINDOW) * budget), last)
    return min(first, last), last


def _reached(log: RunLog, costs: Sequence[int], *, run: str, budget: int) -> Reached:
    versions = [int(version) for (version,) in _rows(log, _EVALUATED)]
    newest = max((version for version in versions if version < len(costs) and costs[version] <= budget), default=None)
    return Reached(
        run=run,
        total_tokens=costs[-1],
        evaluated=newest,
        tokens=costs[newest] if newest is not None else 0,
        training=training_window(costs, budget),
    )


def _costs(log: RunLog, by: TokenCount) -> list[int]:
    """Tokens that each policy version had cost, from version 0 on to the newest, which is the one after the last training step."""
    ((newest,),) = _rows(log, "SELECT coalesce(max(step), 0) FROM metrics")
    more = [0] * (newest + 1)
    for version, tokens in _rows(log, _COSTS[by.value]):
        if version <= newest:
            more[version] = int(tokens or 0)
    return list(accumulate(more))


def _tasks(log: RunLog, side: Reached) -> _Tasks:
    found: dict[tuple[str, str], dict[str, _Task]] = {}
    windows = {"heldout": None if side.evaluated is None else (side.evaluated, side.evaluated), "train": side.training}
    for split, window in windows.items():
        if window is None:
            continue
        for source, task_id, least, greatest, passed, graded, sampled in _rows(log, _TALLIES, (split, *window)):
            tally = Tally(passed=passed, graded=graded, ungraded=sampled - graded)
            found.setdefault((split, str(source)), {})[str(task_id)] = _Task(tally=tally, hashes=(least, greatest))
    return found


def _compared(key: tuple[str, str], first: Mapping[str, _Task], second: Mapping[str, _Task], *, seed: int) -> SourceComparison:
    split, source = key
    sides = [{name: task.tally for name, task in side.items()} for side in (first, second)]
    one, other = ({name: tally.rate for name, tally in side.items()} for side in sides)
    return SourceComparison(
        source=source,
        split=split,
        tallies=(sum(sides[0].values(), _NOTHING), sum(sides[1].values(), _NOTHING)),
        first=pass_rate(list(sides[0].values())),
        second=pass_rate(list(sides[1].values())),
        difference=paired_bootstrap(one, other, seed=seed),
        changed=sum(
            first[name].hashes != second[name].hashes
            for name in one.keys() & other.keys()
            if not math.isnan(one[name]) and not math.isnan(other[name])
        ),
    )


def _rows(log: RunLog, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
    page = log.fetch(sql, parameters, limit=_ROWS, timeout=_TIMEOUT)
    if page.more:
        raise ValueError(f"a run has more than {_ROWS:,} problems at one policy version: too many to compare")
    return page.rows
