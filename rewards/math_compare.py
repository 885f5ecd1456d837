"""Compare an answer with a reference, item by item: exactly where both are numbers or words, by math-verify otherwise."""

from collections.abc import Iterator
from dataclasses import replace

from rewards.math_answer import Answer, numbers_equal, read_answer, units_agree, with_unit_of, words_equal
from rewards.math_client import MathWorker, Operation, Verdict
from rewards.math_marks import overlooked_difference
from rewards.math_names import Side, different_names, is_name, name_of, plain_side, same_name, sides
from rewards.math_shape import MAX_ITEMS, Kind, Shape, ratio_terms, times_equal
from rewards.math_text import cost_problem
from rewards.warm_worker import Stopwatch

_INTERVALS = (Kind.TUPLE, Kind.CLOSED, Kind.LEFT_OPEN, Kind.RIGHT_OPEN)


class TooSlow(Exception):
    """math-verify took too long."""


class Comparison:
    """One comparison; all its questions to the worker share one time budget, of work and not of waiting."""

    def __init__(self, worker: MathWorker, *, seconds: float) -> None:
        self._worker = worker
        self._seconds = seconds
        self._stopwatch = Stopwatch()

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
        if gold.joined and answer.joined and not gold.joined & answer.joined:
            return "`and` is not `or`"
        if gold.text == answer.text:
            return ""
        if gold.kind is Kind.TIME:
            return "" if answer.kind is Kind.TIME and times_equal(gold, answer) else "another time, or none"
        if answer.kind is Kind.TIME:
            answer = replace(answer, kind=Kind.RATIO)
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
        named = different_names([item.text for item in gold.items]) and not all("=" in item.text for item in answer.items)
        return await (self._unordered(gold, answer) if gold.kind is Kind.LIST and not named else self._ordered(gold, answer))

    async def _ratio_difference(self, gold: Shape, answer: Shape) -> str:
        wrong = "another ratio"
        if gold.kind is answer.kind:
            left, right = ratio_terms(gold), ratio_terms(answer)
            if left is not None and right is not None:
                return "" if left == right else wrong
            return wrong if len(gold.items) != len(answer.items) else await self._ordered(gold, answer)
        ratio, single = (gold, answer) if gold.kind is Kind.RATIO else (answer, gold)
        *names, value = sides(single.text)
        terms, number = ratio_terms(ratio), read_answer(value.text).number
        if not all(is_name(name.text) for name in names):
            return "another equation"
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
        if gold.word:
            return "" if words_equal(gold, answer) else "another word"
        if name := name_of(gold.core):
            return await self._named(gold, answer, name=name)
        found = sides(answer.core)
        return await (self._stated(gold, answer, found) if len(found) > 1 == len(sides(gold.core)) else self._value(gold, answer))

    async def _named(self, gold: Answer, answer: Answer, *, name: str) -> str:
        """The reference is `name = value`: the answer may leave the name out, but not have another one."""
        value = with_unit_of(read_answer(sides(gold.core)[-1].text), gold)
        found = sides(answer.core)
        if len(found) == 1:
            return await self._value(value, answer)
        if any(same_name(name, side.text) for side in found[:-1]):
            return await self._stated(value, answer, found)
        return await self._symbolic(gold, answer) if len(found) == 2 else "another equation"

    async def _stated(self, gold: Answer, answer: Answer, found: tuple[Side, ...]) -> str:
        """The last side is the value; each other side must be a name or have that value."""
        value = with_unit_of(read_answer(found[-1].text), answer)
        if reason := await self._value(gold, value):
            return reason
        for side in found[:-1]:
            if not is_name(side.text) and not await self._side_holds(side, value):
                return "another equation, or a false one"
        return ""

    async def _side_holds(self, side: Side, value: Answer) -> bool:
        text = plain_side(side.text)
        reading = read_answer(text)
        if reading.number is not None and value.number is not None:
            near = side.rounded and abs(reading.number - value.number) <= abs(value.number) / 100
            return near or numbers_equal(value, reading)
        if cost_problem(text) or overlooked_difference(value.core, text):
            return False
        return await self._ask("near" if side.rounded else "compare", value.core, text) == "equal"

    async def _value(self, gold: Answer, answer: Answer) -> str:
        if gold.number is not None or gold.base:
            return "" if numbers_equal(gold, answer) else "another number, or none"
        return await self._symbolic(gold, answer)

    async def _symbolic(self, gold: Answer, answer: Answer) -> str:
        if cost := cost_problem(answer.core):
            return f"the answer is too costly to compare: {cost}"
        if not units_agree(gold, answer):
            return f"the unit is {answer.unit}, not {gold.unit}"
        if answer.base and not gold.base:
            return "a number base that the reference does not have"
        if difference := overlooked_difference(gold.core, answer.core):
            return difference
        verdict = await self._ask("compare", gold.core, answer.core)
        if verdict == "bad_answer":
            return "the answer cannot be read"
        return "" if verdict == "equal" else "another value"

    async def _ask(self, operation: Operation, gold: str, answer: str = "") -> Verdict:
        left = max(self._seconds - self._stopwatch.seconds, 0.01)
        gold, answer = (text.replace("\\approx", "=") for text in (gold, answer))
        verdict = await self._worker.verdict(operation, gold=gold, answer=answer, seconds=left, stopwatch=self._stopwatch)
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
