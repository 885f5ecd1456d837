r"""Grader of boxed answers: the only `\boxed{}` of the reply against a reference answer. The policies are in docs/math.md.

Where the reference is made of plain numbers or words the comparison is exact and happens here; other references go to math-verify,
in a worker process that is started on first use and killed when a comparison takes too long. Model text is never evaluated:
no eval, sympify or parse_expr.

A second opinion, math-verify's alone, is asked about every symbolic verdict and about a sample of the exact ones; the part
`second_opinion` of the score says whether it agrees. It never changes the reward, and takes some milliseconds, at most
`_OPINION_SECONDS`: while the worker starts or is busy there is none.
"""

import asyncio
import math
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from decimal import Decimal

from environments.log_text import labelled
from environments.records import Episode, Json, Problem
from environments.reply import final_part
from rewards.extract import ExtractionError, only_box
from rewards.math_answer import read_answer
from rewards.math_client import MathWorkers
from rewards.math_compare import Comparison, TooSlow, is_plain, leaves
from rewards.math_shape import Shape, shape_of
from rewards.math_text import MAX_CHARS, cost_problem
from rewards.score import Score, ScorePart, ScoreStatus

PASS_REWARD, FAIL_REWARD = 1.0, -1.0
_REQUEST_SECONDS = 5.0
_OPINION_SECONDS = 1.0
_SAMPLED = 16
"""One exact verdict in so many gets a second opinion; which ones, their text decides."""
_MAX_GOLDS = 4096
OPINION = "second_opinion"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gold:
    """A reference, read once."""

    shape: Shape
    exact: bool
    """Made of plain numbers and words only."""
    problem: str
    """Why it cannot be used; empty when it can."""


class MathGrader:
    """+1 for a right answer, -1 otherwise. `ungradable` when the reference cannot be understood, whatever was answered."""

    def __init__(self, *, timeout_seconds: float = _REQUEST_SECONDS) -> None:
        """`timeout_seconds`: for math-verify on one answer; a slower answer fails."""
        self._timeout = timeout_seconds
        self._workers = MathWorkers()
        self._golds: OrderedDict[str, Gold] = OrderedDict()
        self._reading: dict[str, asyncio.Lock] = {}
        self._warming: asyncio.Task[None] | None = None

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        gold_text = gold_answer(problem.reference.get("answer"))
        if gold_text is None:
            return _ungradable(problem, f"reference.answer must be a number or a text of at most {MAX_CHARS} characters")
        gold = await self._gold(gold_text)
        if gold.problem:
            return _ungradable(problem, f"reference.answer {_shown(gold_text)} {gold.problem}")
        try:
            box = only_box(final_part(episode.response))
        except ExtractionError as error:
            return _failed(str(error))
        if not box.strip():
            return _failed("the box is empty")
        if len(box) > MAX_CHARS:
            return _failed(f"the answer is longer than {MAX_CHARS} characters")
        answer = shape_of(box)
        log = _side("answer", box, answer) + _side("expected", gold_text, gold.shape)
        try:
            difference = await Comparison(self._workers, seconds=self._timeout).difference(gold.shape, answer)
        except TooSlow:
            return _failed("the answer is too costly to compare", log=log)
        opinion = await self._second_opinion(gold, answer, equal=not difference)
        parts = {OPINION: opinion} if opinion else {}
        if difference:
            log += labelled("difference", difference)
            return _failed(f"{_shown(box)} is wrong, the answer is {_shown(gold_text)}: {difference}", parts=parts, log=log)
        return Score(reward=PASS_REWARD, status=ScoreStatus.OK, parts=parts, reason=f"{_shown(box)} is right", log=log)

    async def close(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        await self._workers.close()

    async def _gold(self, text: str) -> Gold:
        """The reference, read and checked once, by whoever asks first, and then remembered."""
        if gold := self._golds.get(text):
            return gold
        async with self._reading.setdefault(text, asyncio.Lock()):
            try:
                gold = self._golds.get(text) or await self._read_gold(text)
            finally:
                self._reading.pop(text, None)
        self._golds[text] = gold
        while len(self._golds) > _MAX_GOLDS:
            self._golds.popitem(last=False)
        return gold

    async def _read_gold(self, text: str) -> Gold:
        """A slow check can be the machine's doing: only the second one counts, for which the other workers stand still."""
        shape = shape_of(text)
        try:
            problem = await Comparison(self._workers, seconds=self._timeout).gold_problem(shape)
        except TooSlow:
            async with self._workers.alone() as worker:
                try:
                    problem = await Comparison(worker, seconds=self._timeout).gold_problem(shape)
                except TooSlow:
                    problem = "takes math-verify too long to read"
        exact = all(is_plain(read_answer(leaf.text)) for leaf in leaves(shape))
        return Gold(shape=shape, exact=exact, problem=problem)

    async def _second_opinion(self, gold: Gold, answer: Shape, *, equal: bool) -> ScorePart | None:
        """What math-verify alone says about the whole answer; None when it is not asked, cannot read the reference or is too slow."""
        left, right = gold.shape.text, answer.text
        if left == right or any(read_answer(leaf.text).word for leaf in leaves(gold.shape)):
            return None
        if gold.exact and zlib.crc32(f"{left}\0{right}".encode("utf-8", "surrogatepass")) % _SAMPLED:
            return None
        if not self._workers.idle:
            return self._warm_up()
        if cost_problem(left) or cost_problem(right):
            return None
        verdict = await self._workers.verdict("opinion", gold=left, answer=right, seconds=_OPINION_SECONDS)
        if verdict in ("too_slow", "bad_gold"):
            return None
        said = {"equal": "equal", "different": "different"}.get(verdict, "unreadable")
        return ScorePart(value=1.0 if equal == (said == "equal") else -1.0, weight=0.0, reason=f"math-verify: {said}")

    def _warm_up(self) -> ScorePart | None:
        """Start the worker behind the scenes; a failure to start is reported with the verdict and not tried again."""
        error = self._warming.exception() if self._warming is not None and self._warming.done() else None
        if error is not None:
            return ScorePart(value=0.0, weight=0.0, reason=_shown(str(error)))
        if not self._workers.running and (self._warming is None or self._warming.done()):
            self._warming = asyncio.create_task(self._workers.warm_up())
        return None


def gold_answer(value: Json) -> str | None:
    """The reference as text; None when it is no usable answer. A boxed reference is unwrapped."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and value.bit_length() > 4 * MAX_CHARS:
        return None
    text = f"{Decimal(repr(value)):f}" if isinstance(value, float) else str(value)
    if "\\boxed" in text:
        try:
            text = only_box(text)
        except ExtractionError:
            return None
    return text if text.strip() and len(text) <= MAX_CHARS else None


def _side(name: str, text: str, shape: Shape) -> str:
    """One side of a comparison for the log: as it was written, and as it was read."""
    items = "".join(labelled("  item", item.text) for item in shape.items)
    return labelled(name, text) + labelled("  read as", f"{shape.kind.value}, {shape.text}") + items


def _failed(reason: str, *, parts: dict[str, ScorePart] | None = None, log: str = "") -> Score:
    return Score(reward=FAIL_REWARD, status=ScoreStatus.POLICY_FAIL, parts=parts or {}, reason=reason, log=log)


def _ungradable(problem: Problem, reason: str) -> Score:
    return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason=f"problem {problem.task.id}: {reason}")


def _shown(text: str) -> str:
    """Short, on one line, and safe to write as UTF-8."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= 80 else line[:77] + "..."
