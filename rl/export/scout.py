"""Inspect Scout's transcript database: Parquet files with a row a rollout, as `scout db schema` (0.6) describes them.

Scout asks for DuckDB 1, this project for DuckDB 2, so they live in environments of their own: the files are written by pyarrow.
Columns beyond Scout's schema are the transcript's metadata, which its filters can use.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from rl.export.encode import call_arguments, call_id, encoded, iso
from rl.export.parquet import ParquetSeries
from rl.export.records import LoggedMessage, LoggedRollout
from rl.export.source import Source

_STRING, _INT, _FLOAT, _BOOL = pa.large_string(), pa.int64(), pa.float64(), pa.bool_()
SCHEMA = pa.schema(
    [
        *((name, _STRING) for name in ("transcript_id", "source_type", "source_id", "source_uri", "date", "task_set", "task_id")),
        ("task_repeat", _INT),
        *((name, _STRING) for name in ("agent", "agent_args", "model", "model_options", "score", "score_explanation")),
        ("success", _BOOL),
        ("message_count", _INT),
        ("total_time", _FLOAT),
        ("total_tokens", _INT),
        ("error", _STRING),
        ("limit", _STRING),
        ("trust_content", _BOOL),
        *((name, _STRING) for name in ("messages", "events", "timelines", "events_data")),
        ("rollout_id", _STRING),
        ("attempt", _INT),
        ("group_id", _STRING),
        ("group_index", _INT),
        *((name, _STRING) for name in ("seed", "task_hash", "env_version", "image_digest", "split", "status", "stop_reason", "error_type")),
        *((name, _INT) for name in ("dispatch_version", "policy_min", "policy_max", "n_turns")),
        *((name, _INT) for name in ("prompt_tokens", "sampled_tokens", "env_tokens")),
        ("reward", _FLOAT),
        *((name, _STRING) for name in ("reward_parts", "scorer", "scorer_hash", "flags", "flag_reasons", "timings", "outcome")),
        ("train_step", _INT),
        ("admitted", _BOOL),
        ("drop_reason", _STRING),
        *((name, _FLOAT) for name in ("advantage", "kl", "staleness_mean")),
        *((name, _INT) for name in ("n_clipped", "n_masked", "worst_index", "worst_token")),
        *((name, _FLOAT) for name in ("worst_behaviour", "worst_learner")),
        ("learner", _STRING),
    ]
)
"""Up to `events_data` all that Scout names, as it types them: its viewer wants each column. The rest is metadata."""
_LIMITS = {"max_tokens": "token", "context_full": "context", "max_turns": "message", "max_seconds": "time"}
_SAME = (
    *("rollout_id", "attempt", "group_id", "group_index", "seed", "task_hash", "env_version", "image_digest", "split", "status"),
    *("stop_reason", "error_type", "dispatch_version", "policy_min", "policy_max", "n_turns", "prompt_tokens", "sampled_tokens"),
    *("env_tokens", "reward", "scorer", "scorer_hash", "outcome"),
)
_LEARNED = (
    *("train_step", "admitted", "drop_reason", "advantage", "kl", "staleness_mean", "n_clipped", "n_masked"),
    *("worst_index", "worst_token", "worst_behaviour", "worst_learner"),
)


def export(source: Source, out: Path) -> dict[str, int]:
    """Write the folder `out`; how many of what it holds."""
    out.mkdir()
    counts = {"transcripts": 0, "messages": 0}
    with ParquetSeries(out, "transcripts_", SCHEMA) as series:
        for rollout in source.rollouts(tokens=False):
            row = _row(rollout, model=source.model)
            series.add(row, size=len(row["messages"]))
            counts["transcripts"] += 1
            counts["messages"] += row["message_count"]
    return {**counts, "files": series.files}


def _row(rollout: LoggedRollout, *, model: str) -> dict[str, Any]:
    row = rollout.row
    options = {name: getattr(row, name) for name in ("temperature", "top_p", "top_k", "max_tokens")}
    tokens = (row.prompt_tokens, row.sampled_tokens, row.env_tokens)
    last = rollout.learned[-1] if rollout.learned else None
    return {
        "transcript_id": rollout.uid,
        "source_type": "codeworld-rl",
        "source_id": row.run_id,
        "date": iso(rollout.began),
        "task_set": row.source,
        "task_id": row.task_id,
        "task_repeat": row.sample_index + 1,
        "agent": row.env,
        "model": model,
        "model_options": encoded({name: value for name, value in options.items() if value is not None}),
        "score": None if row.reward is None else repr(row.reward),
        "score_explanation": row.reason,
        "success": row.status == "ok" if rollout.graded else None,
        "message_count": len(rollout.messages),
        "total_time": sum((row.timings or {}).values()),
        "total_tokens": sum(n or 0 for n in tokens),
        "error": None if rollout.graded else f"{row.status}: {row.error_type or ''} {row.reason or ''}".strip(),
        "limit": _LIMITS.get(row.stop_reason or ""),
        "trust_content": False,
        "messages": encoded(_messages(rollout)),
        "reward_parts": encoded(row.parts or {}),
        "flags": encoded(list(row.flags or ())),
        "flag_reasons": encoded(row.flag_reasons or {}),
        "timings": encoded(row.timings or {}),
        "learner": encoded([{name: getattr(one, name) for name in _LEARNED} for one in rollout.learned]),
        **{name: getattr(row, name) for name in _SAME},
        **{name: getattr(last, name) if last else None for name in _LEARNED},
    }


def _messages(rollout: LoggedRollout) -> list[dict[str, Any]]:
    """Inspect's chat messages. The text is what was said, whole; calls that were understood stand beside it."""
    found = []
    open_call: LoggedMessage | None = None
    for message in rollout.messages:
        entry: dict[str, Any] = {
            "id": f"{rollout.uid}-{message.message_index}",
            "role": message.role,
            "content": message.text,
            "metadata": _message_metadata(message),
        }
        if message.role == "assistant":
            open_call = message if message.tool else None
            entry |= {"source": "generate" if message.turn is not None else "input", "model": None}
            if message.tool:
                call = {"id": call_id(message), "function": message.tool, "arguments": call_arguments(message), "type": "function"}
                entry["tool_calls"] = [call]
        elif message.role == "tool":
            entry["function"] = message.tool or message.name
            entry["tool_call_id"] = call_id(open_call) if open_call else None
        found.append(entry)
    return found


def _message_metadata(message: LoggedMessage) -> dict[str, Any]:
    fields = ("turn", "token_start", "token_end", "finish_reason", "policy_version", "exit_code", "started", "ended")
    known = {name: value for name in fields if (value := getattr(message, name)) is not None}
    return {**known, **({"characters_left_out": message.left_out} if message.left_out else {})}
