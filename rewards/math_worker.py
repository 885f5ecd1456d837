"""Symbolic comparison in a process of its own, so that it can be killed: `python -m rewards.math_worker`.

Protocol, JSON lines: it writes {"ready": true} once, then answers each request with {"verdict": ...}. It ends at the end of its input.

    {"op": "check", "gold": str}                   `equal` when the reference can be parsed, else `bad_gold`
    {"op": "compare", "gold": str, "answer": str}  `equal`, `different`, `bad_gold` or `bad_answer`: math-verify and our guards
    {"op": "near", ...}                            the same for numbers, where one is rounded
    {"op": "opinion", "gold": str, "answer": str}  the same, by math-verify alone

Only the LaTeX grammar of math-verify parses text here: its plain-expression parser evaluates Python.
"""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TextIO

import sympy
from math_verify import LatexExtractionConfig, parse, verify

REQUEST_SECONDS = 5
"""A request may take this long; the parent kills the worker then."""
_MEMORY_BYTES = 3 << 30
_EXACT, _DECIMAL, _NEAR = sympy.Float("1e-100", 40), sympy.Float("1e-6"), sympy.Float("1e-2")
"""Largest relative difference of equal numbers: exact ones, where either side is a decimal, and where one is said to be rounded."""
_DIGITS = 120
"""Enough to see _EXACT."""
_MAX_TERMS = 200
"""Largest expressions (nodes of the tree) that are multiplied out for a second look."""
_CACHED = 1024


def answer_request(request: dict[str, str]) -> str:
    """The verdict on one request."""
    gold = _parsed(request["gold"])
    if gold is None:
        return "bad_gold"
    if request["op"] == "check":
        return "equal"
    answer = _parsed(request["answer"])
    if answer is None:
        return "bad_answer"
    if request["op"] == "near":
        return "equal" if _close(gold, answer, unknown=False, tolerance=_NEAR) else "different"
    if request["op"] == "opinion":
        return "equal" if _by_math_verify(request["gold"], request["answer"]) else "different"
    return "equal" if _equal(gold, answer, by_math_verify=_by_math_verify(request["gold"], request["answer"])) else "different"


@lru_cache(maxsize=_CACHED)
def _parsed(text: str) -> Any:
    """A sympy object, or None."""
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    found = parse(f"\\boxed{{{text}}}", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
    return next((item for item in found if isinstance(item, sympy.Basic | sympy.MatrixBase)), None)


@lru_cache(maxsize=_CACHED)
def _by_math_verify(gold: str, answer: str) -> bool:
    """math-verify is not symmetric: the reference comes first. Its time limits need signals; this process is killed instead."""
    return verify([_parsed(gold)], [_parsed(answer)], allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=False)


def _equal(gold: Any, answer: Any, *, by_math_verify: bool) -> bool:
    """math-verify's verdict, unless numbers with 100 digits or a difference that vanishes when multiplied out say otherwise."""
    if by_math_verify:
        return _confirmed(gold, answer)
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    gold, answer = (side.subs({symbol: sympy.I for symbol in side.free_symbols if symbol.name == "i"}) for side in (gold, answer))
    if not gold.free_symbols and not answer.free_symbols:
        return _close(gold, answer, unknown=False)
    return (
        gold.free_symbols == answer.free_symbols
        and not gold.has(sympy.Float)
        and not answer.has(sympy.Float)
        and all(sum(1 for _ in sympy.preorder_traversal(side)) <= _MAX_TERMS for side in (gold, answer))
        and sympy.combsimp(sympy.expand(gold - answer)) == 0
    )


def _confirmed(gold: Any, answer: Any) -> bool:
    """Check numbers again with 100 digits, relative to their size: math-verify rounds to 6 places, where 2**-99 is 2**-98."""
    if isinstance(gold, sympy.Eq) and isinstance(gold.lhs, sympy.Symbol):
        gold = gold.rhs
    if isinstance(answer, sympy.Eq) and (isinstance(answer.lhs, sympy.Symbol) or not isinstance(gold, sympy.Eq)):
        answer = answer.rhs
    if isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
        return len(gold) == len(answer) and all(any(_confirmed(left, right) for right in answer) for left in gold)
    if isinstance(gold, sympy.Tuple) and isinstance(answer, sympy.Tuple):
        return _all_confirmed(gold, answer)
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        return _all_confirmed((gold.start, gold.end), (answer.start, answer.end))
    if isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        return _all_confirmed(gold, answer)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _close(gold, answer, unknown=True)
    return True  # relations, sets without a list of elements, truth values: compared structurally


def _all_confirmed(gold: Iterable[Any], answer: Iterable[Any]) -> bool:
    left, right = list(gold), list(answer)
    return len(left) == len(right) and all(_confirmed(a, b) for a, b in zip(left, right, strict=True))


def _close(gold: Any, answer: Any, *, unknown: bool, tolerance: Any = None) -> bool:
    """Equal up to the tolerance, at one fixed point when there are symbols in common; `unknown` where that cannot be said."""
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if gold == answer or gold.free_symbols != answer.free_symbols:
        return unknown or gold == answer  # identical, or names that only math-verify can match
    exact = not (gold.has(sympy.Float) or answer.has(sympy.Float))
    if tolerance is None and exact and sympy.expand(gold - answer).is_Rational:
        return bool(sympy.expand(gold - answer) == 0)  # digits would not show that they differ by one
    point = {symbol: sympy.Rational(2 * number + 5, 7) for number, symbol in enumerate(symbols)}
    left, right = (sympy.N(expression.subs(point), _DIGITS) for expression in (gold, answer))
    if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
        return unknown
    tolerance = tolerance or (_EXACT if exact else _DECIMAL)
    return bool(abs(left - right) <= tolerance * max(abs(left), abs(right)))


def main() -> None:
    """Serve requests until stdin ends."""
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)  # libraries may print; nobody reads it
    _send(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(REQUEST_SECONDS + 5)  # no handler: ends an orphan whose parent can no longer kill it
        try:
            verdict = answer_request(request)
        except (Exception, RecursionError):
            verdict = "bad_gold" if request["op"] == "check" else "bad_answer"
        signal.alarm(0)
        _send(replies, {"verdict": verdict})


def _send(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
