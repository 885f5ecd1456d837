"""Whose advantages change sign under another reward, by the run's own objective and filters."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import Config
from environments.records import Problem, StopReason, Task
from rewards.score import Score, ScoreStatus
from rl.advantage import advantages
from rl.filters import DropReason, is_overlong
from rl.history.appended import BY_SCORER, Scorer, Value, read_scores
from rl.history.recorded import Played, among, read_played
from rl.log.query import RunLog
from rl.records import Completion, Rollout, RolloutGroup, Turn

_BATCH_BASELINE = "reinforce_pp"
"""The objective whose baseline is a whole training batch's."""
_ZERO = 1e-9
"""An advantage below it is 0 up to rounding."""
_GROUPS_AT_ONCE = 1024
"""In memory; a training batch is never parted."""


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
class ScoredGroups:
    """Some groups in which the new scorer has scored at least one rollout, with what advantages depend on."""

    rows: Sequence[Played]
    """All rollouts, in order."""
    scores: Mapping[str, Value]
    """The new scorer's, by rollout."""
    batches: Sequence[Sequence[str]]
    """Ids of the groups that share a baseline: each alone, or with a batch's baseline those of a training step."""
    incomplete: frozenset[str]
    """Groups whose batch has groups without any such score, or that were in none."""
    turns: Mapping[str, Sequence[Spoken]]
    """By rollout of training."""
    gibberish: frozenset[str]
    """Rollouts that the filter of that name left out."""


def read_scored(config: Config, log: RunLog, scorer: Scorer) -> Iterator[ScoredGroups]:
    """The groups in which a scorer has scored, some at a time. Raises QueryError."""
    sql = (
        f"SELECT group_id, min(dispatch_version) FROM rollouts WHERE group_id IN (SELECT group_id FROM scores WHERE {BY_SCORER}) "
        "GROUP BY group_id ORDER BY 2, min(group_index), group_id"
    )
    versions = {str(group): int(version) for group, version in log.query(sql, (scorer.name, scorer.hash)).rows}
    batches, incomplete = _batches(config, log, versions)
    some: list[Sequence[str]] = []
    for batch in batches:
        some.append(batch)
        if sum(map(len, some)) >= _GROUPS_AT_ONCE:
            yield _read(log, scorer, some, versions=versions, incomplete=incomplete)
            some = []
    if some:
        yield _read(log, scorer, some, versions=versions, incomplete=incomplete)


def _batches(config: Config, log: RunLog, groups: Collection[str]) -> tuple[list[list[str]], frozenset[str]]:
    """The groups that share a baseline, and those whose baseline is not known because groups of their batch are missing."""
    if config.objective.name != _BATCH_BASELINE:
        return [[group] for group in groups], frozenset()
    by_step: dict[int, list[str]] = {}
    for group, step in log.query("SELECT group_id, max(train_step) FROM learner WHERE admitted GROUP BY group_id ORDER BY 2, 1").rows:
        by_step.setdefault(int(step), []).append(str(group))
    batches, incomplete = [], set(groups)
    for trained in by_step.values():
        batch = [group for group in trained if group in groups]
        if batch:
            batches.append(batch)
        if len(batch) == len(trained):
            incomplete.difference_update(batch)
    parted = {group for batch in batches for group in batch}
    return [*batches, *([group] for group in groups if group not in parted)], frozenset(incomplete)


