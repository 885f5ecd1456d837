"""Grader of functions: the response's only code block must define a function that passes every hidden test.

The sandboxed process receives the code and the inputs, never the expected values; the comparison happens here, on values that
came back as JSON. A candidate that shares its process with the driver can forge what it "returned", and gains nothing by it.
"""

import asyncio
import hashlib
import json
import math
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.records import Episode, Json, Problem
from environments.sandbox.base import Execution, Limits
from environments.sandbox.bubblewrap import Bubblewrap
from rewards.extract import ExtractionError, only_fenced_block
from rewards.score import Score, ScoreStatus

PASS_REWARD, FAIL_REWARD = 1.0, -1.0
_LANGUAGES = ("", "python", "py", "python3")
_MAX_CODE_CHARS = 100_000
_DRIVER = Path(__file__).with_name("code_driver.py")
_DRIVER_NAME = "driver.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class HiddenTests:
    """`reference` of a code problem, checked."""

    entry_point: str
    inputs: tuple[str, ...]
    """One JSON list of positional arguments a test."""
    expected: tuple[Json, ...]

    @staticmethod
    def read(reference: Mapping[str, Json]) -> "HiddenTests":
        """Raises ValueError that says what is wrong with the reference."""
        entry_point, tests = reference.get("entry_point"), reference.get("tests")
        if not isinstance(entry_point, str) or not entry_point.isidentifier():
            raise ValueError(f"reference.entry_point is {entry_point!r}; it must be a function name")
        if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
            raise ValueError("reference.tests must be a list with at least one test")
        for number, test in enumerate(tests):
            if not isinstance(test, Mapping) or "expected" not in test or not isinstance(test.get("args"), list | tuple):
                raise ValueError(f"reference.tests[{number}] must have `args` (a list) and `expected`")
        return HiddenTests(
            entry_point=entry_point,
            inputs=tuple(json.dumps(list(test["args"]), allow_nan=False) for test in tests),
            expected=tuple(json.loads(json.dumps(test["expected"], allow_nan=False)) for test in tests),
        )


class CodeGrader:
    """+1 when all hidden tests pass, -1 otherwise. The same code for the same tests is run once and remembered."""

    def __init__(self, *, limits: Limits | None = None, slots: int = 0, cache_size: int = 4096) -> None:
        """`slots`: sandboxes at once, 0 means one a processor. Raises SandboxUnavailable when there is no sandbox here."""
        self._limits = limits or Limits()
        self._sandbox = Bubblewrap(slots=slots)
        self._cache: OrderedDict[str, asyncio.Task[Score]] = OrderedDict()
        self._cache_size = cache_size
        self._driver = _DRIVER.read_bytes()

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        try:
            tests = HiddenTests.read(problem.reference)
        except (ValueError, TypeError) as error:
            return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason=f"problem {problem.task.id}: {error}")
        try:
            code = code_block(episode.response)
        except ExtractionError as error:
            return failed(str(error))
        return await self._shared(tests, code)

    async def close(self) -> None:
        for task in self._cache.values():
            task.cancel()
        await asyncio.gather(*self._cache.values(), return_exceptions=True)
        self._cache.clear()
        self._sandbox.close()

    async def _shared(self, tests: HiddenTests, code: str) -> Score:
        """Join the run of the same code on the same tests, or start it. Only verdicts stay in the cache, not failures of ours."""
        key = hashlib.sha256(repr((tests, code)).encode("utf-8", "surrogatepass")).hexdigest()
        task = self._cache.get(key)
        if task is None:
            task = self._cache[key] = asyncio.create_task(self._execute(tests, code))
        self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception() is not None) and self._cache.get(key) is task:
                del self._cache[key]

    async def _execute(self, tests: HiddenTests, code: str) -> Score:
        nonce = secrets.token_hex(16)
        request = {"nonce": nonce, "code": code, "entry_point": tests.entry_point, "inputs": tests.inputs}
        execution = await self._sandbox.run(
            (*self._sandbox.python, _DRIVER_NAME),
            stdin=json.dumps(request).encode(),
            files={_DRIVER_NAME: self._driver},
            limits=self._limits,
        )
        try:
            results = read_results(execution, nonce=nonce, n_tests=len(tests.inputs))
        except ExtractionError as error:
            return failed(str(error))
        return judge(tests, results)


