"""Records of the ring as rows of the log. Pure: no files, no threads.

A rollout's token stream is, turn by turn, the context the policy was shown and the tokens it sampled.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from environments.records import Problem
from rl.log.schema import LEARNER, ROLLOUTS, TOKENS, TURNS
from rl.log.storage import Piece
from rl.log.text import shorten, storable
from rl.records import Rollout, RolloutGroup, SampleStats, StepStats, TrainSample

_PREVIEW_CHARS = 200


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoggedGroup:
    """A finished group on its way to the log."""

    group: RolloutGroup
    run_id: str
    attempt: int
    logged: float
    """Unix seconds."""


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


def group_pieces(logged: Sequence[LoggedGroup], *, tokens: bool) -> list[Piece]:
    """Parts for finished groups: one a dataset and dispatch version."""
    by_version: dict[int, list[LoggedGroup]] = {}
    for item in logged:
        by_version.setdefault(item.group.dispatch_version, []).append(item)
    pieces = []
    for version, items in sorted(by_version.items()):
        pairs = [(item, rollout) for item in items for rollout in item.group.rollouts]
        hashes = {item.group.group_id: _task_hash(item.group.problem) for item in items}
        tables = {
            "rollouts": pa.Table.from_pylist([_rollout_row(i, r, hashes[i.group.group_id]) for i, r in pairs], schema=ROLLOUTS),
            "turns": pa.Table.from_pylist([row for i, r in pairs for row in _turn_rows(i, r)], schema=TURNS),
        }
        if tokens:
            tables["tokens"] = _tokens_table(pairs)
        pieces += [Piece(dataset=name, dispatch_version=version, table=table) for name, table in tables.items() if table.num_rows]
    return pieces


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


def _rollout_row(item: LoggedGroup, rollout: Rollout, task_hash: str) -> dict[str, Any]:
    group, score = item.group, rollout.score
    task = group.problem.task
    turns = rollout.turns
    prompt = len(turns[0].context_ids_P) if turns else 0
    response = next((m.content for m in reversed(rollout.messages) if m.role == "assistant"), "")
    return {
        "run_id": item.run_id,
        "rollout_id": rollout.rollout_id,
        "attempt": item.attempt,
        "logged": item.logged,
        "group_id": group.group_id,
        "group_index": group.index,
        "sample_index": rollout.sample_index,
        "seed": str(rollout.seed),
        "task_id": storable(task.id),
        "task_hash": task_hash,
        "source": group.problem.source,
        "env": task.env,
        "split": group.split,
        "policy_min": rollout.policy_min,
        "policy_max": rollout.policy_max,
        "status": score.status.value,
        "stop_reason": rollout.stop_reason.value,
        "error_type": rollout.error_type,
        "n_turns": len(turns),
        "prompt_tokens": prompt,
        "sampled_tokens": rollout.n_sampled,
        "env_tokens": sum(len(turn.context_ids_P) for turn in turns) - prompt,
        "reward": score.reward,
        "parts": [(name, {"value": p.value, "weight": p.weight, "reason": storable(p.reason)}) for name, p in score.parts.items()],
        "reason": storable(score.reason),
        "timings": list(rollout.timings.items()),
        "started": turns[0].started if turns else None,
        "ended": turns[-1].ended if turns else None,
        "outcome": json.dumps(dict(rollout.outcome)) if rollout.outcome else None,
        "preview": storable(shorten(response, _PREVIEW_CHARS)),
    }


def _turn_rows(item: LoggedGroup, rollout: Rollout) -> list[dict[str, Any]]:
    """The messages in order; each of the policy's carries its turn. A turn whose message never made it comes last."""
    identity = {"rollout_id": rollout.rollout_id, "attempt": item.attempt, "logged": item.logged}
    turn_of = _turn_of_message(rollout)
    spoken = [(message.role, message.name, message.content, turn_of.get(i)) for i, message in enumerate(rollout.messages)]
    unspoken = [("assistant", None, t.text, i) for i, t in enumerate(rollout.turns) if i not in turn_of.values()]
    spans = _sampled_spans(rollout)
    rows = []
    for index, (role, name, text, turn) in enumerate([*spoken, *unspoken]):
        row = {**identity, "message_index": index, "role": role, "name": name, "text": storable(text), "turn": turn}
        if turn is not None:
            record = rollout.turns[turn]
            start, end = spans[turn]
            row |= {"started": record.started, "ended": record.ended, "token_start": start, "token_end": end}
            row["finish_reason"] = record.completion.stop_reason.value
        rows.append(row)
    return rows


def _turn_of_message(rollout: Rollout) -> dict[int, int]:
    """Message index -> turn, matched by text from the end: the prompt may hold assistant messages the policy never said."""
    found: dict[int, int] = {}
    latest = len(rollout.turns) - 1
    for index in range(len(rollout.messages) - 1, -1, -1):
        message = rollout.messages[index]
        if message.role != "assistant":
            continue
        turn = next((t for t in range(latest, -1, -1) if rollout.turns[t].text == message.content), None)
        if turn is not None:
            found[index] = turn
            latest = turn - 1
    return found


