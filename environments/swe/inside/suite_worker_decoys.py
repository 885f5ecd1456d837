"""Values beside the one that a test compares with: an object that is equal to one of them does not know the right one.

Near ones too, so that no size or form tells them from the real one. Standard library only, Python 3.8.
"""

from __future__ import annotations

import gc
import secrets
import string
import sys
from typing import Any

_random = secrets.SystemRandom()
_object_new = object.__new__
_MOST_DEPTH = 3
_MOST_REFERENCES = 20_000
_getrefcount, _is_tracked, _collect = sys.getrefcount, gc.is_tracked, gc.collect


def decoys(value: Any, count: int) -> list[Any]:
    """About `count` things that are not equal to `value`, in random order."""
    found = [stranger(), far(value)]
    found += [near(value) for _ in range(count - 2)]
    _random.shuffle(found)
    return found


def alike(values: list[Any], at: int) -> list[Any]:
    """Make the real value, which is at this place, stand out among the values neither by how many refer to it nor by what the collector
    thinks of it. What is given back is to be held meanwhile."""
    kind, tracked = type(values[at]), _is_tracked(values[at])
    if any(_is_tracked(value) != tracked for value in values if type(value) is kind):
        _collect(0)
    counts = [_getrefcount(value) for value in values]
    most = min(max(counts), _MOST_REFERENCES)
    return [[value] * (most - count) for value, count in zip(values, counts) if count < most]  # noqa: B905  # Python 3.8


def stranger() -> Any:
    """An object that nothing knows."""
    return type(f"Value{secrets.token_hex(4)}", (), {})()


def far(value: Any) -> Any:
    """A value of the same type that nobody has seen before; a stranger where there is none."""
    kind, more = type(value), secrets.randbelow(1 << 40) + (1 << 41)
    if kind in (int, float, complex):
        return value + more
    if kind is str:
        return f"{value}{more:x}"
    if kind in (bytes, bytearray):
        return value + b"%x" % more
    if kind in (list, tuple, set, frozenset):
        return kind([*value, stranger()])
    if kind is dict:
        return {**value, stranger(): more}
    blank = _blank(kind) if getattr(value, "__dict__", None) else None
    return stranger() if blank is None else blank


def near(value: Any, depth: int = 0) -> Any:
    """A value that differs in little."""
    kind = type(value)
    if depth > _MOST_DEPTH or value is None:
        return stranger()
    if kind is bool:
        return not value
    if kind in (int, float, complex):
        return value + _random.choice((-1, 1)) * _random.randint(1, 9)
    if kind is str:
        return _near_text(value)
    if kind in (bytes, bytearray):
        return kind(_near_text(value.decode("latin-1")).encode("latin-1"))
    if kind in (list, tuple) and value:
        at = _random.randrange(len(value))
        return kind([near(one, depth + 1) if index == at else one for index, one in enumerate(value)])
    if kind is dict and value:
        changed = _random.choice(list(value))
        return {name: near(one, depth + 1) if name is changed else one for name, one in value.items()}
    fields = getattr(value, "__dict__", None)
    copied = _blank(kind) if type(fields) is dict and fields else None
    if copied is None or fields is None:
        return far(value)
    try:
        copied.__dict__.update({name: near(one, depth + 1) for name, one in fields.items()})
    except Exception:
        return stranger()
    return copied


def _near_text(text: str) -> str:
    """With another letter or digit somewhere."""
    places = [at for at, one in enumerate(text) if one in string.ascii_letters or one in string.digits]
    if not places:
        return text + _random.choice(string.ascii_lowercase)
    at = _random.choice(places)
    others = string.digits if text[at] in string.digits else string.ascii_lowercase if text[at].islower() else string.ascii_uppercase
    return text[:at] + _random.choice(others.replace(text[at], "")) + text[at + 1 :]


def _blank(kind: type) -> Any | None:
    """An object of a class, without any state."""
    try:
        return _object_new(kind)
    except TypeError:
        return None
