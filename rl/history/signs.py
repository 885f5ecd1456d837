"""Whose advantages change sign under another reward, by the run's own objective and filters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import Config
from environments.records import Problem, StopReason, Task
from rewards.score import Score, ScoreStatus
from rl.advantage import advantages
from rl.filters import DropReason, is_overlong
from rl.history.appended import Scorer, Value
from rl.history.recorded import Row
from rl.log.query import RunLog
from rl.records import Completion, Rollout, RolloutGroup, Turn

_BATCH_BASELINE = "reinforce_pp"
"""The objective whose baseline is a whole training batch's."""
_ZERO = 1e-9
"""An advantage below it is 0 up to rounding."""
IN_SCORED_GROUPS = "group_id IN (SELECT group_id FROM scores WHERE NOT live AND scorer = ? AND scorer_hash = ?)"
"""Condition on `rollouts`: of groups in which a scorer has scored at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A rollout's reward and advantage under one scorer."""

    reward: float | None
    status: str
    advantage: float | None
    """None where it gets none: no reward, or left out by a filter."""

    @property
    def sign(self) -> int | None:
        """-1, 0 or 1; None without an advantage."""
        if self.advantage is None:
            return None
        return 0 if abs(self.advantage) < _ZERO else int(np.sign(self.advantage))


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A rollout before and after."""

    rollout_id: str
    before: Standing
    after: Standing

    @property
    def changes(self) -> bool:
        """Whether the sign is another, or there is one on one side only."""
        return self.before.sign != self.after.sign

    @property
    def flips(self) -> bool:
        """Whether it was pushed up and would be pushed down, or the other way round."""
        return self.before.sign is not None and self.after.sign is not None and self.before.sign * self.after.sign == -1


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupChange:
    """A group in which at least one advantage has another sign."""

    group_id: str
    task_id: str
    source: str
    dispatch_version: int
    rollouts: tuple[Change, ...]
    """All of the group."""

    @property
    def n_flips(self) -> int:
        """Rollouts that flip."""
        return sum(change.flips for change in self.rollouts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """The comparison over all groups of training."""

    compared: int
    incomplete: int
    """Groups in which the new scorer has not scored every rollout that ended; with a batch's baseline, those of their batches too."""
    changed: tuple[GroupChange, ...]
    """Most flips first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """One turn of the policy."""

    n_tokens: int
    finish_reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """What advantages depend on besides rewards."""

    turns: Mapping[str, Sequence[Spoken]]
    """By rollout."""

    step: Mapping[str, int]
    """Training step of each group that was trained on."""
    gibberish: frozenset[str]
    """Rollouts that the filter of that name left out."""


def read_learned(log: RunLog, scorer: Scorer) -> Learned:
    """For the groups in which a scorer has scored. Raises QueryError."""
    steps = log.query("SELECT group_id, max(train_step) FROM learner WHERE admitted GROUP BY group_id").rows
    step = {str(group): int(number) for group, number in steps}
    rejected = log.query("SELECT rollout_id FROM learner WHERE drop_reason = ?", (DropReason.GIBBERISH.value,)).rows
    gibberish = frozenset(str(row[0]) for row in rejected)
    sql = (
        "SELECT rollout_id, token_end - token_start, finish_reason FROM turns WHERE turn IS NOT NULL "
        f"AND rollout_id IN (SELECT rollout_id FROM rollouts WHERE split = 'train' AND {IN_SCORED_GROUPS}) ORDER BY rollout_id, turn"
    )
    turns: dict[str, list[Spoken]] = {}
    for rollout_id, n_tokens, finish_reason in log.query(sql, (scorer.name, scorer.hash)).rows:
        turns.setdefault(rollout_id, []).append(Spoken(n_tokens=n_tokens, finish_reason=finish_reason))
    return Learned(turns=turns, step=step, gibberish=gibberish)


def changed_signs(config: Config, rows: Sequence[Row], *, scores: Mapping[str, Value], learned: Learned) -> Signs:
    """Compare the rewards that were trained on with `scores`, group by group.

    `rows` are all rollouts of every group that counts, in order. An episode that infrastructure cut off has no reward on either side.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.split == "train":
            groups.setdefault(row.group_id, []).append(row)
    incomplete = {group_id for group_id, own in groups.items() if any(row.finished and row.rollout_id not in scores for row in own)}
    batches = [list(groups)]
    if config.objective.name == _BATCH_BASELINE:
        batches = _batches(groups, learned)
        missing = {step for group_id, step in learned.step.items() if group_id not in groups or group_id in incomplete}
        incomplete |= {group_id for group_id in groups if learned.step.get(group_id) in missing or group_id not in learned.step}
    changed = []
    for batch in batches:
        whole = [groups[group_id] for group_id in batch if group_id not in incomplete]
        before = [_group(own, {row.rollout_id: Value(reward=row.reward, status=row.status) for row in own}, learned) for own in whole]
        after = [_group(own, scores, learned) for own in whole]
        sides = [_standings(config, side, learned) for side in (before, after)]
        for own, old, new in zip(whole, *sides, strict=True):
            changes = tuple(Change(rollout_id=row.rollout_id, before=b, after=a) for row, b, a in zip(own, old, new, strict=True))
            if any(change.changes for change in changes):
                first = own[0]
                changed.append(
                    GroupChange(
                        group_id=first.group_id,
                        task_id=first.task_id,
                        source=first.source,
                        dispatch_version=first.dispatch_version,
                        rollouts=changes,
                    )
                )
    changed.sort(key=lambda group: (-group.n_flips, group.dispatch_version, group.group_id))
    return Signs(compared=len(groups) - len(incomplete), incomplete=len(incomplete), changed=tuple(changed))


