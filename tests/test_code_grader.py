"""The code graders' common ground: what passes, what fails and why, what is remembered, what the candidate is sent."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from environments.code_tests.compare import same_json as same
from environments.records import Problem
from environments.sandbox.base import Execution, Guard, Limits, Sandbox, SandboxError, Session
from environments.sandbox.make import make_sandbox
from rewards.code import CodeGrader
from rewards.code_output import CodeOutputGrader
from rewards.extract import ExtractionError, only_fenced_block
from rewards.registry import grader, known_graders, make_grader, reward
from rewards.score import Score, ScoreStatus
from tests.code_grading import ASSERTS, CALLS, STDIO, episode_of, fenced, grade_code, grade_codes, grade_pairs, problem_with
from tests.hostile_code import FORGE

HONEST = {
    "plain": "def solve(n):\n    return n * n",
    "chatty": "import sys\nprint('loading')\ndef solve(n):\n    print('x' * 100000); sys.stderr.write('!')\n    return n ** 2",
    "imports": "import math, itertools, collections\ndef solve(n):\n    return math.prod([n, n])",
    "recursive": "def solve(n, k=None):\n    k = n if k is None else k\n    return 0 if k == 0 else n + solve(n, k - 1)",
    "reads input": "import sys\ndef solve(n):\n    return n * n if sys.stdin.read() == '' else 0",
    "main block": "def solve(n):\n    return n * n\nif __name__ == '__main__':\n    raise SystemExit(input())",
    "integral float": "def solve(n):\n    return float(n * n)",
}


@pytest.mark.parametrize("reference", [CALLS, ASSERTS], ids=["calls", "asserts"])
def test_right_solutions_pass(reference: Mapping[str, Any]) -> None:
    for name, score in zip(HONEST, grade_codes(reference, list(HONEST.values())), strict=True):
        assert (score.status, score.reward) == (ScoreStatus.OK, 1.0), (name, score)


def returns(expression: str, *, expected: Any, **settings: Any) -> ScoreStatus:
    """Grade a function that returns `expression`, against a literal expected value."""
    reference = {"entry_point": "solve", "tests": [{"args": [], "expected": expected}], **settings}
    return grade_code(reference, f"def solve():\n    return {expression}").status


@pytest.mark.parametrize(
    ("expression", "expected", "passes"),
    [
        ("[1, 'a', None, True, {'k': [2.5]}]", [1, "a", None, True, {"k": [2.5]}], True),
        ("(1, (2, 3))", [1, [2, 3]], True),
        ("0.1 + 0.2", 0.3, True),
        ("10 ** 40", 10**40, True),
        ("'é\\n'", "é\n", True),
        ("True", 1, False),
        ("1", True, False),
        ("{1: 2}", {"1": 2}, False),
        ("{1, 2}", [1, 2], False),
        ("b'a'", "a", False),
        ("float('inf')", 1e308, False),
        ("0.3001", 0.3, False),
    ],
)
def test_values_are_compared_by_type(expression: str, expected: Any, passes: bool) -> None:
    assert returns(expression, expected=expected) == (ScoreStatus.OK if passes else ScoreStatus.POLICY_FAIL)


def test_numbers_equal_by_exact_value() -> None:
    assert same(1, 1.0) and same(1.0, 1) and same(-0.0, 0.0)
    assert not same(2**53 + 1, float(2**53)) and not same(None, 0) and not same("1", 1) and not same([1], [1, 2])


def test_a_tolerance_is_relative_to_the_expected_value_and_never_to_the_returned_one() -> None:
    assert returns("0.3001", expected=0.3, float_tolerance=1e-3) == ScoreStatus.OK
    assert returns("3001", expected=3000, float_tolerance=1e-3) == ScoreStatus.OK
    assert returns("1e300", expected=0.3, float_tolerance=1e-3) == ScoreStatus.POLICY_FAIL
    assert returns("[1.001, 5.0]", expected=[1.0, 6.0], float_tolerance=1e-2) == ScoreStatus.POLICY_FAIL


def test_the_reason_says_which_test_failed() -> None:
    off_by_one = "def solve(n):\n    return n * n + (n == 4)"
    calls, asserts = grade_code(CALLS, off_by_one), grade_code(ASSERTS, off_by_one)
    assert calls.reason == "a test failed: solve(4) returned 17, expected 16"
    assert asserts.reason == "a test failed: line 3: assert candidate(4) == 16: AssertionError"
    raised = grade_code(CALLS, "def solve(n):\n    return 1 // (n - 3)")
    assert raised.reason == "a test failed: solve(3) raised ZeroDivisionError: integer division or modulo by zero"
    slow = grade_code(CALLS, "def solve(n):\n    while n > 3: pass\n    return 9")
    assert slow.reason == "a test failed: the code ran longer than 1 s"
    left = grade_code(CALLS, "import os\ndef solve(n):\n    os._exit(5)")
    assert left.reason == "a test failed: the code ended its process (exit code 5)"


@pytest.mark.parametrize(
    ("reference", "env"), [(CALLS, "code"), (ASSERTS, "code"), (STDIO, "code_stdio")], ids=["calls", "asserts", "stdio"]
)
def test_partial_credit_is_the_share_of_tests_that_pass(reference: Mapping[str, Any], env: str) -> None:
    codes = ["def solve(n):\n    return n * n + (n == 4)", "def solve(n):\n    return n * n", "def solve(n):\n    return 0"]
    if env == "code_stdio":
        codes = [code + "\nprint(solve(int(input())))" for code in codes]
    scores = grade_codes({**reference, "partial_credit": True}, codes, env=env)
    assert [score.reward for score in scores] == [pytest.approx(1 / 3), 1.0, -1.0]
    assert [score.status.value for score in scores] == ["policy_fail", "ok", "policy_fail"]
    assert [score.parts["tests"].value for score in scores] == [pytest.approx(2 / 3), 1.0, 0.0]
    assert scores[0].reason.startswith("1 of 3 tests failed: ")


def test_partial_credit_counts_what_passed_before_the_program_ended() -> None:
    leaves = "import os\ndef solve(n):\n    if n == 7: os._exit(0)\n    return n * n"
    scores = grade_pairs([({**reference, "partial_credit": True}, fenced(leaves)) for reference in (CALLS, ASSERTS)])
    assert [score.reward for score in scores] == [pytest.approx(1 / 3)] * 2


def test_forged_answers_are_answers_like_others() -> None:
    """Who takes over the candidate's process chooses what its functions "returned", which needs the right values all the same."""
    load = "{'names': {'solve': {'handle': [0, 'function']}}}, "
    wrong = FORGE + f"forge({load}*[{{'value': v}} for v in (9, 16, 50)])\nimport time\ntime.sleep(3)"
    right = FORGE + f"forge({load}*[{{'value': v}} for v in (9, 16, 49)])\nimport time\ntime.sleep(3)"
    failed, passed = grade_codes(CALLS, [wrong, right])
    assert failed.reason == "a test failed: solve(7) returned 50, expected 49"
    assert passed.status is ScoreStatus.OK


