"""Graders of code: the response's only code block must pass every hidden test, in the sandbox.

What a problem's tests may be, and how they are run, is `environments/code_tests`: expected values and comparisons stay out of the
candidate's process, which can therefore only choose what its functions "returned" or its program "printed".
"""

import asyncio
import hashlib
from collections import OrderedDict
from typing import ClassVar

from environments.code_tests.read import read_tests
from environments.code_tests.records import Report, Tests
from environments.code_tests.runner import CodeTestRunner
from environments.fenced import PYTHON, ExtractionError, code_block
from environments.records import Episode, Problem
from environments.sandbox.base import Sandbox
from environments.sandbox.make import make_sandbox
from rewards.score import Score, ScorePart, ScoreStatus

PASS_REWARD, FAIL_REWARD = 1.0, -1.0


class CodeGrader:
    """Functions, tested by calls with JSON values or by Python source: asserts or a `check(candidate)`.

    +1 when all hidden tests pass, -1 otherwise; with `partial_credit`, the share of tests that pass, from -1 to +1. The same
    code for the same tests is run once and remembered.
    """

    env: ClassVar[str] = "code"
    languages: ClassVar[tuple[str, ...]] = PYTHON
    """What the code block may be marked as; empty for anything."""

    def __init__(self, *, sandbox: Sandbox | None = None, at_once: int = 0, cache_size: int = 4096) -> None:
        """`sandbox`: one of its own by default, closed with the grader. `at_once`: responses at a time, 0 means one a processor.

        Raises SandboxUnavailable when there is no sandbox here.
        """
        self._sandbox = sandbox or make_sandbox()
        self._owns_sandbox = sandbox is None
        self._runner = CodeTestRunner(self._sandbox, at_once=at_once)
        self._cache: OrderedDict[str, asyncio.Task[Report]] = OrderedDict()
        self._cache_size = cache_size

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        try:
            tests = read_tests(self.env, problem.reference)
        except (ValueError, TypeError) as error:
            return _ungradable(problem, str(error))
        try:
            code = code_block(episode.response, languages=self.languages)
        except ExtractionError as error:
            return Score(reward=FAIL_REWARD, status=ScoreStatus.POLICY_FAIL, reason=str(error))
        report = await self._shared(tests, code)
        if report.broken:
            return _ungradable(problem, report.broken, log=report.log)
        return score_of(report, partial_credit=tests.judging.partial_credit)

    async def close(self) -> None:
        for task in self._cache.values():
            task.cancel()
        await asyncio.gather(*self._cache.values(), return_exceptions=True)
        self._cache.clear()
        if self._owns_sandbox:
            await self._sandbox.close()

    async def _shared(self, tests: Tests, code: str) -> Report:
        """Join the run of the same code on the same tests, or start it. Only reports stay in the cache, not failures of ours."""
        key = hashlib.sha256(repr((tests, code)).encode("utf-8", "surrogatepass")).hexdigest()
        task = self._cache.get(key)
        if task is None:
            task = self._cache[key] = asyncio.create_task(self._runner.run(code, tests))
        self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception() is not None) and self._cache.get(key) is task:
                del self._cache[key]


class CodeAttemptsGrader(CodeGrader):
    """The code grader on the last attempt of an episode; the public tests were only shown."""

    env = "code_attempts"


class CodeStdioGrader(CodeGrader):
    """Whole programs: what they print for what they read."""

    env = "code_stdio"


class CodePuzzleGrader(CodeGrader):
    """Puzzles (P3): the value that `sol()` returns must satisfy the problem's `sat`, which runs in another box."""

    env = "code_puzzle"


class CodeClassGrader(CodeGrader):
    """Classes (ClassEval): unittest sources, run in another box than the class."""

    env = "code_class"


class CodeInputGrader(CodeGrader):
    """Predicted input (CRUXEval): the block holds the arguments of a call that returns the given output."""

    env = "code_input"
    languages = ()


def score_of(report: Report, *, partial_credit: bool) -> Score:
    """The score of a report that is not broken."""
    share = report.passed / report.total
    parts = {"tests": ScorePart(value=share, reason=f"{report.passed} of {report.total} passed")}
    if report.all_passed:
        return Score(reward=PASS_REWARD, status=ScoreStatus.OK, parts=parts, reason=f"all {report.total} tests passed", log=report.log)
    count = f"{report.total - report.passed} of {report.total} tests failed" if partial_credit else "a test failed"
    return Score(
        reward=FAIL_REWARD + (PASS_REWARD - FAIL_REWARD) * share if partial_credit else FAIL_REWARD,
        status=ScoreStatus.POLICY_FAIL,
        parts=parts,
        reason=f"{count}: {report.failures[0] if report.failures else 'no reason is known'}",
        log=report.log,
    )


def _ungradable(problem: Problem, why: str, *, log: str = "") -> Score:
    return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason=f"problem {problem.task.id}: {why}", log=log)
