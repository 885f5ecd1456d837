"""The code graders: what passes, what fails and why, and code that tries to pass without solving the problem."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

import rewards.code
from environments.records import Episode, Message, Problem, StopReason, Task
from environments.sandbox.base import Execution, Limits, SandboxError
from rewards.code import CodeGrader, same
from rewards.code_output import CodeOutputGrader
from rewards.extract import ExtractionError, last_box, only_fenced_block
from rewards.registry import grader, known_graders, make_grader, reward
from rewards.score import Score, ScoreStatus

SQUARES = {"entry_point": "solve", "tests": [{"args": [n], "expected": n * n} for n in (3, 4, 7)]}
LIMITS = Limits(wall_seconds=4.0, cpu_seconds=1, memory_mb=256, processes=8)


def problem_with(reference: Mapping[str, Any]) -> Problem:
    return Problem(task=Task(id="t1", env="code", prompt=()), reference=reference, source="test")


def episode_of(response: str) -> Episode:
    return Episode(messages=(Message(role="assistant", content=response),), stop_reason=StopReason.DONE, n_sampled_tokens=1)


def fenced(code: str) -> str:
    return f"Here it is.\n```python\n{code}\n```\n"


def grade_all(responses: Sequence[str], reference: Mapping[str, Any] = SQUARES) -> list[Score]:
    async def main() -> list[Score]:
        code_grader = CodeGrader(limits=LIMITS, slots=4)
        try:
            return await asyncio.gather(*(code_grader.grade(problem_with(reference), episode_of(response)) for response in responses))
        finally:
            await code_grader.close()

    return asyncio.run(main())


def returns(expression: str, *, expected: Any) -> ScoreStatus:
    """Grade a function that returns `expression`, against a literal expected value."""
    reference = {"entry_point": "solve", "tests": [{"args": [], "expected": expected}]}
    (score,) = grade_all([fenced(f"def solve():\n    return {expression}")], reference)
    return score.status


HONEST = {
    "plain": "def solve(n):\n    return n * n",
    "chatty": "import sys\nprint('loading')\ndef solve(n):\n    print('x' * 100000); sys.stderr.write('!')\n    return n ** 2",
    "imports": "import math, itertools, collections\ndef solve(n):\n    return math.prod([n, n])",
    "recursive": "def solve(n, k=None):\n    k = n if k is None else k\n    return 0 if k == 0 else n + solve(n, k - 1)",
    "reads input": "import sys\ndef solve(n):\n    return n * n if sys.stdin.read() == '' else 0",
    "main block": "def solve(n):\n    return n * n\nif __name__ == '__main__':\n    raise SystemExit(input())",
    "integral float": "def solve(n):\n    return float(n * n)",
}


def test_right_solutions_pass() -> None:
    for name, score in zip(HONEST, grade_all([fenced(code) for code in HONEST.values()]), strict=True):
        assert (score.status, score.reward) == (ScoreStatus.OK, 1.0), (name, score)


FORGERY = """
import gc, json, os, sys

def forge(values):
    nonces = [o["nonce"] for o in gc.get_objects() if type(o) is dict and type(o.get("nonce")) is str]
    line = json.dumps({"nonce": nonces[0] if nonces else "", "results": [{"value": value} for value in values], "passed": True}) + chr(10)
    for fd in range(3, 64):
        try:
            os.write(fd, line.encode())
        except OSError:
            pass
    os._exit(0)
"""

HOSTILE = {
    "1 leave with os._exit": "import os\nos._exit(0)",
    "1 leave with os._exit when called": "import os\ndef solve(n):\n    os._exit(0)",
    "2 sys.exit": "import sys\nsys.exit(0)",
    "2 sys.exit when called": "import sys\ndef solve(n):\n    sys.exit(0)",
    "3 always equal": """
class Same:
    def __eq__(self, other): return True
    def __hash__(self): return 0
def solve(n):
    return Same()
""",
    "4 caller's frame": """
import sys
def solve(n):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name, value in scope.items():
                if 'expected' in str(name) or (type(value) is dict and 'expected' in value):
                    return value['expected'] if type(value) is dict else value
        frame = frame.f_back
    return None
""",
    "5 garbage collector": """
import gc
def solve(n):
    for item in gc.get_objects():
        if type(item) is dict and 'expected' in item: return item['expected']
