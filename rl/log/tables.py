"""Records of the ring as rows of the log. Pure: no files, no threads.

A rollout's token stream is, turn by turn, the context the policy was shown and the tokens it sampled.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from environments.log_text import shortened
from environments.records import Message, Problem
from rl.log.calls import tool_call
from rl.log.columns import concatenated, identity, lists
from rl.log.schema import ROLLOUTS, SCORES, TOKENS, TURNS
from rl.log.storage import Piece
from rl.log.text import shorten, storable
from rl.records import Rollout, RolloutGroup, Sampling, Turn

LONG_TEXT = 16_384
"""Characters. A longer text that the policy did not write is kept once, as a blob; its row keeps the beginning and the end."""
_SHOWN_CHARS = 8_192
_LOG_CHARS = 262_144
"""Characters of a score's log that are kept: three quarters of its beginning, a quarter of its end."""
ROW_LOG_CHARS = 4_096
"""Of these what stands in the row; a longer log is a blob. Most are shorter, and a file for each would cost more than all other writing."""
_PREVIEW_CHARS = 200
KeepBlob = Callable[[str], str | None]
"""Keeps a text as a blob and returns its reference; None when it had to be dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What a rollout worker samples with; the same for all of its rollouts."""

    tokenizer_hash: str | None = None
    template_hash: str | None = None
    logprob_kind: str = "raw"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoggedGroup:
    """A finished group on its way to the log."""

    group: RolloutGroup
    run_id: str
    attempt: int
    logged: float
    """Unix seconds."""
    provenance: Provenance = Provenance()
    tokens: bool = True
    """Whether its `tokens` are written."""
    flags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By rollout id: the flags and why they were raised."""


def group_pieces(logged: Sequence[LoggedGroup], *, keep: KeepBlob) -> list[Piece]:
    """Parts for finished groups: one a dataset and dispatch version."""
    by_version: dict[int, list[LoggedGroup]] = {}
    for item in logged:
        by_version.setdefault(item.group.dispatch_version, []).append(item)
    pieces = []
    for version, items in sorted(by_version.items()):
        pairs = [(item, rollout) for item in items for rollout in item.group.rollouts]
        hashes = {item.group.group_id: task_hash(item.group.problem) for item in items}
        tables = {
            "rollouts": pa.Table.from_pylist([_rollout_row(i, r, hashes[i.group.group_id]) for i, r in pairs], schema=ROLLOUTS),
            "turns": pa.Table.from_pylist([row for i, r in pairs for row in _turn_rows(i, r, keep=keep)], schema=TURNS),
            "scores": pa.Table.from_pylist([_score_row(i, r, keep=keep) for i, r in pairs], schema=SCORES),
        }
        if with_tokens := [(item, rollout) for item, rollout in pairs if item.tokens]:
            tables["tokens"] = _tokens_table(with_tokens)
        pieces += [Piece(dataset=name, dispatch_version=version, table=table) for name, table in tables.items() if table.num_rows]
    return pieces


def _rollout_row(item: LoggedGroup, rollout: Rollout, task_hash: str) -> dict[str, Any]:
    group, score = item.group, rollout.score
    task = group.problem.task
    turns = rollout.turns
    prompt = len(turns[0].context_ids_P) if turns else 0
    response = next((m.content for m in reversed(rollout.messages) if m.role == "assistant"), "")
    flags = item.flags.get(rollout.rollout_id, {})
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
        "env_version": group.env_version or None,
        "image_digest": storable(rollout.sandbox.image_digest) or None,
        "sandbox_refs": [storable(ref) for ref in rollout.sandbox.refs] or None,
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
        "parts": _parts(rollout),
        "reason": storable(score.reason),
        "scorer": group.scorer or None,
        "scorer_hash": group.scorer_hash or None,
        **_sampling(group.sampling),
        "tokenizer_hash": item.provenance.tokenizer_hash,
        "template_hash": item.provenance.template_hash,
        "flags": list(flags),
        "flag_reasons": [(name, storable(reason)) for name, reason in flags.items()],
        "timings": list(rollout.timings.items()),
        "started": turns[0].started if turns else None,
        "ended": turns[-1].ended if turns else None,
        "outcome": json.dumps(dict(rollout.outcome)) if rollout.outcome else None,
        "preview": storable(shorten(response, _PREVIEW_CHARS)),
    }


def _sampling(sampling: Sampling | None) -> dict[str, Any]:
    if sampling is None:
        return {}
    return {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "max_tokens")}


def _parts(rollout: Rollout) -> list[tuple[str, dict[str, Any]]]:
    parts = rollout.score.parts
    return [(storable(name), {"value": p.value, "weight": p.weight, "reason": storable(p.reason)}) for name, p in parts.items()]


def _score_row(item: LoggedGroup, rollout: Rollout, *, keep: KeepBlob) -> dict[str, Any]:
    score = rollout.score
    return {
        "rollout_id": rollout.rollout_id,
        "attempt": item.attempt,
        "logged": item.logged,
        "group_id": item.group.group_id,
        "scorer": item.group.scorer or None,
        "scorer_hash": item.group.scorer_hash or None,
        "live": True,
        "scored": item.logged,
        "value": score.reward,
        "status": score.status.value,
        "components": _parts(rollout),
        "reason": storable(score.reason),
        **log_columns(score.log, keep=keep),
    }


def log_columns(log: str, *, keep: KeepBlob) -> dict[str, str | None]:
    """How a score's log stands in its row of `scores`, and what of a longer one is kept."""
    return {
        "log": storable(shortened(log, chars=ROW_LOG_CHARS)) or None,
        "log_ref": keep(shortened(log, chars=_LOG_CHARS)) if len(log) > ROW_LOG_CHARS else None,
    }


