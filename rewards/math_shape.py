r"""The shape of an answer: list, tuple, interval, ratio or a single item. Pure functions.

Items are compared one by one (`rewards/math.py`), since math-verify forgets how often an item stands in a list and takes a
tuple for a set. What no shape describes (matrices, unions, inequalities) stays a single item.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction

from rewards.math_answer import plain_number, read_answer
from rewards.math_text import MAX_DEPTH, closing, depth, joining_words, normalised

MAX_ITEMS = 32
_RELATION = re.compile(r"[<>|]|\\(?:le|leq|ge|geq|lt|gt|ne|neq|cup|cap|setminus|mid|begin|in|notin)(?![a-zA-Z])")
_MEMBER_OF = re.compile(r"[a-zA-Z] ?\\in(?![a-zA-Z]) ?")
_NAMED = re.compile(r"\( ?[a-zA-Z](?: ?, ?[a-zA-Z])+ ?\) ?= ?(?=[(\[])")
_RATIO = re.compile(r" ?(?::|\\text ?\{ ?to ?\}) ?|(?<=[0-9]) to (?=[0-9])")
_TIME = re.compile(
    r"(?:\\text ?\{ ?)?([01]?[0-9]|2[0-4]) ?: ?([0-5][0-9])(?: ?: ?([0-5][0-9]))? ?\}? ?"
    r"(?:(?:\\(?:text|mathrm) ?\{ ?)?([ap])\.? ?m\.? ?\}?)?",
    re.IGNORECASE,
)
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z]) ?")


class Kind(Enum):
    """How the items of an answer belong together."""

    SINGLE = "a single answer"
    LIST = "a list or set"
    """Without brackets or in braces: order does not count."""
    TUPLE = "a tuple"
    """In round brackets. An open interval looks the same and is compared the same way."""
    CLOSED = "a closed interval"
    LEFT_OPEN = "an interval open on the left"
    RIGHT_OPEN = "an interval open on the right"
    RATIO = "a ratio"
    TIME = "a time of day"
    """Of the shape 9:05. Where the reference is no time, it is a ratio."""


_BRACKETS = {"()": Kind.TUPLE, "[]": Kind.CLOSED, "(]": Kind.LEFT_OPEN, "[)": Kind.RIGHT_OPEN}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """An answer and its parts."""

    text: str
    """Normalised."""
    kind: Kind = Kind.SINGLE
    items: tuple["Shape", ...] = ()
    """Empty for a single answer."""
    joined: frozenset[str] = frozenset()
    """Which of `and` and `or` join its relations."""


def shape_of(raw: str) -> Shape:
    """Normalise an answer and take it apart."""
    return replace(read_shape(normalised(raw)), joined=joining_words(raw))


def read_shape(text: str) -> Shape:
    """Take a normalised answer apart, down to its single items. What is nested too deep stays whole."""
    text = _NAMED.sub("", _MEMBER_OF.sub("", text, count=1) if _MEMBER_OF.match(text) else text).strip()
    if not _RELATION.search(text) and depth(text) <= MAX_DEPTH:
        if text[:1] + text[-1:] == "{}" and closing(text, opening=0) == len(text) - 1:
            return read_shape(text[1:-1].strip())
        in_braces = text.startswith("\\{") and text.endswith("\\}") and closing(text, opening=1) == len(text) - 1
        inner = text[2:-2].strip() if in_braces else ""
        pieces = [part for piece in split_items(inner or text) for part in _both_signs(piece)]
        if inner or len(pieces) > 1:
            items = tuple(read_shape(piece) for piece in pieces)
            return items[0] if len(items) == 1 else Shape(text=text, kind=Kind.LIST, items=items)
        if (kind := _BRACKETS.get(text[:1] + text[-1:])) and closing(text, opening=0) == len(text) - 1:
            pieces = list(_at_commas(text[1:-1]))
            if len(pieces) > 1:
                return Shape(text=text, kind=kind, items=tuple(read_shape(piece.strip()) for piece in pieces))
        if match := _TIME.fullmatch(text):
            return Shape(text=text, kind=Kind.TIME, items=tuple(Shape(text=term) for term in match.groups()[:3] if term))
        terms = _RATIO.split(text)
        if len(terms) > 1 and all(terms):
            return Shape(text=text, kind=Kind.RATIO, items=tuple(Shape(text=term) for term in terms))
    return Shape(text=text)


def split_items(text: str) -> list[str]:
    """Items of a list without brackets. `1,000, 2,000` are two: where a comma with a space separates, one without may be thousands'."""
    spaced = list(_at_commas(text, followed_by=" ,"))
    items = []
    for piece in spaced:
        items += [piece] if read_answer(piece.strip()).number is not None else list(_at_commas(piece))
    return [item.strip() for item in items]


def ratio_terms(shape: Shape) -> tuple[Fraction, ...] | None:
    """Terms of a ratio of plain numbers, divided by their sum, so that equal ratios have equal terms; None for anything else.

    A ratio with a 0 is None too, so it is compared term by term: 1:0 and 5:0 are not one.
    """
    terms = [plain_number(item.text) for item in shape.items]
    numbers = [term for term in terms if term]
    total = sum(numbers)
    return None if len(numbers) < len(terms) or total == 0 else tuple(number / total for number in numbers)


def times_equal(gold: Shape, answer: Shape) -> bool:
    """Whether two times are the same; a.m. or p.m. may be missing on either side, and is not converted."""
    (*left, left_half), (*right, right_half) = (_time_terms(shape.text) for shape in (gold, answer))
    return left == right and (not left_half or not right_half or left_half == right_half)


def _time_terms(text: str) -> tuple[int | str, ...]:
    match = _TIME.fullmatch(text)
    assert match is not None
    return (*(int(term) for term in match.groups()[:3] if term), (match[4] or "").casefold())


def _both_signs(item: str) -> list[str]:
    r"""`1 \pm 2` stands for two items."""
    parts = _PLUS_MINUS.split(item)
    return [f"{parts[0]}{sign}{parts[1]}" for sign in "+-"] if len(parts) == 2 else [item]


def _at_commas(text: str, *, followed_by: str = "") -> Iterator[str]:
    """Split at commas and semicolons outside of brackets; with `followed_by` only at those before one of its characters."""
    open_now = start = 0
    for at, letter in enumerate(text):
        open_now += (letter in "([{") - (letter in ")]}")
        if letter in ",;" and open_now == 0 and (not followed_by or letter == ";" or text[at + 1 : at + 2] in followed_by):
            yield text[start:at]
            start = at + 1
    yield text[start:]
