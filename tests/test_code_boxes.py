"""The boxes of a grading against replies that break the protocol, files that are code, and programs that are right in odd ways."""

import asyncio
import tracemalloc
from typing import Any

import pytest

from environments.code_attempts import CodeAttempts
from environments.code_tests.read import read_tests
from environments.records import Message, Task
from rewards.score import ScoreStatus
from tests.code_grading import CALLS, SHORT, fenced, grade_code, grade_codes
from tests.hostile_code import FORGE

# --- code of the candidate in the box of the tests

TAKES_OVER = """
import sys
frame = sys._getframe()
while frame:
    for relay in frame.f_locals.values():
        if hasattr(relay, 'send') and 'nonce' in frame.f_locals:
            relay.send({'verdict': {'complete': True, 'passed': 99, 'failures': []}, 'nonce': frame.f_locals['nonce']})
            while True: pass
    frame = frame.f_back
"""
"""What would pass, if it ran in the test box."""
DATE_TESTS = """
import unittest
import os
import datetime
class T(unittest.TestCase):
    def test_last(self):
        diary = Diary()
        diary.add('2020-01-01')
        if os.path.exists('diary.txt'): os.remove('diary.txt')
        self.assertEqual(diary.last(), datetime.datetime.strptime('2020-01-01', '%Y-%m-%d').isoformat())
"""


def plants(path: str, content: str = TAKES_OVER) -> str:
    return f"""
import os
class Diary:
    def add(self, day):
        os.makedirs(os.path.dirname({path!r}), exist_ok=True)
        with open({path!r}, 'w') as file: file.write({content!r})
    def last(self): return 0
"""


def test_files_of_the_candidate_are_never_imported_by_the_tests() -> None:
    """`strptime` imports `_strptime` when it is first called."""
    right = "import datetime\nclass Diary:\n    def add(self, day): self.day = day\n    def last(self): return '2020-01-01T00:00:00'"
    paths = (
        "/work/_strptime.py",
        "/tmp/_strptime.py",
        "/work/_strptime/__init__.py",
        "/work/_strptime.pth",
        "/work/__pycache__/_strptime.pyc",
    )
    codes = [right, *(plants(path) for path in paths)]
    scores = grade_codes({"class_name": "Diary", "tests": DATE_TESTS, **SHORT}, codes, env="code_class")
    assert [score.status.value for score in scores] == ["ok"] + ["policy_fail"] * len(paths)


def test_files_that_are_code_do_not_cross() -> None:
    tests = "import unittest, os\nclass T(unittest.TestCase):\n    def test_it(self):\n        Diary().add(1)"
    tests += "\n        self.assertEqual(sorted(os.listdir('/work')), ['environments', 'notes.txt'])"
    for name, crosses in (("notes.txt", True), ("notes.py", False), ("notes.so", False), ("notes.pyc", False), ("notes.pth", False)):
        score = grade_code({"class_name": "Diary", "tests": tests, **SHORT}, plants(f"/work/{name}", "x"), env="code_class")
        assert (score.status is ScoreStatus.OK) == crosses, score


def test_forged_files_that_are_code_are_refused() -> None:
    forged = plants("/tmp/x", "x").replace(
        "import os", FORGE + "forge({'value': None, 'files': {'/work/_strptime.py': '" + TAKES_OVER.encode().hex() + "'}})"
    )
    score = grade_code({"class_name": "Diary", "tests": DATE_TESTS, **SHORT}, forged, env="code_class")
    assert score.status is ScoreStatus.POLICY_FAIL


EVALUATED = {"context": "def sat(s: str):\n    return s.count('8') == 2 and eval(s) == 63", "ans_type": "str", **SHORT}


def test_expressions_of_the_candidate_are_arithmetic_for_the_tests() -> None:
    hostile = TAKES_OVER.replace("\n", "\\n").replace("'", '"')
    codes = {
        "def sol(): return '8*8-1'": "ok",
        "def sol(): return '(8*8-1, 7)[0] if 1 < 2 else -1'": "ok",
        f"def sol(): return '''exec({hostile!r}) or 8 * 8 - 1'''": "policy_fail",
        "def sol(): return '[c for c in ().__class__.__base__.__subclasses__()] and 8*8-1'": "policy_fail",
        "def sol(): return 'relay or 8*8-1'": "policy_fail",
        "def sol(): return '8*8-' + '(' * 5000": "policy_fail",
        "def sol(): return '8' + '**8' * 9": "policy_fail",
    }
    for score, (code, status) in zip(grade_codes(EVALUATED, list(codes), env="code_puzzle"), codes.items(), strict=True):
        assert score.status.value == status, (code, score)