def _turn_rows(item: LoggedGroup, rollout: Rollout, *, keep: KeepBlob) -> list[dict[str, Any]]:
    """The messages in order; each of the policy's carries its turn. A turn whose message never made it comes last."""
    identity = {"rollout_id": rollout.rollout_id, "attempt": item.attempt, "logged": item.logged}
    turn_of = _turn_of_message(rollout)
    spoken = [(message, turn_of.get(i)) for i, message in enumerate(rollout.messages)]
    known = set(turn_of.values())
    unspoken = [(Message(role="assistant", content=t.text), i) for i, t in enumerate(rollout.turns) if i not in known]
    spans = _sampled_spans(rollout)
    rows = []
    for index, (message, turn) in enumerate([*spoken, *unspoken]):
        row: dict[str, Any] = {**identity, "message_index": index, "role": message.role, "name": message.name, "turn": turn}
        if turn is None:
            row |= _shown(message, keep=keep)
        else:
            row |= _said(message.content, rollout.turns[turn], span=spans[turn])
        rows.append(row)
    return rows


def _shown(message: Message, *, keep: KeepBlob) -> dict[str, Any]:
    """A message that the policy was shown."""
    text = message.content
    row: dict[str, Any] = {"text": storable(text), "text_chars": len(text)}
    if len(text) > LONG_TEXT:
        row["stdout_ref"] = keep(text)
        row["text"] = storable(shortened(text, chars=_SHOWN_CHARS))
    if message.role == "tool":
        row |= {"tool": message.name, "exit_code": message.exit_code}
    return row


def _said(text: str, turn: Turn, *, span: tuple[int, int]) -> dict[str, Any]:
    """A turn of the policy."""
    call = tool_call(text)
    versions = turn.completion.versions_T
    return {
        "text": storable(text),
        "text_chars": len(text),
        "tool": storable(call.name) if call else None,
        "arguments": storable(call.body) if call else None,
        "started": turn.started,
        "ended": turn.ended,
        "token_start": span[0],
        "token_end": span[1],
        "finish_reason": turn.completion.stop_reason.value,
        "policy_version": int(versions[0]) if len(versions) else None,
    }


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
        **identity((r.rollout_id, i.attempt, i.logged) for i, r in pairs),
        "token_ids": lists([_stream(r) for r in rollouts], np.int32),
        "segments": pa.array([_segments(r) for r in rollouts], type=TOKENS.field("segments").type),
        "behaviour_logprob": lists([concatenated([t.completion.logprobs_T for t in r.turns]) for r in rollouts], np.float32),
        "logprob_kind": pa.array([item.provenance.logprob_kind for item, _ in pairs], pa.string()),
        "version_segments": pa.array([_version_segments(r) for r in rollouts], type=TOKENS.field("version_segments").type),
    }
    return pa.table(columns, schema=TOKENS)


def _stream(rollout: Rollout) -> np.ndarray:
    """int32[T]: every token of the rollout."""
    return concatenated([part for turn in rollout.turns for part in (turn.context_ids_P, turn.completion.token_ids_T)])


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
    versions = concatenated([turn.completion.versions_T for turn in rollout.turns])
    starts = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist()] if len(versions) else []
    return [{"start": start, "version": int(versions[start])} for start in starts]


def task_hash(problem: Problem) -> str:
    """16 hex digits over everything that defines the problem, the hidden reference included."""
    content: Mapping[str, Any] = {
        "env": problem.task.env,
        "prompt": [{"role": m.role, "content": m.content, "name": m.name} for m in problem.task.prompt],
        "payload": dict(problem.task.payload),
        "reference": dict(problem.reference),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()[:16]
