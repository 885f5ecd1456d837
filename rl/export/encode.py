"""Small things that several formats need: strict JSON, times, a tool call's arguments."""

import datetime
import json
from typing import Any

from rl.export.records import LoggedMessage
from rl.log.query import json_line

_DEEPEST = 200
"""Brackets of a JSON text; more could nest deeper than a reader goes."""


def encoded(value: Any) -> str:
    """Strict JSON in ASCII, one line; what is not finite becomes null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json_line(value)


def iso(seconds: float | None) -> str | None:
    """Unix seconds as ISO 8601 in UTC."""
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def nano(seconds: float) -> int:
    """Unix seconds in nanoseconds."""
    return round(seconds * 1e6) * 1000  # a float of unix seconds has no more than microseconds


def call_arguments(message: LoggedMessage) -> dict[str, Any]:
    """Arguments of the message's tool call: the JSON object that the policy wrote, or else its text as `input`."""
    text = message.arguments or ""
    if text.lstrip().startswith("{") and text.count("{") + text.count("[") <= _DEEPEST:
        try:
            parsed = json.loads(text)
            json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()  # lone surrogates and NaN are no JSON for other readers
            if isinstance(parsed, dict):
                return parsed
        except ValueError:
            pass
    return {"input": text}


def call_id(message: LoggedMessage) -> str:
    """Id of the message's tool call, unique within the rollout."""
    return f"call-{message.message_index}"
