"""Comparisons of what a candidate returned or printed with what was expected. All of it is data; nothing is evaluated."""

import ast
import math
import warnings
from collections.abc import Collection
from typing import Any

from environments.code_tests.values import NotAValue, decode_int
from environments.records import Json

_MAX_SHOWN_BITS = 10_000
_MAX_LITERAL_CHARS = 20_000
_MAX_LITERAL_DEPTH = 60
_DEFAULT_TOLERANCE = 1e-9


def plain_json(data: Any) -> Json:
    """The JSON value that a function's result of `values.py` stands for: a tuple is a list.

    Raises NotAValue, which names the kind, for anything else. Builds no set and no dict with keys other than text: a hostile
    one could be made slow to build.
    """
    if type(data) is list:
        return [plain_json(item) for item in data]
    if type(data) is not dict:
        return data
    ((tag, content),) = data.items() if len(data) == 1 else (("?", None),)
    if tag == "tuple" and type(content) is list:
        return [plain_json(item) for item in content]
    if tag == "int" and type(content) is str:
        try:
            return decode_int(content)
        except ValueError:
            raise NotAValue("a malformed int") from None
    if tag == "dict" and type(content) is list and all(type(pair) is list and len(pair) == 2 and type(pair[0]) is str for pair in content):
        return {key: plain_json(value) for key, value in content}
    if tag == "float":
        raise NotAValue(f"the float {str(content)[:8]}")
    kind = content[1] if tag == "handle" and type(content) is list and len(content) == 2 else tag
    raise NotAValue(f"a value of type {str(kind)[:60]}")


def same_json(value: Json, expected: Json, *, tolerance: float = 0.0) -> bool:
    """Strict equality of JSON values.

    bool is not a number; an int equals a float of exactly its value; two floats may differ by 1e-9 relative, since the order of
    a sum is the candidate's choice, or by `tolerance` where that is more, then integers as well; containers match item by item;
    NaN and infinity equal nothing.
    """
    if isinstance(expected, bool) or isinstance(value, bool) or expected is None or value is None:
        return value is expected
    if isinstance(expected, int | float) and isinstance(value, int | float):
        if not isinstance(expected, float) or not isinstance(value, float):
            return value == expected or (tolerance > 0 and _near(value, expected, tolerance=tolerance))
        return math.isfinite(value) and (_near(value, expected, tolerance=tolerance) or math.isclose(value, expected, abs_tol=1e-12))
    if isinstance(expected, str) and isinstance(value, str):
        return value == expected
    if isinstance(expected, list) and isinstance(value, list):
        pairs = zip(value, expected, strict=False)
        return len(value) == len(expected) and all(same_json(left, right, tolerance=tolerance) for left, right in pairs)
    if isinstance(expected, dict) and isinstance(value, dict):
        return value.keys() == expected.keys() and all(same_json(value[key], expected[key], tolerance=tolerance) for key in expected)
    return False


def brief(value: Json, *, chars: int = 200) -> str:
    """About the first `chars` characters of `repr(value)`, at little cost whatever the size and depth of the value."""
    return _brief(value, chars)


def _brief(value: Json, room: int) -> str:
    if isinstance(value, str):
        return repr(value[:room])
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN_BITS:
        return "a huge integer"
    if not isinstance(value, list | dict):
        return repr(value)
    shown = ""
    for item in value:
        if len(shown) >= room:
            break
        entry = f"{_brief(item, room - len(shown))}: " if isinstance(value, dict) else ""
        content = value[item] if isinstance(value, dict) else item
        shown += (", " if shown else "") + entry + (_brief(content, room - len(shown) - 1) if len(shown) + 1 < room else "...")
    return f"{{{shown}}}" if isinstance(value, dict) else f"[{shown}]"


def output_difference(printed: str, expected: str, *, tolerance: float) -> str:
    """Where two outputs differ; empty when they agree.

    Compared line by line as words: the amount of white space between words, blank lines at both ends and line ends do not count.
    With a tolerance, two words that are both numbers may differ by it, absolute or relative.
    """
    got, wanted = _lines(printed), _lines(expected)
    for number, (line, wanted_line) in enumerate(zip(got, wanted, strict=False), start=1):
        left, right = line.split(), wanted_line.split()
        if len(left) != len(right) or not all(_same_word(a, b, tolerance=tolerance) for a, b in zip(left, right, strict=True)):
            return f"line {number} is {_cut(' '.join(left))!r} instead of {_cut(' '.join(right))!r}"
    return "" if len(got) == len(wanted) else f"{len(got)} lines instead of {len(wanted)}"


def literal(text: str) -> Any:
    """The value of a Python literal. Raises ValueError for anything else, and for what is too long or too deep to read safely."""
    if len(text) > _MAX_LITERAL_CHARS or "\0" in text:
        raise ValueError("too long for a literal")
    depth = deepest = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        deepest = max(deepest, depth)
    if deepest > _MAX_LITERAL_DEPTH or any(sign * 30 in text.replace(" ", "") for sign in "+-~"):
        raise ValueError("too deep for a literal")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the text
            return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"no literal: {type(error).__name__}") from None


def same_literal(text: str, expected: str) -> bool:
    """Whether two texts stand for equal values of equal types; as text where one of them is no literal."""
    try:
        return _same_value(literal(text), literal(expected))
    except ValueError:
        return text.strip() == expected.strip()


def _same_value(value: Any, expected: Any) -> bool:
    if type(value) is not type(expected):
        return False
    if type(value) in (list, tuple):
        return len(value) == len(expected) and all(_same_value(left, right) for left, right in zip(value, expected, strict=True))
    if type(value) is dict:
        return _same_members(value, expected) and all(_same_value(value[key], expected[key]) for key in value)
    if type(value) is set:
        return _same_members(value, expected)
    return bool(value == expected)


def _same_members(value: Collection[Any], expected: Collection[Any]) -> bool:
    """Sets, or keys: each with an equal one of the same type on the other side."""
    theirs = {member: member for member in expected}
    return len(value) == len(theirs) and all(member in theirs and _same_value(member, theirs[member]) for member in value)


def _lines(text: str) -> list[str]:
    text = text.strip()
    return text.split("\n") if text else []


def _same_word(word: str, expected: str, *, tolerance: float) -> bool:
    if word == expected:
        return True
    if not tolerance or len(word) > 60:
        return False
    try:
        return _near(float(word), float(expected), tolerance=tolerance)
    except ValueError:
        return False


def _near(value: float, expected: float, *, tolerance: float) -> bool:
    try:
        return math.isfinite(value) and math.isclose(value, expected, rel_tol=0.0, abs_tol=_margin(expected, tolerance=tolerance))
    except OverflowError:  # an integer beyond the floats
        return False


def _margin(expected: float, *, tolerance: float) -> float:
    """The allowed difference: relative to the expected value, so that the candidate's own value cannot widen it."""
    return max(_DEFAULT_TOLERANCE * abs(expected), tolerance, tolerance * abs(expected))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
