"""Whose advantages change sign under another reward, by the run's own objective and filters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import Config
from environments.records import Problem, StopReason, Task
from rewards.score import Score, ScoreStatus
from rl.advantage import advantages
from rl.filters import DropReason, is_overlong
from rl.history.appended import Value
from rl.history.recorded import Row, Said
from rl.log.query import RunLog
from rl.records import Completion, Rollout, RolloutGroup, Turn

_BATCH_BASELINE = "reinforce_pp"
"""The objective whose baseline is a whole training batch's."""


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
        return None if self.advantage is None else int(np.sign(self.advantage))


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
class Learned:
    """What the learner did with rollouts."""

    step: Mapping[str, int]
    """Training step of each group that was trained on."""
    gibberish: frozenset[str]
    """Rollouts that the filter of that name left out."""


def read_learned(log: RunLog) -> Learned:
    """From the `learner` dataset. Raises QueryError."""
    steps = log.query("SELECT group_id, max(train_step) FROM learner WHERE admitted GROUP BY group_id").rows
    rejected = log.query("SELECT rollout_id FROM learner WHERE drop_reason = ?", (DropReason.GIBBERISH.value,)).rows
    return Learned(step={str(group): int(step) for group, step in steps}, gibberish=frozenset(str(row[0]) for row in rejected))


def changed_signs(
    config: Config, rows: Sequence[Row], *, messages: Mapping[str, Sequence[Said]], scores: Mapping[str, Value], learned: Learned
) -> Signs:
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
        by_step: dict[int, list[str]] = {}
        for group_id in groups:
            if group_id in learned.step:
                by_step.setdefault(learned.step[group_id], []).append(group_id)
        batches = list(by_step.values())
        incomplete |= {group_id for batch in batches if incomplete & set(batch) for group_id in batch} | (
            groups.keys() - learned.step.keys()
        )
    changed = []
    for batch in batches:
        whole = [groups[group_id] for group_id in batch if group_id not in incomplete]
        before = [_group(own, {row.rollout_id: Value(reward=row.reward, status=row.status) for row in own}, messages) for own in whole]
        after = [_group(own, scores, messages) for own in whole]
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


def _group(rows: Sequence[Row], values: Mapping[str, Value], messages: Mapping[str, Sequence[Said]]) -> RolloutGroup:
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
        rollouts=tuple(_rollout(row, values.get(row.rollout_id, cut_off), messages[row.rollout_id]) for row in rows),
    )


def _rollout(row: Row, value: Value, messages: Sequence[Said]) -> Rollout:
    return Rollout(
        rollout_id=row.rollout_id,
        sample_index=row.sample_index,
        seed=0,
        turns=tuple(_turn(said) for said in messages if said.turn is not None),
        messages=(),
        score=Score(reward=value.reward, status=ScoreStatus(value.status)),
        stop_reason=StopReason(row.stop_reason),
    )


def _turn(said: Said) -> Turn:
    n = said.n_tokens
    completion = Completion(
        token_ids_T=np.zeros(n, np.int32),
        logprobs_T=np.zeros(n, np.float32),
        versions_T=np.zeros(n, np.int32),
        stop_reason=StopReason(said.finish_reason),
    )
    return Turn(context_ids_P=np.zeros(0, np.int32), completion=completion, text="", started=said.started or 0.0, ended=said.ended or 0.0)
