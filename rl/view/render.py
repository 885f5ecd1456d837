"""Templates, and how values become HTML. Everything that the model said goes through `shown`."""

import datetime
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Context
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from rl.log.text import visible

NOTHING = "\u2013"
"""Shown for a value that is not there."""
HERE = Path(__file__).parent
CUT_CHARS = 20_000
"""Characters of one message on a page; the whole is a download."""
_SUSPECT = re.compile(r"[^\x20-\x7e\n\t]+")
_NUMBER = re.compile(r"-?\d[\d.]*(?:[eE][+-]?\d+)?")
_SPARK_WIDTH, _SPARK_HEIGHT = 120, 28


def environment() -> Environment:
    """Templates with escaping always on."""
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {
        "shown": shown,
        "line": shown_line,
        "num": number,
        "count": count,
        "pct": percent,
        "secs": seconds,
        "ago": ago,
        "clock": clock,
        "signed": signed,
        "json_text": json_text,
        "looks_numeric": looks_numeric,
        "spark": spark,
    }
    return env


def shown(text: str | None, limit: int = CUT_CHARS) -> Markup:
    """Text that a program or a model wrote: escaped, at most `limit` characters, what cannot be seen made visible."""
    cut = (text or "")[:limit]
    pieces: list[Markup] = []
    position = 0
    for match in _SUSPECT.finditer(cut):
        pieces += [escape(cut[position : match.start()]), *_seen(match.group())]
        position = match.end()
    return Markup("").join([*pieces, escape(cut[position:])])


def shown_line(text: str | None, limit: int = 200) -> Markup:
    """The same on one line, with an ellipsis when it was cut."""
    flat = " ".join((text or "")[: 4 * limit].split())
    cut = flat[:limit]
    return shown(cut, limit) + ("…" if len(flat) > limit or len(text or "") > 4 * limit else "")


def _seen(text: str) -> list[Markup]:
    """Runs of other than ASCII text: letters stay, control, format and private characters become marked escapes."""
    found: list[Markup] = []
    for character in text:
        if (escaped := visible(character)) == character and unicodedata.category(character) != "Zs":
            found.append(escape(character))
        elif escaped == character:  # another kind of space
            found.append(Markup('<span class="unseen">{}</span>').format(f"\\u{ord(character):04x}"))
        else:
            found.append(Markup('<span class="unseen">{}</span>').format(escaped))
    return found


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if abs(value) < 10**digits:  # halves up, as the curves' numbers are rounded
        value = float(Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal(value))
    text = f"{abs(value):,.0f}" if abs(value) >= 10**digits else f"{abs(value):.{digits}g}"
    return f"\u2212{text}" if value < 0 else text


def signed(value: float | None) -> str:
    """With its sign, three decimals."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:+.3f}".replace("-", "\u2212")


def count(value: int | None) -> str:
    """A whole number with thousands separated."""
    return NOTHING if value is None else f"{value:,}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{100 * round(value, digits + 2):.{digits}f}%"  # as the command line rounds the rate itself


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 1:
        return f"{1000 * value:.0f} ms" if value >= 0.001 or value == 0 else "<1 ms"
    if value < 90:
        return f"{value:.1f} s"
    if value < 5400:
        return f"{value / 60:.0f} min"
    if value < 48 * 3600:
        return f"{value / 3600:.1f} h"
    return f"{value / 86400:.1f} days"


def ago(value: float) -> str:
    """How long since, for a person."""
    return "just now" if value < 5 else f"{value:.0f} s ago" if value < 90 else f"{seconds(value)} ago"


def clock(unix: float | None) -> str:
    """Date and time in UTC."""
    if unix is None or not math.isfinite(unix):
        return NOTHING
    return datetime.datetime.fromtimestamp(unix, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def json_text(value: Any) -> str:
    """JSON to stand as escaped text in a `<template>`, where scripts of the page read it."""
    return json.dumps(finite(value), separators=(",", ":"), allow_nan=False)


def looks_numeric(text: str) -> bool:
    """Whether a cell holds a number, to set it flush right."""
    return _NUMBER.fullmatch(text) is not None


def finite(value: Any) -> Any:
    """NaN and infinities as None, which JSON has; floats with six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def spark(values: Sequence[float | None]) -> str:
    """Points of an SVG polyline in a box of 120 x 28; at most 120 of them."""
    stride = max(1, len(values) // _SPARK_WIDTH)
    thinned = [value for value in values[::stride] if value is not None and math.isfinite(value)]
    if len(thinned) < 2:
        return ""
    low, high = min(thinned), max(thinned)
    span = high - low or 1.0
    across = (_SPARK_WIDTH - 4) / (len(thinned) - 1)
    return " ".join(
        f"{2 + i * across:.1f},{_SPARK_HEIGHT - 3 - (value - low) / span * (_SPARK_HEIGHT - 6):.1f}" for i, value in enumerate(thinned)
    )
