"""Writes the little TOML that a task folder needs; the standard library only reads it."""

import json
import math
import re
from collections.abc import Mapping

from environments.records import Json

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_table(name: str, values: Mapping[str, Json]) -> str:
    """`[name]` and a line a value; without a header for an empty name. Raises ValueError that names what TOML cannot hold."""
    lines = [f"{_key(key)} = {_value(value, where=f'{name}.{key}' if name else key)}\n" for key, value in values.items()]
    return "".join([f"[{name}]\n" if name else "", *lines])


def _value(value: Json, *, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value, where=where)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; it must be finite")
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(item, where=f"{where}[{at}]") for at, item in enumerate(value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item, where=f'{where}.{key}')}" for key, item in value.items()) + "}"
    raise ValueError(f"{where} is {value!r}, which TOML cannot hold: leave it out, or make it a number, a text, a list or an object")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key, where="a key")


def _string(text: str, *, where: str) -> str:
    """A JSON text is a TOML text, but for DEL, which TOML wants escaped, and pairs of surrogates, which it does not know."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is {text!r}, which is not valid Unicode") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