@pytest.mark.parametrize(
    "word", ["exec(f(1))", "import pickle\nassert pickle.loads(f(1))", "__import__(f(1))", "from importlib import import_module"]
)
def test_tests_that_would_run_what_the_candidate_returns_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="field 'tests' uses '"):
        read_tests("code", {"tests": f"{word}\nassert f(1) == 2", "entry_point": "f"})
    with pytest.raises(ValueError, match="field 'context' uses '"):
        lines = "\n    ".join(word.split("\n"))
        read_tests("code_puzzle", {"context": f"def sat(f):\n    {lines}\n    return True"})


# --- forged replies

FORGED_NAMES = {
    "an extra key": "forge({'names': {'NAME': {'handle': [0, 'x'], 'junk': 1}}})",
    "a bool for a number": "forge({'names': {'NAME': {'handle': [True, 'x']}}})",
    "a deep kind": "forge(b'{\"names\":{\"NAME\":{\"handle\":[0,' + b'[' * 300 + b']' * 300 + b']}}}')",
    "a long kind": "forge({'names': {'NAME': {'handle': [0, 'x' * 10**6]}}})",
    "no such object": "forge({'names': {'NAME': {'handle': [-10**15, 'x']}}})",
    "two tags": "forge({'names': {'NAME': {'handle': [0, 'x'], 'set': []}}})",
    "not a list": "forge({'names': {'NAME': {'handle': {'0': 0}}}})",
    "deep everything": "forge(b'{\"error\":[' + b'[' * 900 + b']' * 900 + b']}')",
}
FORGED_FOR = {
    "code": {"tests": "assert solve(1) == 9\nassert solve(2) == 9", "entry_point": "solve"},
    "code_class": {
        "class_name": "solve",
        "tests": "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(solve().n, 1)",
    },
    "code_puzzle": {"context": "def sat(n: int): return n == 49", "entry_point": "solve", "tests": "assert sat(solve()) is True"},
    "code_attempts": {"tests": "assert solve(1) == 9", "entry_point": "solve"},
}


@pytest.mark.parametrize("env", FORGED_FOR)
def test_forged_names_are_failures_of_the_candidate(env: str) -> None:
    codes = [FORGE + forged.replace("NAME", "solve") + "\nimport os\nos._exit(0)" for forged in FORGED_NAMES.values()]
    for name, score in zip(FORGED_NAMES, grade_codes({**FORGED_FOR[env], **SHORT}, codes, env=env), strict=True):
        assert (score.status, score.reward) == (ScoreStatus.POLICY_FAIL, -1.0), (name, score)


def test_forged_names_do_not_end_an_episode_of_attempts() -> None:
    async def main() -> None:
        payload = {**FORGED_FOR["code"], "attempts": 20, "public_tests": FORGED_FOR["code"]["tests"], **SHORT}
        environment = CodeAttempts(Task(id="t", env="code_attempts", prompt=(Message(role="user", content="x"),), payload=payload))
        try:
            for forged in FORGED_NAMES.values():
                step = await environment.step(Message(role="assistant", content=fenced(FORGE + forged.replace("NAME", "solve"))))
                assert "2 of 2 public tests failed" in step.messages[0].content or step.done
        finally:
            await environment.close()

    asyncio.run(main())


FLOOD = "import os\ndef solve(n):\n    for fd in range(3, 20):\n        try:\n            os.write(fd, b'{\"value\":[')\n"
FLOOD += "            for _ in range(30): os.write(fd, ITEM * (2**20 // len(ITEM)))\n"
FLOOD += "            os.write(fd, b'0]}' + bytes([10]))\n        except OSError: pass"
FLOODS = {"lists": "b'[],'", "objects": "b'{\"\":0},'", "numbers": "b'1.5,'"}