def _sampled_spans(rollout: Rollout) -> list[tuple[int, int]]:
    """[start, end) of each turn's sampled tokens in the token stream."""
    spans, position = [], 0
    for turn in rollout.turns:
        start = position + len(turn.context_ids_P)
        position = start + len(turn.completion.token_ids_T)
        spans.append((start, position))
    return spans


def _tokens_table(pairs: Sequence[tuple[LoggedGroup, Rollout]]) -> pa.Table:
    rollouts = [rollout for _, rollout in pairs]
    columns = {
        **_identity((r.rollout_id, i.attempt, i.logged) for i, r in pairs),
        "token_ids": _lists([_stream(r) for r in rollouts], np.int32),
        "segments": pa.array([_segments(r) for r in rollouts], type=TOKENS.field("segments").type),
        "behaviour_logprob": _lists([_concatenated([t.completion.logprobs_T for t in r.turns]) for r in rollouts], np.float32),
        "version_segments": pa.array([_version_segments(r) for r in rollouts], type=TOKENS.field("version_segments").type),
    }
    return pa.table(columns, schema=TOKENS)


def _learner_table(rows: Sequence[LearnerRow]) -> pa.Table:
    stats = [row.stats for row in rows]
    stale = [
        row.train_step - 1 - _concatenated([sample.versions_T[sample.agent_mask_T] for sample in row.samples]) if row.samples else None
        for row in rows
    ]
    columns = {
        **_identity((row.rollout_id, row.attempt, row.logged) for row in rows),
        "group_id": [row.group_id for row in rows],
        "train_step": [row.train_step for row in rows],
        "admitted": [bool(row.samples) for row in rows],
        "drop_reason": [row.drop_reason for row in rows],
        "advantage": [row.samples[0].advantage if row.samples else None for row in rows],
        "n_tokens": [None if s is None else len(s) for s in stale],
        "n_clipped": [sum(one.n_clipped for one in own) if own else None for own in stats],
        "staleness_mean": [float(s.mean()) if s is not None and len(s) else None for s in stale],
        "staleness_max": [int(s.max()) if s is not None and len(s) else None for s in stale],
        "kl": [_mean_kl(own) if own else None for own in stats],
        "learner_logprob": _lists([_concatenated([one.logprobs_T for one in own]) if own else None for own in stats], np.float32),
        "entropy": _lists([_concatenated([one.entropies_T for one in own]) if own else None for own in stats], np.float16),
    }
    return pa.table(
        {name: pa.array(v, LEARNER.field(name).type) if isinstance(v, list) else v for name, v in columns.items()}, schema=LEARNER
    )


def _mean_kl(stats: Sequence[SampleStats]) -> float:
    """Over the tokens of all samples of a rollout."""
    return float(np.average([one.kl for one in stats], weights=[len(one.logprobs_T) for one in stats]))


def _identity(rows: Iterable[tuple[str, int, float]]) -> dict[str, pa.Array]:
    ids, attempts, logged = zip(*rows, strict=True)
    return {"rollout_id": pa.array(ids, pa.string()), "attempt": pa.array(attempts, pa.int32()), "logged": pa.array(logged, pa.float64())}


def _lists(arrays: Sequence[np.ndarray | None], dtype: type[np.generic]) -> pa.ListArray:
    """One list a row without a Python object a token; None becomes a null row."""
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = _concatenated([array for array in arrays if array is not None]).astype(dtype, copy=False)
    mask = pa.array([array is None for array in arrays], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values), mask=mask)


def _concatenated(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)


def _stream(rollout: Rollout) -> np.ndarray:
    """int32[T]: every token of the rollout."""
    return _concatenated([part for turn in rollout.turns for part in (turn.context_ids_P, turn.completion.token_ids_T)])


def _segments(rollout: Rollout) -> list[dict[str, Any]]:
    segments, position = [], 0
    for turn in rollout.turns:
        shown = "restart" if turn.restarts else "context"
        for kind, array in ((shown, turn.context_ids_P), ("sampled", turn.completion.token_ids_T)):
            if len(array):
                segments.append({"start": position, "len": len(array), "kind": kind})
            position += len(array)
    return segments


def _version_segments(rollout: Rollout) -> list[dict[str, int]]:
    """Run lengths of the policy version over the sampled tokens."""
    versions = _concatenated([turn.completion.versions_T for turn in rollout.turns])
    starts = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist()] if len(versions) else []
    return [{"start": start, "version": int(versions[start])} for start in starts]


def _task_hash(problem: Problem) -> str:
    """16 hex digits over everything that defines the problem, the hidden reference included."""
    content: Mapping[str, Any] = {
        "env": problem.task.env,
        "prompt": [asdict(message) for message in problem.task.prompt],
        "payload": dict(problem.task.payload),
        "reference": dict(problem.reference),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()[:16]