""",
    "6 forge with the nonce": FORGERY + "\nforge([0, 0, 0])",
    "6 forge when called": FORGERY + "\ndef solve(n):\n    forge([True] * 3)",
    "8 patch json": """
import json
json.dumps = lambda *a, **k: '{"passed": true}'
json.JSONEncoder.encode = json.dumps
def solve(n): return None
""",
    "8 patch loads": "import json\njson.loads = lambda *a, **k: []\ndef solve(n=0): return n",
    "10 read the test files": """
import os
def solve(n):
    for folder, _, names in os.walk('/'):
        for name in names:
            if folder.startswith(('/work', '/tmp')):
                text = open(os.path.join(folder, name)).read()
                if '"expected"' in text: return text
""",
    "11 reload modules": """
import importlib, os, sys
importlib.reload(os); importlib.reload(sys)
sys.modules.clear()
def solve(n): return n
""",
    "12 fork and leave": "import posix, os\nif posix.fork() == 0: os._exit(0)\ndef solve(n): return -1",
    "12 fork, both report": "import posix\nposix.fork()\ndef solve(n): return -1",
    "13 eat every exception": """
def solve(n):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    "14 cancel alarms": "import signal, time\nsignal.alarm(0)\nsignal.setitimer(signal.ITIMER_REAL, 0)\ndef solve(n):\n    time.sleep(60)",
    "16 inherited descriptors": """
import os
found = b''
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False); found += os.read(fd, 65536)
    except OSError: pass
def solve(n): return found.decode('latin-1')
""",
    "19 flood the channel": """
import os
for fd in range(64):
    try:
        while True: os.write(fd, b'{"value": 9}\\n' * 1000)
    except OSError: pass
""",
    "19 bury the results": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'PASSED\\n')
    except OSError: pass
def solve(n): return n * n
""",
    "20 a thread that finishes later": """
import threading, time, os
def later():
    time.sleep(0.5); os._exit(0)
threading.Thread(target=later).start()
def solve(n): time.sleep(60)
""",
    "22 exit handlers": """
import atexit, os
atexit.register(os._exit, 0)
class D:
    def __del__(self): os._exit(0)
d = D()
def solve(n): return 1
""",
    "23 int subclass": "class I(int):\n    def __eq__(self, other): return True\ndef solve(n): return I(1)",
    "23 str subclass": "class S(str):\n    def __eq__(self, other): return True\ndef solve(n): return S()",
    "23 list subclass": "class L(list):\n    def __len__(self): return 3\ndef solve(n): return L()",
    "24 nan": "def solve(n): return float('nan')",
    "24 huge int": "import sys\nsys.set_int_max_str_digits(0)\ndef solve(n): return 10 ** 100000",
    "24 deep list": "def solve(n):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "24 endless list": "def solve(n):\n    x = []\n    x.append(x)\n    return x",
    "24 deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef solve(n): return solve(n) + 1",
    "25 wait for input": "import sys, time\ndef solve(n):\n    while not sys.stdin.read(): pass",
    "26 not utf-8": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'\\xff\\xfe\\n')
    except OSError: pass
def solve(n): return n * n
""",
    "26 lone surrogate": "def solve(n): return '\\ud800'",
    "raise oddly": "class E(BaseException):\n    def __str__(self): raise ValueError\ndef solve(n): raise E",
    "memory": "def solve(n): return bytearray(1 << 40)",
    "syntax": "def solve(n) return n",
    "no function": "def other(n): return n * n",
    "not a function": "solve = 9",
    "hard-coded example": "def solve(n): return 9",
    "null byte": "def solve(n): return n * n\0",
}


