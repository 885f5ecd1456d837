"""The log of a score: what each grader knows beyond its reason, within limits."""

import asyncio
from collections.abc import Mapping
from typing import Any

from environments.code_tests.case_log import MOST_CHARS
from environments.log_text import labelled, shortened
from environments.records import Message, Task
from environments.registry import make_environment
from environments.swe.grading import PatchVerdict
from environments.swe.records import Outcome, TestOutcome
from rewards.registry import make_grader
from rewards.score import Score, ScoreStatus
from rewards.swe_log import verdict_log
from tests.code_grading import CALLS, SHORT, STDIO, episode_of, grade_code, problem_with


def grade(reward: str, reference: Mapping[str, Any], response: str) -> Score:
    async def main() -> Score:
        grader = make_grader(reward)
        try:
            return await grader.grade(problem_with(reference, env=reward), episode_of(response))
        finally:
            await grader.close()

    return asyncio.run(main())


def test_calls_are_told_with_what_was_expected_and_what_was_printed() -> None:
    code = "print('loading')\ndef solve(n):\n    print('asked', n)\n    return n * n if n < 7 else [n] * 900"
    score = grade_code({**CALLS, "partial_credit": True}, code)
    assert "printed while the code was loaded: loading\ntest 1 passed: solve(3)\ntest 2 passed: solve(4)\n" in score.log
    failed = score.log[score.log.index("test 3 failed") :]
    assert "\n  arguments: 7\n  expected: 49\n  got:\n    [7, 7, 7" in failed and "characters left out]" in failed
    assert failed.endswith("\n  printed: asked 7\n") and "asked 3" not in score.log
    died = grade_code(CALLS, "import os\ndef solve(n):\n    print('bye', flush=True)\n    os._exit(3)")
    assert died.log == "ended: the code ended its process (exit code 3)\n"


def test_code_that_closes_or_takes_its_output_is_graded_all_the_same() -> None:
    for line in (
        "sys.stdout.close()",
        "sys.stdout = None",
        "print('x', file=sys.stderr); sys.stdout.close()",
        "print('\\udcff\\x1b')",
        "sys.stdout.fileno()",
    ):
        assert grade_code(CALLS, f"import sys\ndef solve(n):\n    {line}\n    return n * n").status is ScoreStatus.OK, line


def test_programs_are_told_with_all_their_channels() -> None:
    code = "import sys\nn = int(input())\nprint(n * n + (n == 4))\nprint('near 4', file=sys.stderr)"
    log = grade_code({**STDIO, "partial_credit": True}, code, env="code_stdio").log
    assert "test 1 passed: input '3\\n'\ntest 2 failed: line 1 is '17' instead of '16'\n" in log
    assert "  stdin: 4\n  expected: 16\n  stdout: 17\n  stderr: near 4\n" in log


def test_tests_in_source_form_are_told_too() -> None:
    tests = {"entry_point": "solve", "tests": "assert solve(3) == 9\nassert solve(4) == 17", "partial_credit": True, **SHORT}
    log = grade_code(tests, "def solve(n):\n    print('asked', n)\n    return n * n").log
    assert log == "tests: 1 of 2 passed\nfailed: line 2: assert solve(4) == 17: AssertionError\nprinted:\n  asked 3\n  asked 4\n"
    wrong = grade_code({"code": "def f(x):\n    return x + 1", "output": "3"}, "5", env="code_input")
    assert wrong.log == "test 1 failed: f returned 6, not 3\n  input: 5\n  expected: 3\n  got: 6\n"


def test_a_log_of_many_tests_has_a_largest_size() -> None:
    tests = {"entry_point": "solve", "tests": [{"args": [n], "expected": [n] * 400} for n in range(60)], "partial_credit": True, **SHORT}
    log = grade_code(tests, "def solve(n):\n    return [1] * 400").log
    assert MOST_CHARS * 0.8 < len(log) < MOST_CHARS + 100 and log.endswith(" more entries left out]\n")


def test_answers_are_told_as_they_were_read() -> None:
    log = grade("math", {"answer": "(1, 2)"}, r"\boxed{(1, \frac{6}{2})}").log
    assert log.startswith("answer: (1, \\frac{6}{2})\n  read as: a tuple") and "\nexpected: (1, 2)\n" in log and "\ndifference: " in log
    assert grade("code_output", {"answer": "a\nb"}, "```\na\nc\n```").log == "predicted:\n  a\n  c\nexpected:\n  a\n  b\n"
    mixed = grade("math + 0.1*box_format", {"answer": "3"}, r"\boxed{3}")
    assert mixed.log.startswith("--- math\nanswer: 3\n") and "box_format" not in mixed.log
    assert grade("cwm_math", {"answer": "3"}, r"<think>x</think> \boxed{4}").log.startswith("answer: 4\n")


def test_a_verdict_on_a_patch_shows_what_failed_first() -> None:
    tests = tuple(TestOutcome(id=f"t.py::p{n}", outcome=Outcome.PASSED, detail="quiet") for n in range(3000))
    failed = TestOutcome(id="t.py::bad", outcome=Outcome.FAILED, seconds=0.5, detail="E  assert 1 == 2\n" + "x" * 5000)
    verdict = PatchVerdict(
        status="failed", reason="no", tests=(*tests, failed), overruled=("tests/a.py", "b.ini"), told=("odd",), output="y" * 99_999
    )
    log = verdict_log(verdict)
    assert log.startswith(
        "verdict: failed: no\nput back, because they are tests or settle how tests run:\n  tests/a.py\n  b.ini\nto look at: odd\n"
    )
    assert "\nfailed t.py::bad (0.500 s)\n  E  assert 1 == 2\n  xxx" in log and "quiet" not in log
    assert "passed t.py::p2999 (0.000 s)\n" in log and "characters left out]" in log and len(log) < 66_000


def test_long_texts_keep_both_ends() -> None:
    assert shortened("abcdefgh", chars=8) == "abcdefgh"
    assert shortened("abcdefghijkl", chars=8) == "abcdef\n[4 characters left out]\nkl"
    assert (labelled("a", ""), labelled("a", "b\n"), labelled("a", "b\nc")) == ("", "a: b\n", "a:\n  b\n  c\n")


def test_what_an_environment_shows_of_public_tests_is_not_the_log() -> None:
    async def main() -> str:
        public = {"entry_point": "solve", "public_tests": [{"args": [3], "expected": 9}], "attempts": 2}
        environment = make_environment(Task(id="t", env="code_attempts", prompt=(), payload=public))
        try:
            said = Message(role="assistant", content="```python\ndef solve(n):\n    print('a secret note')\n    return 1\n```")
            return (await environment.step(said)).messages[0].content
        finally:
            await environment.close()

    shown = asyncio.run(main())
    assert "solve(3) returned 1" in shown and "a secret note" not in shown
