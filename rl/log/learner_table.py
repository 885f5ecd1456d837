"""What a training step did with each rollout, as rows of the `learner` dataset. Pure: no files, no threads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rl.log.columns import concatenated, identity, lists
from rl.log.schema import LEARNER
from rl.log.storage import Piece
from rl.records import Rollout, RolloutGroup, SampleStats, StepStats, TrainSample


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LearnerRow:
    """What one training step did with one rollout."""

    rollout_id: str
    group_id: str
    dispatch_version: int
    attempt: int
    logged: float
    train_step: int
    drop_reason: str | None
    """None when the rollout was trained on."""
    samples: tuple[TrainSample, ...]
    """Empty when it was not; several when the chat template made it start anew."""
    stats: tuple[SampleStats, ...]


def learner_rows(
    *,
    attempt: int,
    logged: float,
    train_step: int,
    groups: Sequence[RolloutGroup],
    samples: Sequence[TrainSample],
    stats: Sequence[StepStats],
    rejected: Sequence[tuple[RolloutGroup, str]],
) -> list[LearnerRow]:
    """A row for every rollout that reached the buffer since the last step: trained, left out or rejected with its group."""
    by_id: dict[str, list[TrainSample]] = {}
    for sample in samples:
        by_id.setdefault(sample.rollout_id, []).append(sample)
    seen = {(one.rollout_id, one.part): one for rank in stats for one in rank.samples}
    rows = []
    for group, rejection in [*((group, None) for group in groups), *rejected]:
        trained = any(rollout.rollout_id in by_id for rollout in group.rollouts)
        for rollout in group.rollouts:
            own = tuple(by_id.get(rollout.rollout_id, ())) if rejection is None else ()
            rows.append(
                LearnerRow(
                    rollout_id=rollout.rollout_id,
                    group_id=group.group_id,
                    dispatch_version=group.dispatch_version,
                    attempt=attempt,
                    logged=logged,
                    train_step=train_step,
                    drop_reason=None if own else rejection or _left_out(rollout, group_trained=trained),
                    samples=own,
                    stats=tuple(seen[key] for sample in own if (key := (sample.rollout_id, sample.part)) in seen),
                )
            )
    return rows


def learner_pieces(rows: Sequence[LearnerRow]) -> list[Piece]:
    """Parts for learner rows: one a dispatch version."""
    by_version: dict[int, list[LearnerRow]] = {}
    for row in rows:
        by_version.setdefault(row.dispatch_version, []).append(row)
    return [Piece(dataset="learner", dispatch_version=v, table=_learner_table(rows)) for v, rows in sorted(by_version.items())]


def _left_out(rollout: Rollout, *, group_trained: bool) -> str:
    """Why a rollout of an accepted group carries no gradient."""
    if rollout.score.reward is None:
        return rollout.score.status.value
    if rollout.n_sampled == 0:
        return "no_tokens"
    return "left_out" if group_trained else "zero_variance"


def _learner_table(rows: Sequence[LearnerRow]) -> pa.Table:
    stats = [row.stats for row in rows]
    stale = [
        row.train_step - 1 - concatenated([sample.versions_T[sample.agent_mask_T] for sample in row.samples]) if row.samples else None
        for row in rows
    ]
    columns = {
        **identity((row.rollout_id, row.attempt, row.logged) for row in rows),
        "group_id": [row.group_id for row in rows],
        "train_step": [row.train_step for row in rows],
        "admitted": [bool(row.samples) for row in rows],
        "drop_reason": [row.drop_reason for row in rows],
        "advantage": [row.samples[0].advantage if row.samples else None for row in rows],
        "n_tokens": [None if s is None else len(s) for s in stale],
        "n_clipped": [sum(one.n_clipped for one in own) if own else None for own in stats],
        "n_masked": [None if s is None else len(s) - sum(len(one.logprobs_T) for one in own) for s, own in zip(stale, stats, strict=True)],
        "staleness_mean": [float(s.mean()) if s is not None and len(s) else None for s in stale],
        "staleness_max": [int(s.max()) if s is not None and len(s) else None for s in stale],
        "kl": [_mean_kl(own) if own else None for own in stats],
        **_worst_tokens(rows),
        "learner_logprob": lists([concatenated([one.logprobs_T for one in own]) if own else None for own in stats], np.float32),
        "entropy": lists([concatenated([one.entropies_T for one in own]) if own else None for own in stats], np.float16),
    }
    return pa.table(
        {name: pa.array(v, LEARNER.field(name).type) if isinstance(v, list) else v for name, v in columns.items()}, schema=LEARNER
    )


def _mean_kl(stats: Sequence[SampleStats]) -> float:
    """Over the tokens of all samples of a rollout."""
    return float(np.average([one.kl for one in stats], weights=[len(one.logprobs_T) for one in stats]))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Worst:
    """The sampled token on which generator and learner differ most."""

    index: int
    """Into the rollout's `learner_logprob`."""
    token: int
    behaviour: float
    learner: float


def _worst_tokens(rows: Sequence[LearnerRow]) -> dict[str, list[float | None]]:
    worst = [_worst(row) for row in rows]
    names = ("index", "token", "behaviour", "learner")
    return {f"worst_{name}": [None if one is None else getattr(one, name) for one in worst] for name in names}


def _worst(row: LearnerRow) -> _Worst | None:
    samples = {sample.part: sample for sample in row.samples}
    found, offset = None, 0
    for one in row.stats:
        sample = samples[one.part]
        behaviour = sample.behaviour_logprobs_T[sample.agent_mask_T]
        if len(behaviour) == len(one.logprobs_T) and len(behaviour):
            at = int(np.argmax(np.abs(behaviour - one.logprobs_T)))
            token = int(sample.token_ids_T[sample.agent_mask_T][at])
            this = _Worst(index=offset + at, token=token, behaviour=float(behaviour[at]), learner=float(one.logprobs_T[at]))
            if found is None or abs(this.behaviour - this.learner) > abs(found.behaviour - found.learner):
                found = this
        offset += len(one.logprobs_T)
    return found
