"""What a new reward over old rollouts comes to, as plain values and for a person."""

from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from rewards.score import ScoreStatus
from rl.history.appended import Scorer, Value
from rl.history.recorded import Played
from rl.history.signs import Change, GroupChange, Signs, Standing
from rl.log.text import shorten, visible
from rl.statistics import Estimate, Tally, pass_rate

_GROUPS_SHOWN = 40
_REASON_CHARS = 200
_NONE = Tally(passed=0, graded=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Verdicts of one scorer over some rollouts."""

    tally: Tally
    estimate: Estimate
    """Of the pass rate; its interval knows that rollouts of a task are alike."""
    mean: float | None
    """Reward over the graded."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rate = self.estimate
        return {**asdict(self.tally), "pass_rate": rate.value, "interval_95": [rate.low, rate.high], "mean": self.mean}

    def text(self) -> str:
        """For a person."""
        tally, rate = self.tally, self.estimate
        if not tally.graded:
            return f"none graded of {tally.ungraded}"
        more = f", {tally.ungraded} ungraded" if tally.ungraded else ""
        return f"{tally.passed}/{tally.graded} = {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}], mean {self.mean:.4g}{more}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRates:
    """A task source before and after, over the same rollouts."""

    source: str
    split: str
    n: int
    before: Rate
    after: Rate


@dataclass(kw_only=True, slots=True)
class Verdicts:
    """Counts verdicts of one scorer, one after the other."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    """By task."""
    rewards: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, task_id: str, value: Value) -> None:
        """One more rollout."""
        self.tallies[task_id] = self.tallies.get(task_id, _NONE) + _tally(value)
        if value.reward is not None:
            self.rewards.append(value.reward)

    def rate(self) -> Rate:
        """So far."""
        tallies = list(self.tallies.values())
        return Rate(tally=sum(tallies, _NONE), estimate=pass_rate(tallies), mean=fmean(self.rewards) if self.rewards else None)


class RatesCount:
    """Counts rollouts before and after by task source and split."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], tuple[Verdicts, Verdicts]] = {}

    def add(self, row: Played, value: Value) -> None:
        """One more rollout with the new scorer's verdict."""
        before, after = self._counts.setdefault((row.source, row.split), (Verdicts(), Verdicts()))
        before.add(row.task_id, Value(reward=row.reward, status=row.status))
        after.add(row.task_id, value)

    def rates(self) -> tuple[SourceRates, ...]:
        """So far."""
        return tuple(
            SourceRates(source=source, split=split, n=rate.tally.graded + rate.tally.ungraded, before=before.rate(), after=rate)
            for (source, split), (before, after) in sorted(self._counts.items(), key=lambda item: item[0])
            for rate in (after.rate(),)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescored:
    """One invocation of `rl rescore`."""

    run: str
    scorer: Scorer
    reward: str
    objective: str
    scored: int
    """Rollouts that were scored now."""
    earlier: int
    """Selected rollouts that this scorer had scored before."""
    failures: Mapping[str, int]
    left_out: Mapping[str, int]
    rates: tuple[SourceRates, ...]
    signs: Signs

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "scorer": self.scorer.name,
            "scorer_hash": self.scorer.hash,
            "reward": self.reward,
            "objective": self.objective,
            "scored": self.scored,
            "scored_earlier": self.earlier,
            "failed": dict(self.failures),
            "left_out": dict(self.left_out),
            "sources": [
                {"source": one.source, "split": one.split, "n": one.n, "before": one.before.to_json(), "after": one.after.to_json()}
                for one in self.rates
            ],
            "groups_compared": self.signs.compared,
            "groups_incomplete": self.signs.incomplete,
            "groups": [_group_json(group) for group in self.signs.changed],
        }

    def text(self) -> str:
        """For a person."""
        lines = [f"scorer {self.scorer.name} ({self.scorer.hash}): {self.scored} rollouts scored, {self.earlier} had been before"]
        lines += [f"left out: {n} rollouts, because {why}" for why, n in self.left_out.items()]
        lines += [f"not scored: {n} rollouts: {shorten(why, _REASON_CHARS)} (run it again)" for why, n in self.failures.items()]
        for one in self.rates:
            lines += [f"{one.source}, {one.split}, {one.n} rollouts", f"  before {one.before.text()}", f"  after  {one.after.text()}"]
        lines += self._groups()
        return visible("\n".join(lines))

    def _groups(self) -> list[str]:
        changed, signs = self.signs.changed, self.signs
        flips = sum(group.n_flips for group in changed)
        lines = [
            f"advantages by objective {self.objective}: {len(changed)} of {signs.compared} groups change sign, {flips} rollouts flip"
            + (f"; {signs.incomplete} groups are not wholly scored" if signs.incomplete else "")
        ]
        for group in changed[:_GROUPS_SHOWN]:
            lines.append(f"group {group.group_id}, task {visible(group.task_id, one_line=True)}, version {group.dispatch_version}")
            lines += [
                f"  {change.rollout_id}  {_standing(change.before)} -> {_standing(change.after)}{_mark(change)}"
                for change in group.rollouts
            ]
        if len(changed) > _GROUPS_SHOWN:
            lines.append(f"({len(changed) - _GROUPS_SHOWN} more groups: --json has all)")
        return lines


def _tally(value: Value) -> Tally:
    graded = value.reward is not None
    return Tally(passed=int(value.status == ScoreStatus.OK.value), graded=int(graded), ungraded=int(not graded))


def _mark(change: Change) -> str:
    return "  flips" if change.flips else "  changes" if change.changes else ""


def _standing(standing: Standing) -> str:
    if standing.advantage is None:
        return f"{'none':>8} ({standing.status})"
    return f"{standing.advantage:+8.4f} ({standing.reward:g})" if standing.reward is not None else f"{standing.advantage:+8.4f}"


def _group_json(group: GroupChange) -> dict[str, Any]:
    return {
        "group_id": group.group_id,
        "task_id": group.task_id,
        "source": group.source,
        "dispatch_version": group.dispatch_version,
        "rollouts": [
            {
                "rollout_id": change.rollout_id,
                "before": asdict(change.before),
                "after": asdict(change.after),
                "changes": change.changes,
                "flips": change.flips,
            }
            for change in group.rollouts
        ],
    }