@pytest.mark.parametrize("item", FLOODS)
def test_a_huge_forged_reply_is_not_read(item: str) -> None:
    """All of it would take more than a GiB as Python objects."""
    tracemalloc.start()
    try:
        score = grade_code({**CALLS, "test_seconds": 5.0}, FLOOD.replace("ITEM", FLOODS[item]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (score.status, score.reason) == (ScoreStatus.POLICY_FAIL, "a test failed: the code returned more than 4 MiB")
    assert peak < 200 << 20


def test_a_reply_of_many_containers_is_not_read() -> None:
    """It is short enough, but no value has that many items."""
    flood = FLOOD.replace("range(30)", "range(1)").replace("ITEM * (2**20 // len(ITEM))", "b'[],' * 1_000_000")
    score = grade_code({**CALLS, "test_seconds": 5.0}, flood)
    assert (score.status, score.reason) == (ScoreStatus.POLICY_FAIL, "a test failed: the code returned a value with too many items")


def test_a_long_wrong_answer_is_told_shortly() -> None:
    wrong = ("'x' * 10**6", "[[1, 'a', {'k': (None,)}]] * 10**4", "10**5000", "{str(n): n for n in range(10**4)}")
    for code, score in zip(wrong, grade_codes(CALLS, [f"def solve(n):\n    return {code}" for code in wrong]), strict=True):
        assert score.status is ScoreStatus.POLICY_FAIL and len(score.reason) < 300, code
        assert "solve(3) returned " in score.reason and score.reason.endswith(", expected 9"), score.reason


# --- right code

DATA_CLASS = "from dataclasses import dataclass\n@dataclass\nclass P:\n    n: "
PICKLED = "import pickle\nclass P: n = 0\ndef solve(n):\n    p = P()\n    p.n = n\n    return pickle.loads(pickle.dumps(p)).n ** 2"
IN_A_MODULE = {
    "a data class with texts for types": DATA_CLASS + "'int'\ndef solve(n): return P(n).n ** 2",
    "future annotations": "from __future__ import annotations\n" + DATA_CLASS + "int\ndef solve(n): return P(n).n ** 2",
    "a pickled object": PICKLED,
    "its own module": "import sys\ndef two(): return 2\ndef solve(n): return n ** sys.modules[__name__].two()",
    "type hints": "import typing\nclass P: n: 'P'\nhints = typing.get_type_hints(P)\ndef solve(n): return n * n if hints['n'] is P else 0",
    "a named tuple": "import typing, copy\nclass P(typing.NamedTuple):\n    n: 'int'\ndef solve(n): return copy.deepcopy(P(n)).n ** 2",
}


@pytest.mark.parametrize(
    "tests", [CALLS["tests"], "import dataclasses\n@dataclasses.dataclass\nclass Pair:\n    n: 'int'\nassert solve(Pair(3).n) == 9"]
)
def test_code_lives_in_a_module(tests: Any) -> None:
    for name, score in zip(IN_A_MODULE, grade_codes({**CALLS, "tests": tests}, list(IN_A_MODULE.values())), strict=True):
        assert score.status is ScoreStatus.OK, (name, score)


def test_test_classes_live_in_a_module() -> None:
    tests = "import unittest\n" + DATA_CLASS.replace("P:", "Pair:") + "'int'\n"
    tests += "class T(unittest.TestCase):\n    def test_a(self): self.assertEqual(Box(Pair(3).n).n, 3)"
    score = grade_code(
        {"class_name": "Box", "tests": tests, **SHORT}, "class Box:\n    def __init__(self, n): self.n = n", env="code_class"
    )
    assert score.status is ScoreStatus.OK, score.reason


OWN_STDOUT = """
import io, os, sys
class Fast(io.IOBase):
    def __init__(self): self.kept = io.BytesIO()
    def write(self, text): return self.kept.write(text.encode())
    def flush(self):
        os.write(1, self.kept.getvalue())
        self.kept.truncate(0), self.kept.seek(0)
sys.stdout = Fast()
print(2)
"""
RIGHT_PROGRAMS = {
    "open(1)": "f = open(1, 'w')\nprint(2, file=f)",
    "open(1) in a function": "def main():\n    global f\n    f = open(1, 'w')\n    print(2, file=f)\nmain()",
    "os.fdopen": "import os\nout = os.fdopen(1, 'w')\nout.write('2\\n')",
    "sys.__stdout__": "import sys\nsys.__stdout__.write('2\\n')",
    "sys.__stdin__": "import sys\nprint(int(sys.__stdin__.readline()) + 1)",
    "another sys.stdout": "import io, sys\nprint(2)\nsys.stdout = io.StringIO()",
    "no sys.stdout": "import sys\nprint(2)\nsys.stdout = None",
    "a closed sys.stdout": "import sys\nprint(2)\nsys.stdout.close()",
    "__file__": "import os\nassert open(os.path.abspath(__file__)).read().startswith('import os')\nprint(2)",
    "argv": "import sys\nassert len(sys.argv) == 1\nprint(2)",
    "__del__ at the end": "class A:\n    def __del__(self): print(self.n)\na = A()\na.n = 2",
    "an exit handler": "import atexit\natexit.register(print, 2)",
    "a thread": "import threading\nthreading.Thread(target=lambda: print(int(input()) + 1)).start()",
    "a pool of threads": "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\npool.submit(print, 2)",
    "own buffer": "import io, os\nout = io.BufferedWriter(io.FileIO(1, 'w', closefd=False))\nout.write(b'2\\n')",
    "own class that writes when flushed": OWN_STDOUT,
    "open(0)": "print(int(open(0).read()) + 1)",
    "exit()": "print(2)\nraise SystemExit",
    "future annotations": "from __future__ import annotations\n" + DATA_CLASS + "int\nprint(P(2).n)",
}


def test_right_programs_pass() -> None:
    reference = {"tests": [{"stdin": "1\n", "stdout": "2\n"}] * 2, **SHORT}
    for name, score in zip(RIGHT_PROGRAMS, grade_codes(reference, list(RIGHT_PROGRAMS.values()), env="code_stdio"), strict=True):
        assert score.status is ScoreStatus.OK, (name, score)


ENDS = {
    "while 1: print('x' * 1000)": "the program wrote more than 2 MiB",
    "print('x' * (3 << 20))": "the program wrote more than 2 MiB",
    "import os\nos.kill(os.getpid(), 9)": "the program was ended by signal 9",
    "raise SystemExit(3)": "the program ended with exit code 3",
    "raise SystemExit('no luck')": "the program ended with exit code 1: no luck",
    "1 / 0": "the program ended with exit code 1: ZeroDivisionError: division by zero",
    "import os, sys\nprint('bad', file=sys.stderr)\nos._exit(4)": "the program ended with exit code 4: bad",
}


def test_the_end_of_a_program_is_told() -> None:
    reference = {"tests": [{"stdin": "1\n", "stdout": "2\n"}], **SHORT}
    for (code, told), score in zip(ENDS.items(), grade_codes(reference, list(ENDS), env="code_stdio"), strict=True):
        assert score.reason == f"a test failed: input '1\\n': {told}", code


# --- puzzles


def test_numbers_of_a_puzzles_answer_are_finite() -> None:
    context = "def sat(x: float): return not abs(x - 3.5) > 1e-6"
    for kind, answer, status in (
        ("float", "3.5", "ok"),
        ("float", "float('nan')", "policy_fail"),
        ("", "3.5", "ok"),
        ("", "float('nan')", "policy_fail"),
        ("", "complex('nan')", "policy_fail"),
    ):
        reference = {"context": context, "ans_type": kind, **SHORT}
        assert grade_code(reference, f"def sol(): return {answer}", env="code_puzzle").status.value == status, (kind, answer)
    reference = {"context": "def sat(x): return not max(x) > 1 and not min(x) < 0", "ans_type": "List[float]", **SHORT}
    assert grade_code(reference, "def sol(): return [float('nan')]", env="code_puzzle").status is ScoreStatus.POLICY_FAIL
    nested = {"context": "def sat(x): return not x['a'][0] > 1", **SHORT}
    assert (
        grade_code(nested, "def sol(): return {'a': (float('inf') - float('inf'),)}", env="code_puzzle").status is ScoreStatus.POLICY_FAIL
    )