@pytest.fixture(scope="module")
def hostile_scores() -> dict[str, Score]:
    return dict(zip(HOSTILE, grade_all([fenced(code) for code in HOSTILE.values()]), strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_does_not_pass(name: str, hostile_scores: dict[str, Score]) -> None:
    score = hostile_scores[name]
    assert (score.status, score.reward) == (ScoreStatus.POLICY_FAIL, -1.0)
    assert score.reason and "\n" not in score.reason
    score.reason.encode()  # can be written to a log


def test_forgery_reaches_the_channel_and_gains_nothing() -> None:
    """The forged line is accepted as results: they are just what the function could have returned."""
    forged_wrong, forged_right = grade_all([fenced(FORGERY + "\nforge([9, 16, 50])"), fenced(FORGERY + "\nforge([9, 16, 49])")])
    assert forged_wrong.reason.startswith("1 of 3 tests failed: solve(7) returned 50, expected 49")
    assert forged_right.status == ScoreStatus.OK


def test_candidate_never_receives_expected_values() -> None:
    sent: list[bytes] = []

    class Recorder:
        python = ("python",)

        async def run(self, argv: Sequence[str], *, stdin: bytes, files: Mapping[str, bytes], limits: Limits) -> Execution:
            sent.extend((stdin, *files.values(), *(word.encode() for word in argv)))
            return Execution(stdout=b"", stderr=b"", exit_code=0, wall_seconds=0.0, cpu_seconds=None, peak_memory_mb=None, killed_by=None)

        def close(self) -> None: ...

    async def main() -> None:
        code_grader = CodeGrader()
        code_grader._sandbox = Recorder()  # type: ignore[assignment]  # stands in for the sandbox to see what it is sent
        reference = {"entry_point": "solve", "tests": [{"args": ["question"], "expected": "swordfish"}]}
        await code_grader.grade(problem_with(reference), episode_of(fenced("def solve(n): pass")))
        await code_grader.close()

    asyncio.run(main())
    assert any(b"question" in data for data in sent)
    assert not any(b"swordfish" in data for data in sent)


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


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ({"entry_point": "solve", "tests": []}, "at least one test"),
        ({"entry_point": "solve"}, "at least one test"),
        ({"tests": SQUARES["tests"]}, "entry_point is None"),
        ({"entry_point": "solve", "tests": [{"args": [1]}]}, r"tests\[0\]"),
        ({"entry_point": "solve", "tests": [{"args": [], "expected": float("nan")}]}, "not JSON compliant"),
    ],
)
def test_bad_reference_is_ungradable(reference: Mapping[str, Any], what: str) -> None:
    (score,) = grade_all([fenced("def solve(n): return n * n")], reference)
    assert (score.status, score.reward) == (ScoreStatus.UNGRADABLE, None)
    with pytest.raises(AssertionError, match=what):
        raise AssertionError(score.reason)


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
    (score,) = grade_all([response])
    assert (score.status, score.reward) == (ScoreStatus.POLICY_FAIL, -1.0)


def test_same_code_runs_once_and_failures_of_ours_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    n_runs = 0
    fail_first = True
    real_run = rewards.code.Bubblewrap.run

    async def counted(self: Any, *args: Any, **kwargs: Any) -> Execution:
        nonlocal n_runs, fail_first
        n_runs += 1
        if fail_first:
            fail_first = False
            raise SandboxError("no box")
        return await real_run(self, *args, **kwargs)

    monkeypatch.setattr(rewards.code.Bubblewrap, "run", counted)

    async def main() -> list[Score]:
        code_grader = CodeGrader(limits=LIMITS)
        response = episode_of(fenced("def solve(n):\n    return n * n"))
        with pytest.raises(SandboxError):
            await code_grader.grade(problem_with(SQUARES), response)
        scores = await asyncio.gather(*(code_grader.grade(problem_with(SQUARES), response) for _ in range(5)))
        scores.append(await code_grader.grade(problem_with(SQUARES), response))
        harder = {**SQUARES, "tests": [{"args": [2], "expected": 5}]}
        scores.append(await code_grader.grade(problem_with(harder), response))
        await code_grader.close()
        return scores

    scores = asyncio.run(main())
    assert [score.status for score in scores] == [ScoreStatus.OK] * 6 + [ScoreStatus.POLICY_FAIL]
    assert n_runs == 3


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
    assert last_box("\\boxed{1}" * n) == "1"
    assert last_box("\\boxed" * n + "{7}") == "7"
    for hostile in ("\\boxed{" * n, "{" * n, "\\" * n):
        with pytest.raises(ExtractionError):
            last_box(hostile)
    with pytest.raises(ExtractionError, match="150000 fenced blocks"):
        only_fenced_block("```\n" * n)


def test_registry_knows_its_graders_and_suggests() -> None:
    assert {"math", "code", "code_output"} <= set(known_graders())
    assert isinstance(make_grader("code_output"), CodeOutputGrader)
    with pytest.raises(ValueError, match="did you mean 'code_output'"):
        make_grader("code_outptu")
    with pytest.raises(ValueError, match=r"known graders: .*math"):
        make_grader("zzz")
    with pytest.raises(ValueError, match="exists already"):
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
