"""How hard a program is to follow, measured on its trace.

| level | events | loop iterations | calls | values |
|---|---|---|---|---|
| trivial | 8 | 0 | 0 | numbers, booleans, None |
| easy | 20 | 5 | 2 | and strings, flat containers |
| medium | 60 | 20 | 10 | and containers in containers |
| hard | 250 | 80 | 50 | and objects |
| extreme | more | more | more | |

A program has the lowest level whose limits, all of them, it keeps.
"""

import ast
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from environments.traces.records import EventKind, Trace, TraceEvent

LEVELS = ("trivial", "easy", "medium", "hard", "extreme")
"""Names, the easiest first."""


class ValueKind(IntEnum):
    """What a repr shows, the simplest first."""

    NUMBER = 0
    """Or a boolean, or None."""
    TEXT = 1
    """A string or bytes."""
    FLAT = 2
    """A list, tuple, dict or set of numbers and strings."""
    NESTED = 3
    """A container in a container."""
    OBJECT = 4
    """Anything else: instances, functions, iterators."""


_LIMITS = {
    "trivial": (8, 0, 0, ValueKind.NUMBER),
    "easy": (20, 5, 2, ValueKind.FLAT),
    "medium": (60, 20, 10, ValueKind.NESTED),
    "hard": (250, 80, 50, ValueKind.OBJECT),
}
"""By level: most events, iterations and calls, and the kind of value that is allowed at most."""
_NUMBER = re.compile(r"None|True|False|[-+]?\d[\d.e+\-]*j?|[-+]?(inf|nan)|\([\d.e+\-naif]+j\)")
_STRING = re.compile(r"""b?'(?:[^'\\]|\\.)*'|b?"(?:[^"\\]|\\.)*\"""")
_OPENERS, _CLOSERS = "[({", "])}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difficulty:
    """Measures of one trace."""

    events: int
    iterations: int
    """How often a loop began its body. Comprehensions have no lines of their own and do not count."""
    calls: int
    """Of functions of the program, the entry's own and those of comprehensions left out; the resumption of a generator is one."""
    values: ValueKind
    """Of the most complex local or value."""

    @property
    def level(self) -> str:
        """One of LEVELS."""
        measured = self.events, self.iterations, self.calls, self.values
        for level, limits in _LIMITS.items():
            if all(found <= limit for found, limit in zip(measured, limits, strict=True)):
                return level
        return LEVELS[-1]


def measure(trace: Trace) -> Difficulty:
    """The difficulty of a trace. Of one that was cut off, that of what is there."""
    starts = [event for event in trace.events if event.kind is EventKind.CALL and ".0" not in (event.locals or {})]
    return Difficulty(
        events=len(trace.events),
        iterations=_iterations(trace),
        calls=max(0, len(starts) - 1),
        values=max(map(value_kind, _shown(trace.events)), default=ValueKind.NUMBER),
    )


def check_levels(levels: Iterable[str], *, where: str) -> tuple[str, ...]:
    """`levels` if all are of LEVELS. Raises ValueError that begins with `where`."""
    found = tuple(levels)
    for level in found:
        if level not in LEVELS:
            raise ValueError(f"{where}: {level!r} is no level of difficulty; the levels are {', '.join(LEVELS)}")
    return found


def value_kind(text: str) -> ValueKind:
    """The kind of value whose repr is `text`."""
    if _NUMBER.fullmatch(text):
        return ValueKind.NUMBER
    if _STRING.fullmatch(text):
        return ValueKind.TEXT
    if text[:1] not in _OPENERS or text[-1:] not in _CLOSERS:
        return ValueKind.OBJECT
    bare = _STRING.sub("", text)
    if "<" in bare or re.search(r"[A-Za-z_]\w*[(\[{]", bare):
        return ValueKind.OBJECT
    return ValueKind.NESTED if any(sign in bare[1:] for sign in _OPENERS) else ValueKind.FLAT


def _shown(events: Iterable[TraceEvent]) -> set[str]:
    """Every text that a frame shows, apart from the iterators of comprehensions."""
    texts: set[str] = set()
    for event in events:
        shown: Mapping[str, str] = event.locals or {}
        texts.update(text for name, text in shown.items() if name != ".0")
        if event.kind is EventKind.RETURN and event.value is not None:
            texts.add(event.value)
    return texts


def _iterations(trace: Trace) -> int:
    """Steps from a loop's head to the first line of its body."""
    heads = _loop_heads(trace.source)
    last: dict[int, int] = {}
    """By depth of its frame: the line before."""
    count = 0
    for event in trace.events:
        if event.kind is EventKind.LINE:
            count += last.get(event.depth, 0) in heads.get(event.line_no, ())
            last[event.depth] = event.line_no
        elif event.kind is EventKind.CALL:
            last[event.depth] = 0
    return count


def _loop_heads(source: str) -> dict[int, range]:
    """First line of a loop's body: the lines of its head."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    loops = (node for node in ast.walk(tree) if isinstance(node, ast.For | ast.AsyncFor | ast.While))
    return {node.body[0].lineno: range(node.lineno, max(node.body[0].lineno, node.lineno + 1)) for node in loops}
