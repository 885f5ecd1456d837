r"""Grader of boxed answers: the last closed `\boxed{}` against a reference answer.

Where the reference is a plain number or a word the comparison is exact and happens here; other references go to math-verify, in a worker
process that is started on first use and killed when a comparison takes too long. Policies are in `rewards/math_answer.py`;
beyond them: order counts in tuples `(1, 2)` and not in lists `1, 2`; a decimal equals an irrational number within 1e-6.
Model text is never evaluated: no eval, sympify or parse_expr.
"""

import asyncio
import contextlib
import json
import math
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Literal

from environments.records import Episode, Json, Problem
from rewards.extract import ExtractionError, last_box
from rewards.math_answer import (
    MAX_CHARS,
    Answer,
    cost_problem,
    n_items,
    normalised,
    numbers_equal,
    read_answer,
    stated_value,
    subscripts,
    texts,
    units_agree,
    words_equal,
)
from rewards.score import Score, ScoreStatus

PASS_REWARD, FAIL_REWARD = 1.0, -1.0
Verdict = Literal["equal", "different", "bad_gold", "bad_answer", "gold_too_slow", "answer_too_slow"]
_START_SECONDS = 120.0
_REQUEST_SECONDS = 5.0
_ROOT = Path(__file__).resolve().parents[1]


class MathGrader:
    """+1 for a right answer, -1 otherwise. `ungradable` when the reference cannot be understood."""

    def __init__(self, *, timeout_seconds: float = _REQUEST_SECONDS) -> None:
        """`timeout_seconds`: for one symbolic comparison; a slower answer fails."""
        self._worker = MathWorker(timeout_seconds=timeout_seconds)

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        gold_text = gold_answer(problem.reference.get("answer"))
        if gold_text is None:
            return _ungradable(problem, f"reference.answer is {problem.reference.get('answer')!r}; it must be a number or text")
        try:
            box = last_box(episode.response)
        except ExtractionError as error:
            return _failed(str(error))
        if not box.strip():
            return _failed("the box is empty")
        if len(box) > MAX_CHARS:
            return _failed(f"the answer is longer than {MAX_CHARS} characters")
        if normalised(gold_text) == normalised(box):
            return _passed(box)
        gold, answer = read_answer(gold_text), read_answer(box)
        if gold.number is not None or gold.base:
            return _passed(box) if numbers_equal(gold, stated_value(answer)) else _wrong(box, gold_text)
        if gold.word:
            return _passed(box) if words_equal(gold, answer) else _wrong(box, gold_text)
        return await self._symbolic(problem, gold, answer, gold_text=gold_text, box=box)

    async def close(self) -> None:
        await self._worker.close()

    async def _symbolic(self, problem: Problem, gold: Answer, answer: Answer, *, gold_text: str, box: str) -> Score:
        if cost := cost_problem(gold.core):
            return _ungradable(problem, f"reference.answer has {cost}: it can only be matched literally")
        if cost := cost_problem(answer.core):
            return _failed(f"the answer is too costly to compare: {cost}")
        if mismatch := structural_mismatch(gold, answer):
            return _failed(f"{mismatch}: {_shown(box)} instead of {_shown(gold_text)}")
        verdict = await self._worker.compare(gold.core, answer.core)
        if verdict == "equal":
            return _passed(box)
        if verdict in ("bad_gold", "gold_too_slow"):
            return _ungradable(problem, f"reference.answer {_shown(gold_text)} cannot be understood ({verdict})")
        if verdict == "answer_too_slow":
            return _failed("the answer is too costly to compare")
        if verdict == "bad_answer":
            return _failed(f"the answer cannot be understood: {_shown(box)}")
        return _wrong(box, gold_text)


class MathWorker:
    """Client of `rewards/math_worker.py`: one process, one comparison at a time. One instance serves one event loop."""

    def __init__(self, *, timeout_seconds: float = _REQUEST_SECONDS) -> None:
        self._timeout = timeout_seconds
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    async def compare(self, gold: str, answer: str) -> Verdict:
        """Compare two LaTeX expressions. Raises RuntimeError when no worker can be started."""
        async with self._lock:
            try:
                verdict = await self._request(gold, answer)
                # A worker can die of a hostile answer or of something else: only a second death is the answer's doing.
                return verdict or await self._request(gold, answer) or "answer_too_slow"
            except BaseException:
                await self._kill()
                raise

    async def close(self) -> None:
        async with self._lock:
            await self._kill()

    async def _request(self, gold: str, answer: str) -> Verdict | None:
        """One attempt; None when the worker died. Kills the worker when it takes too long."""
        process = self._process or await self._start()
        assert process.stdin is not None and process.stdout is not None
        gold_parsed = False
        try:
            async with asyncio.timeout(self._timeout):
                process.stdin.write(json.dumps({"gold": gold, "answer": answer}).encode() + b"\n")
                await process.stdin.drain()
                while line := await process.stdout.readline():
                    message = json.loads(line)
                    if "verdict" in message:
                        return message["verdict"]
                    gold_parsed = True
        except TimeoutError:
            await self._kill()
            return "answer_too_slow" if gold_parsed else "gold_too_slow"
        except (BrokenPipeError, ConnectionResetError):
            pass
        await self._kill()
        return None

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rewards.math_worker"), stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            async with asyncio.timeout(_START_SECONDS):
                ready = await process.stdout.readline()
                detail = b"" if ready else await process.stderr.read()
        except TimeoutError:
            await self._kill()
            raise RuntimeError(f"the math-verify worker did not start within {_START_SECONDS:.0f} s") from None
        if not ready:
            await self._kill()
            last = detail.decode(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"the math-verify worker did not start: {last or 'no message'}; is math-verify installed?")
        return process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def gold_answer(value: Json) -> str | None:
    """The reference as text; None when it is no usable answer. A boxed reference is unwrapped."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    text = f"{Decimal(repr(value)):f}" if isinstance(value, float) else str(value)
    with contextlib.suppress(ExtractionError):
        text = last_box(text)
    return text if text.strip() and len(text) <= MAX_CHARS else None


def structural_mismatch(gold: Answer, answer: Answer) -> str:
    """What a symbolic comparison would overlook; empty when nothing."""
    if not units_agree(gold, answer):
        return f"the unit is {answer.unit}, not {gold.unit}"
    if n_items(answer.core) != n_items(gold.core):
        return "the number of answers differs"
    if subscripts(answer.core) != subscripts(gold.core):
        return "the number base differs"
    if texts(answer.core) != texts(gold.core):
        return "the words differ"
    return ""


def _passed(box: str) -> Score:
    return Score(reward=PASS_REWARD, status=ScoreStatus.OK, reason=f"{_shown(box)} is right")


def _failed(reason: str) -> Score:
    return Score(reward=FAIL_REWARD, status=ScoreStatus.POLICY_FAIL, reason=reason)


def _wrong(box: str, gold: str) -> Score:
    return _failed(f"{_shown(box)} is wrong; the answer is {_shown(gold)}")


def _ungradable(problem: Problem, reason: str) -> Score:
    return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason=f"problem {problem.task.id}: {reason}")


def _shown(text: str) -> str:
    """Short, on one line, and safe to write as UTF-8."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= 80 else line[:77] + "..."
