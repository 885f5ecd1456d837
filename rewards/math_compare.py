"""Compare an answer with a reference, item by item: exactly where both are numbers or words, by math-verify otherwise."""

import asyncio
from collections.abc import Iterator

from rewards.math_answer import Answer, case_differs, numbers_equal, read_answer, stated_value, subscripts, texts, units_agree, words_equal
from rewards.math_client import MathWorker, Operation, Verdict
from rewards.math_shape import MAX_ITEMS, Kind, Shape, ratio_terms
from rewards.math_text import cost_problem

_INTERVALS = (Kind.TUPLE, Kind.CLOSED, Kind.LEFT_OPEN, Kind.RIGHT_OPEN)


class TooSlow(Exception):
    """math-verify took too long."""


class Comparison:
    """One comparison; all its questions to the worker share one time budget."""

    def __init__(self, worker: MathWorker, *, seconds: float) -> None:
        self._worker = worker
        self._seconds = seconds

    async def gold_problem(self, gold: Shape) -> str:
        """Why a reference cannot be used; empty when it can. Raises TooSlow."""
        for leaf in leaves(gold):
            reading = read_answer(leaf.text)
            if is_plain(reading):
                continue
            if cost := cost_problem(reading.core):
                return f"has {cost}"
            if await self._ask("check", reading.core) != "equal":
                return "cannot be read"
        return ""

    async def difference(self, gold: Shape, answer: Shape) -> str:
        """Why the answer is not the reference; empty when it is. Raises TooSlow."""
        if gold.text == answer.text:
            return ""
        if Kind.RATIO in (gold.kind, answer.kind):
            return await self._ratio_difference(gold, answer)
        if gold.kind is not answer.kind:
            one, other = (gold, answer) if gold.kind in _INTERVALS else (answer, gold)
            if one.kind in _INTERVALS and other.kind is Kind.SINGLE and not is_plain(read_answer(other.text)):
                return await self._symbolic(Answer(core=gold.text), Answer(core=answer.text))
            return f"{answer.kind.value} instead of {gold.kind.value}"
        if gold.kind is Kind.SINGLE:
            return await self._single(read_answer(gold.text), read_answer(answer.text))
        if len(gold.items) != len(answer.items) or len(gold.items) > MAX_ITEMS:
            return f"{len(answer.items)} items instead of {len(gold.items)}"
        return await (self._unordered(gold, answer) if gold.kind is Kind.LIST else self._ordered(gold, answer))

    async def _ratio_difference(self, gold: Shape, answer: Shape) -> str:
        wrong = "another ratio"
        if gold.kind is answer.kind:
            left, right = ratio_terms(gold), ratio_terms(answer)
            if left is not None and right is not None:
                return "" if left == right else wrong
            return wrong if len(gold.items) != len(answer.items) else await self._ordered(gold, answer)
        ratio, single = (gold, answer) if gold.kind is Kind.RATIO else (answer, gold)
        terms, number = ratio_terms(ratio), stated_value(read_answer(single.text)).number
        if terms is None or number is None or len(terms) != 2:
            return f"{answer.kind.value} instead of {gold.kind.value}"
        return "" if terms[0] == number * terms[1] else wrong

    async def _ordered(self, gold: Shape, answer: Shape) -> str:
        for number, (left, right) in enumerate(zip(gold.items, answer.items, strict=True), start=1):
            if reason := await self.difference(left, right):
                return f"item {number}: {reason}"
        return ""

    async def _unordered(self, gold: Shape, answer: Shape) -> str:
        """Each item of the reference takes an item of the answer; equality is transitive, so any match will do."""
        left_over = list(answer.items)
        for item in gold.items:
            for candidate in left_over:
                if not await self.difference(item, candidate):
                    left_over.remove(candidate)
                    break
            else:
                return "an item of the reference is missing"
        return ""

    async def _single(self, gold: Answer, answer: Answer) -> str:
        if gold.number is not None or gold.base:
            return "" if numbers_equal(gold, stated_value(answer)) else "another number, or none"
        if gold.word:
            return "" if words_equal(gold, answer) else "another word"
        return await self._symbolic(gold, answer)

    async def _symbolic(self, gold: Answer, answer: Answer) -> str:
        if cost := cost_problem(answer.core):
            return f"the answer is too costly to compare: {cost}"
        if not units_agree(gold, answer):
            return f"the unit is {answer.unit}, not {gold.unit}"
        if subscripts(answer.core) != subscripts(gold.core):
            return "the number base or index differs"
        if texts(answer.core) != texts(gold.core):
            return "the words differ"
        if case_differs(gold.core, answer.core):
            return "capital and small letters differ"
        verdict = await self._ask("compare", gold.core, answer.core)
        if verdict == "bad_answer":
            return "the answer cannot be read"
        return "" if verdict == "equal" else "another value"

    async def _ask(self, operation: Operation, gold: str, answer: str = "") -> Verdict:
        await self._worker.warm_up()  # its start is not the answer's doing
        loop = asyncio.get_running_loop()
        started = loop.time()
        verdict = await self._worker.verdict(operation, gold=gold, answer=answer, seconds=max(self._seconds, 0.01))
        self._seconds -= loop.time() - started
        if verdict == "too_slow":
            raise TooSlow
        return verdict


def leaves(shape: Shape) -> Iterator[Shape]:
    """The single items of a shape."""
    if not shape.items:
        yield shape
    for item in shape.items:
        yield from leaves(item)


def is_plain(reading: Answer) -> bool:
    """Compared exactly, without math-verify."""
    return reading.number is not None or bool(reading.base) or reading.word
