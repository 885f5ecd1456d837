"""OpenTelemetry traces by the GenAI semantic conventions, as OTLP/JSON: JSON lines, a TracesData a line.

A rollout is a trace: `invoke_agent` at the root, a `chat` span for each turn of the policy, `execute_tool` for each answer of a tool. What
the conventions have no name for is called `codeworld_rl.*`. A chat span's input messages are those that were new since the turn before.
"""

import hashlib
import importlib.metadata
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.export.encode import call_arguments, call_id, encoded, nano
from rl.export.records import LoggedMessage, LoggedRollout
from rl.export.source import Source

_OWN = "codeworld_rl"
_SERVICE = "codeworld-rl"
_INTERNAL, _CLIENT = 1, 3
_OK, _ERROR = 1, 2
_ROLLOUT = (
    *("run_id", "rollout_id", "group_id", "sample_index", "seed", "task_id", "source", "split", "dispatch_version", "policy_min"),
    *("policy_max", "status", "stop_reason", "reward", "reason", "scorer", "scorer_hash", "env_version", "image_digest"),
)
_LEARNED = ("train_step", "admitted", "drop_reason", "advantage", "kl", "staleness_mean", "n_clipped")
_LINE_SPANS = 512
_LINE_CHARS = 8 << 20

Json = dict[str, Any]


def export(source: Source, out: Path) -> dict[str, int]:
    """Write the file `out`; how many of what it holds."""
    version = importlib.metadata.version(_SERVICE)
    counts = {"traces": 0, "spans": 0}
    waiting: list[Json] = []
    chars = 0
    with out.open("x", encoding="ascii") as stream:
        for rollout in source.rollouts(tokens=False):
            spans = _spans(rollout, model=source.model)
            counts["traces"] += 1
            counts["spans"] += len(spans)
            waiting += spans
            chars += sum(len(message.text) for message in rollout.messages)
            if len(waiting) >= _LINE_SPANS or chars > _LINE_CHARS:
                stream.write(_line(waiting, version=version))
                waiting, chars = [], 0
        if waiting:
            stream.write(_line(waiting, version=version))
    return counts


def _line(spans: Sequence[Json], *, version: str) -> str:
    resource = {"attributes": _attributes({"service.name": _SERVICE, "service.version": version})}
    scope = {"name": "rl.export", "version": version}
    return encoded({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]}) + "\n"


def _spans(rollout: LoggedRollout, *, model: str) -> list[Json]:
    trace = hashlib.sha256(rollout.uid.encode()).hexdigest()[:32]
    root = _root(rollout, trace=trace, model=model)
    children = []
    now = rollout.began
    new: list[LoggedMessage] = []
    caller: LoggedMessage | None = None
    for message, after in itertools.zip_longest(rollout.messages, rollout.messages[1:]):
        if message.turn is not None:
            start = message.started if message.started is not None else now
            now = max(start, message.ended if message.ended is not None else start)
            attributes = _chat(message, new, rollout=rollout, model=model)
            children.append(_span(f"chat {model}", rollout, message, kind=_CLIENT, times=(start, now), attributes=attributes))
            new = []
        elif message.role == "tool":
            until = after.started if after is not None and after.started is not None else now
            attributes = _tool(message, caller, uid=rollout.uid)
            name = f"execute_tool {message.tool or message.name or 'tool'}"
            children.append(_span(name, rollout, message, kind=_INTERNAL, times=(now, max(now, until)), attributes=attributes))
        caller = message if message.tool and message.role == "assistant" else caller
        new.append(message)
    return [root, *({**child, "traceId": trace, "parentSpanId": root["spanId"]} for child in children)]


