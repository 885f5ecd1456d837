"""ATIF v1.7, the Agent Trajectory Interchange Format: JSON lines, one trajectory a line.

The specification is rfcs/0001-trajectory-format.md of github.com/harbor-framework/harbor. A line by itself is a `trajectory.json`. Each
step of the policy carries the token ids of its whole prompt and of its completion, and the behaviour logprobs, so that nothing has to be
tokenized again.
"""

import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.export.encode import call_arguments, call_id, encoded, iso
from rl.export.records import Learned, LoggedMessage, LoggedRollout, LoggedTokens
from rl.export.source import Source

VERSION = "ATIF-v1.7"
_AGENT = "codeworld-rl"
_EXTRA = (
    *("run_id", "rollout_id", "group_id", "group_index", "sample_index", "seed", "task_id", "task_hash", "source", "env", "env_version"),
    *("image_digest", "split", "dispatch_version", "policy_min", "policy_max", "status", "stop_reason", "error_type", "reward"),
    *("reason", "scorer", "scorer_hash", "temperature", "top_p", "top_k", "max_tokens", "tokenizer_hash", "template_hash", "outcome"),
)
_LEARNED = ("train_step", "admitted", "drop_reason", "advantage", "n_tokens", "n_clipped", "n_masked", "staleness_mean", "kl")
_SOURCES = {"system": "system", "user": "user", "assistant": "agent"}

Json = dict[str, Any]


def export(source: Source, out: Path) -> dict[str, int]:
    """Write the file `out`; how many of what it holds."""
    version = importlib.metadata.version(_AGENT)
    counts = {"trajectories": 0, "steps": 0, "completion_tokens": 0}
    with out.open("x", encoding="ascii") as stream:
        for rollout in source.rollouts(tokens=True):
            document = _trajectory(rollout, model=source.model, version=version)
            stream.write(encoded(document) + "\n")
            counts["trajectories"] += 1
            counts["steps"] += len(document["steps"])
            counts["completion_tokens"] += sum(len(step.get("metrics", {}).get("completion_token_ids", ())) for step in document["steps"])
    return counts


def _trajectory(rollout: LoggedRollout, *, model: str, version: str) -> Json:
    row = rollout.row
    steps = _steps(rollout)
    extra = {name: value for name in _EXTRA if (value := getattr(row, name)) is not None}
    extra |= {
        "graded": rollout.graded,
        "reward_parts": row.parts or {},
        "flags": row.flag_reasons or {},
        "timings": row.timings or {},
        "learner": [_learned(one) for one in rollout.learned],
        "tokens": "in the steps' metrics" if rollout.tokens else "not in the log",
    }
    return {
        "schema_version": VERSION,
        "session_id": rollout.uid,
        "trajectory_id": rollout.uid,
        "agent": {"name": _AGENT, "version": version, "model_name": model, "extra": {"env": row.env}},
        "steps": steps,
        **({} if rollout.messages else {"notes": "The rollout ended before its first message; its only step says why."}),
        "final_metrics": {
            "total_prompt_tokens": sum(step["metrics"]["prompt_tokens"] for step in steps if "metrics" in step),
            "total_completion_tokens": sum(step["metrics"]["completion_tokens"] for step in steps if "metrics" in step),
            "total_steps": len(steps),
        },
        "extra": extra,
    }


def _learned(one: Learned) -> Json:
    return {name: value for name in _LEARNED if (value := getattr(one, name)) is not None}


def _steps(rollout: LoggedRollout) -> list[Json]:
    """Tool messages are observations of the step that called; all other messages are steps."""
    steps: list[Json] = []
    caller: LoggedMessage | None = None
    for message in rollout.messages:
        if message.role == "tool":
            if not steps:
                steps.append({"step_id": 1, "source": "system", "message": ""})
            called = caller is not None and "tool_calls" in steps[-1]
            result = _result(message, call=call_id(caller) if caller is not None and called else None)
            steps[-1].setdefault("observation", {"results": []})["results"].append(result)
            continue
        step: Json = {
            "step_id": len(steps) + 1,
            "source": _SOURCES.get(message.role, "system"),
            "message": message.text,
        }
        if when := iso(message.ended):
            step["timestamp"] = when
        caller = message if message.role == "assistant" else None
        if message.role == "assistant":
            step |= _agent_fields(message, tokens=rollout.tokens)
        if extra := _extra(message):
            step["extra"] = extra
        steps.append(step)
    return steps or [{"step_id": 1, "source": "system", "message": f"{rollout.row.status}: {rollout.row.reason or ''}"}]


def _agent_fields(message: LoggedMessage, *, tokens: LoggedTokens | None) -> Json:
    fields: Json = {}
    if message.tool:
        call = {"tool_call_id": call_id(message), "function_name": message.tool, "arguments": call_arguments(message)}
        fields["tool_calls"] = [call]
    if message.turn is None:
        return {**fields, "is_copied_context": True}  # the prompt's, not the policy's
    return {**fields, "llm_call_count": 1, "metrics": _metrics(message, tokens)}


def _metrics(message: LoggedMessage, tokens: LoggedTokens | None) -> Json:
    start, end = message.token_start or 0, message.token_end or 0
    if tokens is None:
        return {"prompt_tokens": start, "completion_tokens": end - start}
    first = max((s["start"] for s in tokens.segments if s["kind"] == "restart" and s["start"] <= start), default=0)
    sampled = sum(min(s["len"], max(0, start - s["start"])) for s in tokens.segments if s["kind"] == "sampled")
    logprobs = tokens.behaviour_logprob[sampled : sampled + end - start]
    finite = all(map(math.isfinite, logprobs))
    return {
        "prompt_tokens": start - first,
        "completion_tokens": end - start,
        "prompt_token_ids": tokens.token_ids[first:start],
        "completion_token_ids": tokens.token_ids[start:end],
        **({"logprobs": logprobs} if finite else {}),
        "extra": {
            "logprob_kind": tokens.logprob_kind,
            "policy_versions": _versions(tokens.version_segments, start=sampled, end=sampled + end - start),
            **({} if finite else {"logprobs": logprobs}),
        },
    }


def _versions(segments: Sequence[Any], *, start: int, end: int) -> list[Json]:
    """Policy versions of the completion's tokens: each from a token of the completion on."""
    before = [s for s in segments if s["start"] <= start][-1:]
    inside = [s for s in segments if start < s["start"] < end]
    return [{"start": max(0, s["start"] - start), "version": s["version"]} for s in (*before, *inside)]


def _result(message: LoggedMessage, *, call: str | None) -> Json:
    extra = {**({"tool": message.tool} if message.tool else {}), **_extra(message)}
    return {
        **({"source_call_id": call} if call else {}),
        "content": message.text,
        **({"extra": extra} if extra else {}),
    }


def _extra(message: LoggedMessage) -> Json:
    fields = ("turn", "finish_reason", "policy_version", "exit_code", "started", "ended")
    known = {name: value for name in fields if (value := getattr(message, name)) is not None}
    if message.role not in (*_SOURCES, "tool"):
        known["role"] = message.role
    return {**known, **({"characters_left_out": message.left_out} if message.left_out else {})}