def code_block(response: str) -> str:
    """The code of the only fenced block. Raises ExtractionError."""
    block = only_fenced_block(response)
    if block.language not in _LANGUAGES:
        raise ExtractionError(f"the code block is marked {block.language[:20]!r}, not python")
    if len(block.text) > _MAX_CODE_CHARS:
        raise ExtractionError(f"the code has more than {_MAX_CODE_CHARS} characters")
    return block.text


def read_results(execution: Execution, *, nonce: str, n_tests: int) -> list[dict[str, Json]]:
    """The driver's records, one a test. Raises ExtractionError that says why there are none."""
    if execution.killed_by == "wall":
        raise ExtractionError(f"the code ran longer than {execution.wall_seconds:.0f} s")
    if execution.killed_by == "output":
        raise ExtractionError("the code produced too much output")
    if execution.killed_by == "kernel":
        raise ExtractionError("the code used too much processor time or memory")
    try:
        report = json.loads(execution.stdout.decode("ascii"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ExtractionError(f"the code ended its process or spoiled its results (exit code {execution.exit_code})") from None
    if not isinstance(report, dict) or report.get("nonce") != nonce:
        raise ExtractionError("the results do not come from the driver")
    if "failed" in report:
        raise ExtractionError(_shown(f"the code failed: {report['failed']}"))
    results = report.get("results")
    if not isinstance(results, list) or len(results) != n_tests or not all(isinstance(result, dict) for result in results):
        raise ExtractionError("the results do not come from the driver")
    return results


def judge(tests: HiddenTests, results: Sequence[Mapping[str, Json]]) -> Score:
    """Compare each result with its expected value."""
    wrong = [number for number, (result, expected) in enumerate(zip(results, tests.expected, strict=True)) if not _passes(result, expected)]
    if not wrong:
        return Score(reward=PASS_REWARD, status=ScoreStatus.OK, reason=f"all {len(results)} tests passed")
    first = wrong[0]
    result = results[first]
    got = f"returned {_shown(repr(result['value']))}" if "value" in result else f"raised {_shown(str(result.get('error')))}"
    call = f"{tests.entry_point}({_shown(tests.inputs[first][1:-1])})"
    return failed(f"{len(wrong)} of {len(results)} tests failed: {call} {got}, expected {_shown(repr(tests.expected[first]))}")


def same(value: Json, expected: Json) -> bool:
    """Strict equality of JSON values.

    bool is not a number; an int equals a float of exactly its value; two floats may differ by 1e-9 relative, since the order of
    a sum is the candidate's choice; containers match item by item; NaN and infinity equal nothing.
    """
    if isinstance(expected, bool) or isinstance(value, bool) or expected is None or value is None:
        return value is expected
    if isinstance(expected, int | float) and isinstance(value, int | float):
        if isinstance(expected, float) and isinstance(value, float):
            return math.isfinite(value) and math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)
        return value == expected
    if isinstance(expected, str) and isinstance(value, str):
        return value == expected
    if isinstance(expected, list) and isinstance(value, list):
        return len(value) == len(expected) and all(same(left, right) for left, right in zip(value, expected, strict=True))
    if isinstance(expected, dict) and isinstance(value, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key]) for key in expected)
    return False


def failed(reason: str) -> Score:
    """The policy's own failure."""
    return Score(reward=FAIL_REWARD, status=ScoreStatus.POLICY_FAIL, reason=reason)


def _passes(result: Mapping[str, Json], expected: Json) -> bool:
    try:
        return "value" in result and same(result["value"], expected)
    except RecursionError:
        return False


def _shown(text: str) -> str:
    """Short, on one line, and safe to write as UTF-8."""
    line = text.encode("utf-8", "replace").decode().replace("\n", " ")
    return line if len(line) <= 120 else line[:117] + "..."


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a value")
