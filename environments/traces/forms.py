"""Reads marshal's form 2 without trusting it: built-in values only, every length checked.

The standard library's own reader may crash on data that was made to crash it.
"""

import struct
from typing import Any

_MAX_DEPTH = 200
_CONSTANTS = {b"N": None, b"T": True, b"F": False, b".": ...}
_CLOSED = object()


class NoForm(ValueError):
    """The bytes are no form of built-in values."""


def read_form(data: bytes) -> Any:
    """The value that `data` is the form of. Raises NoForm."""
    try:
        value, end = _read(data, 0, 0)
    except (struct.error, IndexError, UnicodeDecodeError, TypeError) as error:
        raise NoForm(f"a broken form: {error}") from None
    if end != len(data) or value is _CLOSED:
        raise NoForm("bytes are left over")
    return value


def _read(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    code = data[at : at + 1]
    at += 1
    if code == b"u":
        (size,) = _SIZE.unpack_from(data, at)
        at += 4
        if size < 0 or at + size > len(data):
            raise NoForm("a string without an end")
        return data[at : at + size].decode("utf-8", "surrogatepass"), at + size
    if code == b"i":
        return _SIZE.unpack_from(data, at)[0], at + 4
    if code in _CONSTANTS:
        return _CONSTANTS[code], at
    if code == b"g":
        return _FLOAT.unpack_from(data, at)[0], at + 8
    if code in (b"[", b"("):
        return _read_items(data, at, depth, code)
    if code == b"{":
        return _read_dict(data, at, depth)
    if code == b"s":
        (size,) = _SIZE.unpack_from(data, at)
        at += 4
        if size < 0 or at + size > len(data):
            raise NoForm("bytes without an end")
        return data[at : at + size], at + size
    if code == b"l":
        return _read_long(data, at)
    if code == b"y":
        real, imag = struct.unpack_from("<dd", data, at)
        return complex(real, imag), at + 16
    if code == b"0":
        return _CLOSED, at
    raise NoForm(f"no built-in value begins with {code!r}")


def _read_items(data: bytes, at: int, depth: int, code: bytes) -> tuple[Any, int]:
    (size,) = _SIZE.unpack_from(data, at)
    at += 4
    if depth >= _MAX_DEPTH or size < 0 or size > len(data) - at:
        raise NoForm("a list that is too deep or has no end")
    items = []
    for _ in range(size):
        item, at = _read(data, at, depth + 1)
        if item is _CLOSED:
            raise NoForm("a list that is closed like a dict")
        items.append(item)
    return (items if code == b"[" else tuple(items)), at


def _read_dict(data: bytes, at: int, depth: int) -> tuple[dict[Any, Any], int]:
    if depth >= _MAX_DEPTH:
        raise NoForm("a dict that is too deep")
    found: dict[Any, Any] = {}
    while True:
        key, at = _read(data, at, depth + 1)
        if key is _CLOSED:
            return found, at
        value, at = _read(data, at, depth + 1)
        if value is _CLOSED:
            raise NoForm("a key without a value")
        found[key] = value


def _read_long(data: bytes, at: int) -> tuple[int, int]:
    """Digits of 15 bits, the lowest first; the sign is that of their number."""
    (signed,) = _SIZE.unpack_from(data, at)
    at += 4
    count = abs(signed)
    if count > _MAX_DIGITS:
        raise NoForm("an integer that is too large")
    value = 0
    for number, digit in enumerate(struct.unpack_from(f"<{count}H", data, at)):
        value |= digit << 15 * number
    return (value if signed >= 0 else -value), at + 2 * count


_SIZE = struct.Struct("<i")
_FLOAT = struct.Struct("<d")
_MAX_DIGITS = 20_000
