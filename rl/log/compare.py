"""Two runs at equal tokens: their held-out pass rates where both had cost as much, compared problem by problem."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rl.log.query import RunLog
from rl.statistics import Estimate, PairedDifference, Tally, paired_bootstrap, pass_rate

_ROWS = 1_000_000
_TIMEOUT = 60.0
_COSTS = {
    "sampled": "SELECT step, sum(tokens) OVER (ORDER BY step)::BIGINT FROM metrics ORDER BY step",
    "trained": (
        "SELECT train_step, sum(sum(n_tokens)) OVER (ORDER BY train_step)::BIGINT FROM learner WHERE admitted "
        "GROUP BY train_step ORDER BY train_step"
    ),
}
"""Tokens up to each training step. Held-out rollouts are not counted: evaluating more often makes no run dearer."""
_EVALUATED = """SELECT source, dispatch_version, task_id, task_hash, count(*) FILTER (status = 'ok'),
count(*) FILTER (status IN ('ok', 'policy_fail')), count(*) FROM rollouts WHERE split = 'heldout' GROUP BY ALL"""

Problem = tuple[str, str]
"""Task id and hash: a task whose content has changed is another problem."""


class TokenCount(Enum):
    """By which tokens two runs are put side by side."""

    SAMPLED = "sampled"
    """Of all training rollouts that reached a step."""
    TRAINED = "trained"
    """Of them, those that the learner took a gradient on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """The evaluation of one run that is compared."""

    run: str
    step: int
    """Policy version that was evaluated."""
    tokens: int
    """Up to that version."""
    total_tokens: int
    """Up to the run's last step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceComparison:
    """Held-out problems of one task source."""

    source: str
    first: Estimate
    """Pass rate over all of its problems."""
    second: Estimate
    difference: PairedDifference
    """Over the problems that both evaluated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunComparison:
    """Two runs, as far as both have come."""

    by: TokenCount
    tokens: int
    """The largest count that both reached; each run's last evaluation up to there is compared."""
    first: Evaluated
    second: Evaluated
    sources: tuple[SourceComparison, ...]
    only_first: tuple[str, ...]
    """Task sources that the other run did not evaluate."""
    only_second: tuple[str, ...]


def compare_runs(
    first: RunLog, second: RunLog, *, names: tuple[str, str], by: TokenCount = TokenCount.SAMPLED, seed: int = 0
) -> RunComparison:
    """Compare what both logs hold; either run may still go on. `names` are the runs', for the record and for errors.

    Raises ValueError when a run has no evaluation within the tokens that both reached, or when no task source is common.
    """
    costs = [_costs(log, by) for log in (first, second)]
    budget = min(max(cost.values(), default=0) for cost in costs)
    sides, tallies = [], []
    for log, cost, name in zip((first, second), costs, names, strict=True):
        by_version = _evaluated(log)
        spent = {version: _up_to(cost, version) for version in by_version}
        within = [version for version in by_version if spent[version] <= budget]
        if not within:
            raise ValueError(
                f"run {name} has no evaluation of held-out problems within {budget:,} {by.value} tokens, the most that both runs reached: "
                "set evaluation.every and tasks.NAME.heldout in both runs"
            )
        step = max(within)
        sides.append(Evaluated(run=name, step=step, tokens=spent[step], total_tokens=max(cost.values(), default=0)))
        tallies.append(by_version[step])
    shared = sorted(tallies[0].keys() & tallies[1].keys())
    if not shared:
        held = " and ".join(f"{name} holds out {', '.join(sorted(own))}" for name, own in zip(names, tallies, strict=True))
        raise ValueError(f"the runs have no held-out task source in common: {held}")
    return RunComparison(
        by=by,
        tokens=budget,
        first=sides[0],
        second=sides[1],
        sources=tuple(_compared(source, tallies[0][source], tallies[1][source], seed=seed) for source in shared),
        only_first=tuple(sorted(tallies[0].keys() - tallies[1].keys())),
        only_second=tuple(sorted(tallies[1].keys() - tallies[0].keys())),
    )


def _compared(source: str, first: Mapping[Problem, Tally], second: Mapping[Problem, Tally], *, seed: int) -> SourceComparison:
    one, other = ({"\0".join(problem): tally.rate for problem, tally in side.items()} for side in (first, second))
    return SourceComparison(
        source=source,
        first=pass_rate(list(first.values())),
        second=pass_rate(list(second.values())),
        difference=paired_bootstrap(one, other, seed=seed),
    )


def _costs(log: RunLog, by: TokenCount) -> dict[int, int]:
    """Tokens up to each step."""
    return {int(step): int(tokens or 0) for step, tokens in _rows(log, _COSTS[by.value])}


def _up_to(costs: Mapping[int, int], version: int) -> int:
    """Tokens that policy `version` had cost: it is the version after the step of that number."""
    return max((tokens for step, tokens in costs.items() if step <= version), default=0)


def _evaluated(log: RunLog) -> dict[int, dict[str, dict[Problem, Tally]]]:
    """Policy version: task source: problem: how its samples fared."""
    found: dict[int, dict[str, dict[Problem, Tally]]] = {}
    for source, version, task_id, task_hash, passed, graded, sampled in _rows(log, _EVALUATED):
        tally = Tally(passed=passed, graded=graded, ungraded=sampled - graded)
        found.setdefault(version, {}).setdefault(source, {})[str(task_id), str(task_hash)] = tally
    return found


def _rows(log: RunLog, sql: str) -> Sequence[tuple[Any, ...]]:
    page = log.fetch(sql, limit=_ROWS, timeout=_TIMEOUT)
    if page.more:
        raise ValueError(f"the log has more than {_ROWS:,} evaluated problems: too many to compare")
    return page.rows


def comparison_table(found: RunComparison) -> str:
    """For a person: the tokens, then a line a task source."""
    lines = [f"at {found.tokens:,} {found.by.value} tokens, the most that both runs reached"]
    for name, side in (("first", found.first), ("second", found.second)):
        lines.append(f"  {name:<7} {side.run}, version {side.step} at {side.tokens:,} of its {side.total_tokens:,} tokens")
    for one in found.sources:
        gap = one.difference
        lines.append(f"{one.source}: {_shown(one.first)} -> {_shown(one.second)}")
        bounds = f"[{gap.low:+.3f}, {gap.high:+.3f}], p = {gap.p_value:.2g}" if math.isfinite(gap.low) else "too few problems to tell"
        left = f", {gap.left_out} without a verdict on both sides" if gap.left_out else ""
        lines.append(f"  difference {gap.difference:+.3f} {bounds} over {gap.problems} problems{left}")
    for run, names in ((found.first.run, found.only_first), (found.second.run, found.only_second)):
        if names:
            lines.append(f"only {run} evaluated {', '.join(names)}")
    return "\n".join(lines)


def _shown(one: Estimate) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" + (f" ({one.ungraded} ungraded)" if one.ungraded else "")