def _batches(groups: Mapping[str, Sequence[Row]], learned: Learned) -> list[list[str]]:
    """Groups that were trained on together."""
    by_step: dict[int, list[str]] = {}
    for group_id in groups:
        if group_id in learned.step:
            by_step.setdefault(learned.step[group_id], []).append(group_id)
    return list(by_step.values())


def _standings(config: Config, groups: Sequence[RolloutGroup], learned: Learned) -> list[list[Standing]]:
    def unfit(rollout: Rollout) -> DropReason | None:
        if rollout.rollout_id in learned.gibberish:
            return DropReason.GIBBERISH
        return DropReason.OVERLONG if config.filters.overlong and is_overlong(rollout) else None

    results = advantages(config.objective, groups, max_tokens=config.sampling.max_tokens, unfit=unfit)
    return [
        [
            Standing(reward=rollout.score.reward, status=rollout.score.status.value, advantage=None if np.isnan(value) else float(value))
            for rollout, value in zip(group.rollouts, result.values_G, strict=True)
        ]
        for group, result in zip(groups, results, strict=True)
    ]


def _group(rows: Sequence[Row], values: Mapping[str, Value], learned: Learned) -> RolloutGroup:
    """As far as advantages look at it: rewards, lengths and how turns ended."""
    first = rows[0]
    task = Task(id=first.task_id, env=first.env, prompt=())
    cut_off = Value(reward=None, status=ScoreStatus.INFRA.value)
    return RolloutGroup(
        group_id=first.group_id,
        index=first.group_index,
        problem=Problem(task=task, reference={}, source=first.source),
        split=first.split,
        dispatch_version=first.dispatch_version,
        rollouts=tuple(_rollout(row, values.get(row.rollout_id, cut_off), learned.turns.get(row.rollout_id, ())) for row in rows),
    )


def _rollout(row: Row, value: Value, turns: Sequence[Spoken]) -> Rollout:
    return Rollout(
        rollout_id=row.rollout_id,
        sample_index=row.sample_index,
        seed=0,
        turns=tuple(map(_turn, turns)),
        messages=(),
        score=Score(reward=value.reward, status=ScoreStatus(value.status)),
        stop_reason=StopReason(row.stop_reason),
    )


def _turn(spoken: Spoken) -> Turn:
    n = spoken.n_tokens
    completion = Completion(
        token_ids_T=np.zeros(n, np.int32),
        logprobs_T=np.zeros(n, np.float32),
        versions_T=np.zeros(n, np.int32),
        stop_reason=StopReason(spoken.finish_reason),
    )
    return Turn(context_ids_P=np.zeros(0, np.int32), completion=completion, text="", started=0.0, ended=0.0)