def _root(rollout: LoggedRollout, *, trace: str, model: str) -> Json:
    row = rollout.row
    attributes: Json = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": _SERVICE,
        "gen_ai.agent.name": row.env,
        "gen_ai.conversation.id": rollout.uid,
        "gen_ai.request.model": model,
        "gen_ai.usage.output_tokens": row.sampled_tokens,
        f"{_OWN}.usage.prompt_tokens": row.prompt_tokens,
        f"{_OWN}.usage.env_tokens": row.env_tokens,
        **{f"{_OWN}.{name}": getattr(row, name) for name in _ROLLOUT},
        f"{_OWN}.graded": rollout.graded,
        f"{_OWN}.reward_parts": encoded(row.parts or {}),
        f"{_OWN}.outcome": row.outcome,
        f"{_OWN}.flags": list(row.flags or ()),
        **{f"{_OWN}.seconds.{name}": seconds for name, seconds in (row.timings or {}).items()},
    }
    if rollout.learned:
        attributes |= {f"{_OWN}.learner.{name}": getattr(rollout.learned[-1], name) for name in _LEARNED}
    if not rollout.graded:
        attributes["error.type"] = row.error_type or row.status
    evaluation = {
        "gen_ai.evaluation.name": row.scorer or "reward",
        "gen_ai.evaluation.score.value": row.reward,
        "gen_ai.evaluation.score.label": row.status,
        "gen_ai.evaluation.explanation": row.reason,
    }
    event = {"timeUnixNano": str(nano(rollout.finished)), "name": "gen_ai.evaluation.result", "attributes": _attributes(evaluation)}
    failed = {"code": _ERROR, "message": f"{row.status}: {row.reason or ''}"}
    times = (rollout.began, rollout.finished)
    span = _span(f"invoke_agent {row.env}", rollout, None, kind=_INTERNAL, times=times, attributes=attributes)
    return {**span, "traceId": trace, "events": [event], "status": {"code": _OK} if rollout.graded else failed}


def _chat(message: LoggedMessage, new: Sequence[LoggedMessage], *, rollout: LoggedRollout, model: str) -> Json:
    row = rollout.row
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _SERVICE,
        "gen_ai.conversation.id": rollout.uid,
        "gen_ai.request.model": model,
        "gen_ai.request.temperature": row.temperature,
        "gen_ai.request.top_p": row.top_p,
        "gen_ai.request.top_k": row.top_k or None,
        "gen_ai.request.max_tokens": row.max_tokens,
        "gen_ai.usage.input_tokens": message.token_start,
        "gen_ai.usage.output_tokens": (message.token_end or 0) - (message.token_start or 0),
        "gen_ai.response.finish_reasons": [message.finish_reason] if message.finish_reason else None,
        "gen_ai.input.messages": encoded([_message(one) for one in new]),
        "gen_ai.output.messages": encoded([{**_message(message), "finish_reason": message.finish_reason or ""}]),
        f"{_OWN}.turn": message.turn,
        f"{_OWN}.policy_version": message.policy_version,
    }


def _tool(message: LoggedMessage, caller: LoggedMessage | None, *, uid: str) -> Json:
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": message.tool or message.name or "tool",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": f"{uid}-{call_id(caller)}" if caller else None,
        "gen_ai.tool.call.arguments": encoded(call_arguments(caller)) if caller else None,
        "gen_ai.tool.call.result": message.text,
        f"{_OWN}.exit_code": message.exit_code,
        f"{_OWN}.characters_left_out": message.left_out or None,
    }


def _message(message: LoggedMessage) -> Json:
    """A message of the conventions' JSON schema: a role and parts."""
    if message.role == "tool":
        return {"role": "tool", "parts": [{"type": "tool_call_response", "response": message.text}]}
    parts: list[Json] = [{"type": "text", "content": message.text}]
    if message.role == "assistant" and message.tool:
        parts.append({"type": "tool_call", "id": call_id(message), "name": message.tool, "arguments": call_arguments(message)})
    return {"role": message.role, "parts": parts}


def _span(
    name: str, rollout: LoggedRollout, message: LoggedMessage | None, *, kind: int, times: tuple[float, float], attributes: Json
) -> Json:
    place = "" if message is None else message.message_index
    return {
        "spanId": hashlib.sha256(f"{rollout.uid}/{place}".encode()).hexdigest()[:16],
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(nano(times[0])),
        "endTimeUnixNano": str(nano(times[1])),
        "attributes": _attributes(attributes),
    }


def _attributes(values: Mapping[str, Any]) -> list[Json]:
    return [{"key": key, "value": _any(value)} for key, value in values.items() if value is not None]


def _any(value: Any) -> Json:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_any(item) for item in value]}}
    return {"stringValue": str(value)}