def _read(
    log: RunLog, scorer: Scorer, batches: Sequence[Sequence[str]], *, versions: Mapping[str, int], incomplete: frozenset[str]
) -> ScoredGroups:
    groups = {group: versions[group] for batch in batches for group in batch}
    condition, parameters = among("group_id", groups)
    rejected = log.table(f"SELECT rollout_id FROM learner WHERE drop_reason = ? AND {condition}", (DropReason.GIBBERISH.value, *parameters))
    sql = (
        "SELECT rollout_id, token_end - token_start, finish_reason FROM turns WHERE turn IS NOT NULL AND dispatch_version BETWEEN ? AND ? "
        f"AND rollout_id IN (SELECT rollout_id FROM rollouts WHERE split = 'train' AND {condition}) ORDER BY rollout_id, turn"
    )
    turns: dict[str, list[Spoken]] = {}
    for rollout_id, n_tokens, finish_reason in log.table(sql, (*parameters[:2], *parameters)).rows:
        turns.setdefault(rollout_id, []).append(Spoken(n_tokens=n_tokens, finish_reason=finish_reason))
    return ScoredGroups(
        rows=read_played(log, where=condition, parameters=parameters),
        scores=read_scores(log, scorer, groups=groups),
        batches=batches,
        incomplete=incomplete & groups.keys(),
        turns=turns,
        gibberish=frozenset(str(row[0]) for row in rejected.rows),
    )


def changed_signs(config: Config, scored: ScoredGroups) -> Signs:
    """Compare the rewards that were trained on with the new ones, group by group of training.

    An episode that infrastructure cut off has no reward on either side.
    """
    groups: dict[str, list[Played]] = {}
    for row in scored.rows:
        if row.split == "train":
            groups.setdefault(row.group_id, []).append(row)
    unscored = {group_id for group_id, own in groups.items() if any(row.finished and row.rollout_id not in scored.scores for row in own)}
    incomplete = 0
    changed: list[GroupChange] = []
    for batch in scored.batches:
        own = [groups[group_id] for group_id in batch if group_id in groups]
        if unscored & set(batch) or scored.incomplete & set(batch):
            incomplete += len(own)
            continue
        changed += _changes(config, own, scored)
    return Signs(compared=len(groups) - incomplete, incomplete=incomplete, changed=tuple(changed))


def total_signs(parts: Iterable[Signs]) -> Signs:
    """Of several parts of a run."""
    all_of = list(parts)
    changed = [group for part in all_of for group in part.changed]
    changed.sort(key=lambda group: (-group.n_flips, group.dispatch_version, group.group_id))
    return Signs(compared=sum(part.compared for part in all_of), incomplete=sum(part.incomplete for part in all_of), changed=tuple(changed))


def _changes(config: Config, groups: Sequence[Sequence[Played]], scored: ScoredGroups) -> Iterator[GroupChange]:
    """The groups of one batch in which a sign changes."""
    before = [_group(own, {row.rollout_id: Value(reward=row.reward, status=row.status) for row in own}, scored) for own in groups]
    after = [_group(own, scored.scores, scored) for own in groups]
    sides = [_standings(config, side, scored) for side in (before, after)]
    for own, old, new in zip(groups, *sides, strict=True):
        changes = tuple(Change(rollout_id=row.rollout_id, before=b, after=a) for row, b, a in zip(own, old, new, strict=True))
        if any(change.changes for change in changes):
            first = own[0]
            yield GroupChange(
                group_id=first.group_id,
                task_id=first.task_id,
                source=first.source,
                dispatch_version=first.dispatch_version,
                rollouts=changes,
            )


def _standings(config: Config, groups: Sequence[RolloutGroup], scored: ScoredGroups) -> list[list[Standing]]:
    def unfit(rollout: Rollout) -> DropReason | None:
        if rollout.rollout_id in scored.gibberish:
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


def _group(rows: Sequence[Played], values: Mapping[str, Value], scored: ScoredGroups) -> RolloutGroup:
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
        rollouts=tuple(_rollout(row, values.get(row.rollout_id, cut_off), scored.turns.get(row.rollout_id, ())) for row in rows),
    )


def _rollout(row: Played, value: Value, turns: Sequence[Spoken]) -> Rollout:
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
    completion = Completion(  # of which only the length counts: a view of one number takes no room
        token_ids_T=np.broadcast_to(np.int32(0), n),
        logprobs_T=np.broadcast_to(np.float32(0), n),
        versions_T=np.broadcast_to(np.int32(0), n),
        stop_reason=StopReason(spoken.finish_reason),
    )
    return Turn(context_ids_P=np.zeros(0, np.int32), completion=completion, text="", started=0.0, ended=0.0)
