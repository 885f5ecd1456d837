"""Python values that cross between boxes, as strict tagged JSON. Used on both sides and inside the boxes: standard library only.

    None, bool, int, float, str    themselves; large integers {"int": hex}, NaN and infinity {"float": name}
    list                           [...]
    everything else                an object with one key: tuple, set, frozenset, range, dict (pairs), bytes (hex), complex, type

Only exact built-in types are values. Counter, defaultdict and OrderedDict, which equal a dict of their content, cross as a dict.
An instance of any other class, subclasses of the built-in types included, is opaque: the caller says what stands for it.
"""

import builtins
import collections
import math
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 60
MAX_ITEMS = 500_000
"""Items of all containers of one value together."""
MAX_REPLY_BYTES = 4 << 20
"""One message of a candidate's box."""
MAX_STDOUT_BYTES = 2 << 20
"""What one run of a program may print."""
MAX_INT_BITS = 1_000_000
_PLAIN_INT = 2**53
_SEQUENCES: dict[Any, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}
_MAPPINGS = (dict, collections.Counter, collections.defaultdict, collections.OrderedDict)
_TYPES = {name: kind for name, kind in vars(builtins).items() if type(kind) is type and not issubclass(kind, BaseException)}
_TYPE_NAMES: dict[Any, str] = {kind: name for name, kind in _TYPES.items()}

Opaque = Callable[[Any], Any]
"""Encoding: from an object that is no value to the JSON that stands for it. Decoding: back, from an object with one key."""


class NotAValue(ValueError):
    """Something that cannot cross: too large, too deep, or not of this form."""


def encode(value: Any, *, opaque: Opaque) -> Any:
    """The JSON of `value`; `opaque` is asked for every object that is no plain value. Raises NotAValue."""
    budget = [MAX_ITEMS]

    def walk(item: Any, depth: int) -> Any:
        kind: Any = type(item)
        if item is None or kind in (bool, str):
            return item
        if kind is int:
            return _encode_int(item)
        if kind is float:
            return item if math.isfinite(item) else {"float": repr(item)}
        if kind is bytes:
            return {"bytes": item.hex()}
        if kind is complex:
            return {"complex": [walk(item.real, depth), walk(item.imag, depth)]}
        if kind is range:
            return {"range": [_encode_int(part) for part in (item.start, item.stop, item.step)]}
        if kind is type and item in _TYPE_NAMES:
            return {"type": _TYPE_NAMES[item]}
        if kind is not list and kind not in _SEQUENCES and kind not in _MAPPINGS:
            return opaque(item)
        budget[0] -= len(item)
        if depth >= MAX_DEPTH or budget[0] < 0:
            raise NotAValue("a value that is too deep" if depth >= MAX_DEPTH else "a value with too many items")
        if kind in _MAPPINGS:
            return {"dict": [[walk(key, depth + 1), walk(content, depth + 1)] for key, content in item.items()]}
        items = [walk(content, depth + 1) for content in item]
        return items if kind is list else {_SEQUENCES[kind]: items}

    return walk(value, 0)


def decode(data: Any, *, opaque: Opaque) -> Any:
    """The value of parsed JSON; `opaque` gets every object whose key is no tag of this form. Raises NotAValue."""

    def walk(item: Any, depth: int) -> Any:
        if item is None or type(item) in (bool, int, float, str):
            return item
        if depth > MAX_DEPTH:
            raise NotAValue("a value that is too deep")
        if type(item) is list:
            return [walk(content, depth + 1) for content in item]
        if type(item) is not dict or len(item) != 1:
            raise NotAValue("an object without exactly one tag")
        ((tag, content),) = item.items()
        if tag not in _DECODERS:
            return opaque(item)
        try:
            return _DECODERS[tag](content, lambda inner: walk(inner, depth + 1))
        except NotAValue:
            raise
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise NotAValue(f"a malformed {tag}: {error}") from None

    return walk(data, 0)


def seed_random(source: str) -> None:
    """Start the module `random` from a fixed seed when `source` uses it, so that a verdict repeats."""
    if "random" in source:
        import random  # here, because few need it

        random.seed(0)


def _encode_int(value: int) -> Any:
    if -_PLAIN_INT <= value <= _PLAIN_INT:
        return value
    if value.bit_length() > MAX_INT_BITS:
        raise NotAValue("an integer that is too large")
    return {"int": hex(value)}


def decode_int(content: Any) -> int:
    """The integer of an `int` tag. Raises ValueError or TypeError."""
    return int(content, 16)  # linear, unlike decimal digits


def _exact_items(content: Any, walk: Callable[[Any], Any]) -> list[Any]:
    if type(content) is not list:
        raise NotAValue("items that are no list")
    return [walk(item) for item in content]


def _complex(real: float, imag: float) -> complex:
    return complex(real, imag)


_DECODERS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "int": lambda content, walk: decode_int(content),
    "float": lambda content, walk: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content],
    "bytes": lambda content, walk: bytes.fromhex(content),
    "complex": lambda content, walk: _complex(*_exact_items(content, walk)),
    "range": lambda content, walk: range(*_exact_items(content, walk)),
    "type": lambda content, walk: _TYPES[content],
    "tuple": lambda content, walk: tuple(_exact_items(content, walk)),
    "set": lambda content, walk: set(_exact_items(content, walk)),
    "frozenset": lambda content, walk: frozenset(_exact_items(content, walk)),
    "dict": lambda content, walk: {walk(key): walk(value) for key, value in content},
}
