"""What math-verify overlooks in an expression: indices, words, capital letters, primes, transposes, degrees. Pure functions.

Each guard collects its signs from both sides; where they differ, the answer is wrong.
"""

import re

from rewards.math_text import TEXT_MACRO
from rewards.math_units import no_unit_words

_TEXT = re.compile(rf"{TEXT_MACRO} ?\{{([^{{}}]*)\}}")
_SUBSCRIPT = re.compile(r"[0-9] ?_ ?(?:\{ ?([^{}]*?) ?\}|([0-9A-Za-z]))")
_LETTERS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]+")
_GREEK = re.compile(r"\\((?i:gamma|delta|theta|lambda|xi|pi|sigma|upsilon|phi|psi|omega))(?![a-zA-Z])")
_MARK = re.compile(r"(?: ?_ ?(?:\{[^{}]*\}|[A-Za-z0-9]))? ?('+|\^ ?(?:\{ ?(?:T|\\circ) ?\}|T|\\circ(?![a-zA-Z])))")


def overlooked_difference(gold: str, answer: str) -> str:
    """What a symbolic comparison of the two would not see; empty for nothing."""
    if _subscripts(gold) != _subscripts(answer):
        return "the number base or index differs"
    if _texts(gold) != _texts(answer):
        return "the words differ"
    if _case_differs(gold, answer):
        return "capital and small letters differ"
    if _marks(gold) != _marks(answer):
        return "a prime, a transpose or a degree sign differs"
    return ""


def _subscripts(core: str) -> list[str]:
    """Subscripts of digits, such as number bases inside an expression."""
    return [(match[1] or match[2] or "") for match in _SUBSCRIPT.finditer(core)]


def _texts(core: str) -> list[str]:
    """Words inside an expression, which a symbolic comparison would drop."""
    return [match[1].strip().casefold() for match in _TEXT.finditer(core)] + no_unit_words(
        re.sub(r"\\[a-zA-Z]+", " ", _TEXT.sub(" ", core))
    )


def _case_differs(left: str, right: str) -> bool:
    """Whether a letter stands in capitals on one side only: math-verify takes `R` for `r`."""
    letters = [
        {letter for run in _LETTERS.findall(core) for letter in run} | {match[1] for match in _GREEK.finditer(core)}
        for core in (left, right)
    ]
    only_left, only_right = letters[0] - letters[1], letters[1] - letters[0]
    return any(name[0].swapcase() + name[1:] in only_right for name in only_left)


def _marks(core: str) -> set[tuple[str, str]]:
    """Marks with what they stand on: primes, `^T`, `^\\circ`."""
    found = set()
    for match in _MARK.finditer(core):
        found.add((_base(core[: match.start()].rstrip()), re.sub(r"[ ^{}]", "", match[1])))
    return found


def _base(before: str) -> str:
    """The last symbol, or the last brackets with their content."""
    if not before.endswith((")", "]", "}")):
        command = re.search(r"\\[a-zA-Z]+$", before)
        return command[0] if command else before[-1:]
    open_now = 0
    for at in range(len(before) - 1, -1, -1):
        open_now += (before[at] in ")]}") - (before[at] in "([{")
        if open_now == 0:
            return before[at:].replace(" ", "")
    return before[-1]