class Watched:
    """A sandbox that notes what is sent to a candidate's box, and fails the first `open` if told to."""

    def __init__(self, inner: Sandbox, *, fail_first: bool = False) -> None:
        self._inner, self._fail_first = inner, fail_first
        self.sent: list[bytes] = []
        self.n_opened = 0

    async def run(self, source: bytes, **settings: Any) -> Execution:
        return await self._inner.run(source, **settings)

    async def open(self, source: bytes, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> Session:
        self.n_opened += 1
        if self._fail_first and self.n_opened == 1:
            raise SandboxError("no box")
        session = await self._inner.open(source, files=files, limits=limits)
        if b"candidate's box" not in source[:100]:
            return session
        self.sent += [source, *(files or {}).values()]
        ask = session.ask

        async def noted(line: bytes, *, seconds: float) -> bytes:
            self.sent.append(line)
            return await ask(line, seconds=seconds)

        session.ask = noted  # type: ignore[method-assign]  # watches the real session
        return session

    async def guards(self) -> tuple[Guard, ...]:
        return await self._inner.guards()

    async def close(self) -> None:
        await self._inner.close()


def test_waiting_for_the_second_box_is_no_failure_of_the_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneBox(Watched):
        async def open(self, source: bytes, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> Session:
            if self.n_opened == 1:
                await asyncio.Event().wait()  # the other boxes are taken, for ever
            return await super().open(source, files=files, limits=limits)

    async def main() -> None:
        sandbox = OneBox(make_sandbox())
        code_grader = CodeGrader(sandbox=sandbox)
        with pytest.raises(SandboxError, match="no second box"):
            await code_grader.grade(problem_with(ASSERTS), episode_of(fenced("def solve(n): return n * n")))
        await code_grader.close()
        await sandbox.close()

    monkeypatch.setattr("environments.code_tests.sources.START_SECONDS", 0.2)
    asyncio.run(main())


@pytest.mark.parametrize(
    "tests",
    [
        [{"args": ["question"], "expected": "swordfish"}],
        "EXPECTED = 'swordfish'\nassert solve('question') == EXPECTED, 'not swordfish'",
        "def check(candidate):\n    found = candidate('question')\n    assert found == 'swordfish'",
    ],
    ids=["calls", "asserts", "check"],
)
def test_candidate_never_receives_expected_values(tests: Any) -> None:
    async def main() -> tuple[Score, list[bytes]]:
        watched = Watched(make_sandbox())
        code_grader = CodeGrader(sandbox=watched)
        reference = {"entry_point": "solve", "tests": tests, "reference": "def solve(x): return 'swordfish'"}
        score = await code_grader.grade(problem_with(reference), episode_of(fenced("def solve(x): return 'sword' + 'fish'")))
        await code_grader.close()
        await watched.close()
        return score, watched.sent

    score, sent = asyncio.run(main())
    assert score.status is ScoreStatus.OK
    assert any(b"question" in data for data in sent)
    assert not any(b"swordfish" in data for data in sent)


@pytest.mark.parametrize(
    ("env", "change", "what"),
    [
        ("code", {"tests": []}, "'tests' is empty"),
        ("code", {"tests": None}, "'tests' is missing"),
        ("code", {"entry_point": None}, "'entry_point' is missing"),
        ("code", {"tests": [{"args": [1]}]}, "'tests', entry 0"),
        ("code", {"tests": [{"args": [], "expected": float("nan")}]}, "not JSON"),
        ("code", {"tests": "def check(candidate): pass"}, "no assert"),
        ("code", {"tests": "assert solve(1) ==="}, "no Python"),
        ("code", {"tests": "assert other(1) == 2"}, "never uses the entry point 'solve'"),
        ("code", {"tests": "import nowhere\nassert solve(1) == 1"}, "ModuleNotFoundError"),
        ("code", {"tests": "def check(candidate):\n    for n in []:\n        assert candidate(n)"}, "ended without calling the candidate"),
        ("code", {"test_seconds": 0}, "test_seconds is 0; it must be a number > 0"),
        ("code", {"memory_mb": -1}, "memory_mb is -1; it must be a number > 0"),
        ("code", {"partial_credit": 1}, "partial_credit is 1; it must be true or false"),
        ("code_stdio", {"tests": []}, "'tests' is empty"),
        ("code_stdio", {"tests": [{"stdin": "1", "stdout": " "}]}, "expects no output"),
        ("code_class", {"tests": "assert C()", "class_name": "C"}, "no method test"),
        ("code_class", {"class_name": None}, "'class_name' is None"),
        ("code_puzzle", {}, "'context' is missing"),
        ("code_input", {}, "'code' is missing"),
    ],
)
def test_bad_reference_is_ungradable(env: str, change: Mapping[str, Any], what: str) -> None:
    score = grade_code({**CALLS, **change}, "def solve(n): return n * n", env=env)
    assert (score.status, score.reward) == (ScoreStatus.UNGRADABLE, None)
    assert what in score.reason and score.reason.startswith("problem t1: ")


@pytest.mark.parametrize(
    "response",
    [
        "def solve(n):\n    return n * n",
        "```python\ndef solve(n):\n    return n * n",
        fenced("def solve(n):\n    return n * n") * 2,
        "```rust\nfn solve() {}\n```",
        "",
    ],
)
def test_exactly_one_code_block(response: str) -> None:
    (score,) = grade_pairs([(CALLS, response)])
    assert (score.status, score.reward) == (ScoreStatus.POLICY_FAIL, -1.0)


def test_code_in_the_reasoning_does_not_count() -> None:
    thought = "Maybe\n```python\ndef solve(n): return n\n```\nno.</think>" + fenced("def solve(n): return n * n")
    assert grade_pairs([(CALLS, thought)])[0].status is ScoreStatus.OK


@pytest.mark.parametrize("response", [fenced("x = '" + "a" * 10_000_000 + "'"), "`" * 10_000_000, "\0" * 1000, "\ud800"])
def test_huge_and_odd_responses_fail_at_once(response: str) -> None:
    (score,) = grade_pairs([(CALLS, response)])
    assert (score.status, score.reward) == (ScoreStatus.POLICY_FAIL, -1.0)
    score.reason.encode()


def test_same_code_runs_once_and_failures_of_ours_are_not_remembered() -> None:
    async def main() -> tuple[list[Score], int]:
        watched = Watched(make_sandbox(), fail_first=True)
        code_grader = CodeGrader(sandbox=watched)
        response = episode_of(fenced("def solve(n):\n    return n * n"))
        with pytest.raises(SandboxError):
            await code_grader.grade(problem_with(CALLS), response)
        scores = await asyncio.gather(*(code_grader.grade(problem_with(CALLS), response) for _ in range(5)))
        scores.append(await code_grader.grade(problem_with(CALLS), response))
        harder = {**CALLS, "tests": [{"args": [2], "expected": 5}]}
        scores.append(await code_grader.grade(problem_with(harder), response))
        await code_grader.close()
        await watched.close()
        return scores, watched.n_opened

    scores, n_opened = asyncio.run(main())
    assert [score.status for score in scores] == [ScoreStatus.OK] * 6 + [ScoreStatus.POLICY_FAIL]
    assert n_opened == 3


@pytest.mark.parametrize(
    ("answer", "response", "status"),
    [
        ("1\n2\n", "```\n1\n2\n```", "ok"),
        ("1\n2", "It prints\n```text\n1  \n2\n\n```\nas said", "ok"),
        ("  1", "```\n  1\n```", "ok"),
        ("  1", "```\n1\n```", "policy_fail"),
        ("1\n2", "```\n1\n```", "policy_fail"),
        ("1\n2", "```\n1\n3\n```", "policy_fail"),
        ("1", "1", "policy_fail"),
        ("1", "```\n2\n```\n```\n1\n```", "policy_fail"),
        ("1", "```\n1", "policy_fail"),
        ("", "```\n```", "ungradable"),
        (None, "```\n1\n```", "ungradable"),
    ],
)
def test_predicted_output(answer: str | None, response: str, status: str) -> None:
    score = asyncio.run(CodeOutputGrader().grade(problem_with({"answer": answer}), episode_of(response)))
    assert score.status.value == status


def test_extraction_is_linear() -> None:
    """A quadratic scan would not end within the test's time limit."""
    n = 300_000
    with pytest.raises(ExtractionError, match="150000 fenced blocks"):
        only_fenced_block("```\n" * n)


def test_registry_knows_its_graders_and_suggests() -> None:
    assert {"math", "code", "code_output"} <= set(known_graders())
    assert isinstance(make_grader("code_output"), CodeOutputGrader)
    with pytest.raises(ValueError, match="did you mean 'code_output'"):
        make_grader("code_outptu")
    with pytest.raises(ValueError, match=r"known: .*math"):
        make_grader("zzz")
    with pytest.raises(ValueError, match="already registered"):
        grader("math")(CodeOutputGrader)


def test_a_plain_function_becomes_a_grader() -> None:
    @reward("test_length")
    def length(problem: Problem, response: str) -> float | Score:
        if not response:
            return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason="nothing said")
        return 1.0 if len(response) < 5 else -0.5

    made = make_grader("test_length")
    scores = [asyncio.run(made.grade(problem_with({}), episode_of(response))) for response in ("abc", "abcdefgh", "")]
    assert [(score.status.value, score.reward) for score in scores] == [("ok", 1.0), ("policy_fail", -0.5), ("ungradable", None)]
    assert length(problem_with({}), "ab") == 1.0
