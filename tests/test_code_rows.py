"""Rows of the code kinds: what is refused when a source is loaded, what the policy sees, what the grader gets."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.graders import DATA_SETS, check, load
from configs.schema import TaskConfig
from environments.code_tests.compare import literal, output_difference, same_literal
from environments.code_tests.read import read_tests
from environments.code_tests.records import SourceTests
from environments.code_tests.source_names import names_of
from environments.code_tests.values import NotAValue, decode, encode
from environments.records import Problem
from environments.sources.hf import HfSource
from environments.sources.jsonl import JsonlSource

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
CALLS = [{"args": [1], "expected": 2}]


def problem_of(tmp_path: Path, row: Mapping[str, Any], *, env: str, **settings: Any) -> Problem:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", **row}) + "\n")
    return JsonlSource("rows", config=TaskConfig(kind="jsonl", path=str(path), env=env, **settings)).problem(0)


@pytest.mark.parametrize(
    ("env", "row", "settings", "message"),
    [
        ("code", {"entry_point": "f", "tests": "[]"}, {}, "field 'tests' is empty"),
        ("code", {"entry_point": "f", "tests": "x = 1"}, {}, "no assert statement; a response could not fail it"),
        ("code", {"tests": "def check(candidate):\n    assert candidate(1)"}, {}, "field 'entry_point' is missing"),
        ("code", {"tests": "assert len('a') == 1"}, {}, "uses no name that a response could define"),
        ("code", {"entry_point": "f", "tests": CALLS, "test_seconds": 0}, {}, "test_seconds is 0; it must be a number > 0"),
        ("code", {"entry_point": "f", "tests": CALLS, "memory_mb": 1.5}, {}, "memory_mb is 1.5; it must be a whole number"),
        ("code", {"entry_point": "f", "tests": CALLS}, {"options": {"test_secs": 1}}, "did you mean 'test_seconds'"),
        ("code", {"entry_point": "f", "tests": CALLS}, {"options": {"context": "prompt"}}, "field 'prompt' .* is None; it must be text"),
        ("code_stdio", {"tests": [{"stdin": "1"}]}, {}, 'entry 0 is .* it must be a list of {"stdin": text, "stdout": text}'),
        ("code_stdio", {"tests": [{"stdin": "1", "stdout": ""}]}, {}, "expects no output from any run"),
        ("code_class", {"class_name": "C", "tests": "import unittest\nclass T(unittest.TestCase): pass"}, {}, "no method test"),
        ("code_class", {"tests": "x"}, {}, "field 'class_name' is None"),
        ("code_puzzle", {}, {}, "field 'context' is missing"),
        ("code_input", {"code": "def f(): pass"}, {}, "field 'output' is missing"),
        ("code_output", {"answer": "1"}, {"options": {"compare": "eval"}}, "compare is 'eval'; it must be text or value"),
        ("code_attempts", {"entry_point": "f", "tests": CALLS}, {}, "no field 'public_tests'; code_attempts needs tests to show"),
        ("code_attempts", {"entry_point": "f", "tests": CALLS, "public_tests": []}, {}, "public_tests: field 'tests' is empty"),
        ("code_attempts", {"entry_point": "f", "tests": CALLS, "public_tests": CALLS}, {"options": {"attempts": 0}}, "attempts is 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_graded_is_refused_at_load(
    tmp_path: Path, env: str, row: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        problem_of(tmp_path, row, env=env, **settings)
    assert "rows" in str(caught.value)


def test_only_public_tests_reach_the_policy(tmp_path: Path) -> None:
    row = {
        "entry_point": "f",
        "tests": [{"args": [5], "expected": 6}],
        "public_tests": json.dumps(CALLS),
        "reference": "def f(x): return x + 1",
    }
    problem = problem_of(tmp_path, row, env="code_attempts", options={"attempts": 2, "test_seconds": 3})
    assert problem.task.payload == {"entry_point": "f", "public_tests": CALLS, "attempts": 2, "test_seconds": 3.0}
    assert problem.reference["tests"] == row["tests"] and problem.reference["test_seconds"] == 3.0
    for prompt in ("{tests}", "{reference}"):
        with pytest.raises(ValueError, match="shows the hidden field"):
            problem_of(tmp_path, row, env="code_attempts", prompt=prompt)


def test_a_rows_own_limit_counts_more_than_the_sources(tmp_path: Path) -> None:
    options = {"test_seconds": 3, "partial_credit": True}
    problem = problem_of(tmp_path, {"entry_point": "f", "tests": CALLS, "test_seconds": 1.5}, env="code", options=options)
    judging = read_tests("code", problem.reference).judging
    assert (judging.test_seconds, judging.partial_credit, judging.memory_mb) == (1.5, True, 512)


def test_hub_rows_take_the_same_options(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "entry_point": "f", "tests": json.dumps(CALLS)}) + "\n")
    settings = {"kind": "hf", "path": str(path), "env": "code"}
    problem = HfSource("rows", config=TaskConfig(**settings, options={"revision": "", "float_tolerance": 0.5})).problem(0)
    assert read_tests("code", problem.reference).judging.float_tolerance == 0.5
    with pytest.raises(ValueError, match="unknown option 'float_tolerance'"):
        HfSource("rows", config=TaskConfig(**settings | {"env": "math"}, options={"float_tolerance": 0.5}))


@pytest.mark.parametrize(
    ("reference", "names"),
    [
        ({"tests": "assert f(1) == g(2)"}, ("f", "g")),
        ({"tests": "import math\nx = 3\nassert f(x) == math.pi"}, ("f",)),
        ({"tests": "assert f(1) == sys.maxsize"}, ("f",)),
        ({"tests": "assert sum(1, 2) == 3", "reference": "def sum(a, b): return a + b"}, ("sum",)),
        ({"tests": "assert f(helper(1)) == 2", "reference": "def f(x): pass\ndef helper(x): pass", "entry_point": "f"}, ("f",)),
        ({"tests": "def check(candidate):\n    assert candidate(1)", "entry_point": "f"}, ("f",)),
        ({"tests": "def check(f):\n    assert f(1)\ncheck(f)", "entry_point": "f"}, ("f",)),
        ({"tests": "assert [f(y) for y in range(3)] == [0] * 3"}, ("f",)),
    ],
)
def test_names_of_the_response(reference: dict[str, Any], names: tuple[str, ...]) -> None:
    tests = read_tests("code", reference)
    assert isinstance(tests, SourceTests) and tests.names == names


def test_names_see_scopes() -> None:
    source = "def g(a):\n    b = a + c\n    return lambda d: d + e\nclass K:\n    x = h\nfor i in j: k = i\n"
    assert names_of(source, what="x").free == {"c", "e", "h", "j"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder with real data is not part of the project")
@pytest.mark.parametrize("name", DATA_SETS)
def test_real_rows_of_every_kind_are_read(name: str) -> None:
    problems = load(name, SHARED)
    assert problems and all(problem.task.prompt[-1].content for problem in problems)
    assert not any("reference" in problem.task.payload or "tests" in problem.task.payload for problem in problems)


@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "same"),
    [
        ("1 2\n", "1 2", 0, True),
        ("1  2 \r\n\n", "1 2\n", 0, True),
        ("\n1", "1", 0, True),
        ("1\n2", "1 2", 0, False),
        ("1\n\n2", "1\n2", 0, False),
        ("1", "1.0", 0, False),
        ("1", "1.0", 1e-6, True),
        ("0.3333", "0.33333", 1e-3, True),
        ("0.3", "0.33333", 1e-3, False),
        ("1e99 x", "3 x", 1e-3, False),
        ("nan", "nan", 1e-3, True),
        ("nan", "3", 1e-3, False),
        ("inf", "3", 1e-3, False),
        ("YES", "yes", 1e-3, False),
        ("", "1", 0, False),
        ("1\n2\n3", "1\n2", 0, False),
        ("9" * 10_000, "3", 1e-3, False),
    ],
)
def test_outputs_are_compared_by_words(printed: str, expected: str, tolerance: float, same: bool) -> None:
    assert (output_difference(printed, expected, tolerance=tolerance) == "") is same


@pytest.mark.parametrize(
    ("text", "expected", "same"),
    [
        ("[1,2]", "[1, 2]", True),
        ("{'b': 1, 'a': 2}", "{'a': 2, 'b': 1}", True),
        ('"x"', "'x'", True),
        ("True", "1", False),
        ("1.0", "1", False),
        ("[True]", "[1]", False),
        ("{1, 2}", "{2, 1}", True),
        ("{1.0}", "{1}", False),
        ("{True}", "{1}", False),
        ("{(1.0, 'a')}", "{(1, 'a')}", False),
        ("{1.0: 'a'}", "{1: 'a'}", False),
        ("{True: 'a'}", "{1: 'a'}", False),
        ("[{(1, True): {2}}]", "[{(1, True): {2}}]", True),
        ("[{(1, True): {2}}]", "[{(1, 1): {2}}]", False),
        ("{1}", "{1, 2}", False),
        ("(1, 2)", "[1, 2]", False),
        ("deque([1])", "deque([1])", True),
        ("deque([1])", "deque([2])", False),
        ("'\\ud800'", "'\\ud800'", True),
    ],
)
def test_literals_are_compared_by_type_and_value(text: str, expected: str, same: bool) -> None:
    assert same_literal(text, expected) is same


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000, "(" * 100 + ")" * 100, "-" * 10_000 + "1", "- " * 5000 + "1", "~" * 50 + "1", "1" * 10_000, "'" + "a" * 30_000 + "'",
        "1\0", "{" * 40 + "}" * 40, "not " * 3000 + "1", "1" + "+1" * 5000, "f()", "__import__('os')",
        "1 if 1 else 2", "{**{}}", "\ud800", "lambda: 1", "b'é'",
    ],
)  # fmt: skip
def test_hostile_literals_are_no_literals(text: str) -> None:
    with pytest.raises(ValueError):
        literal(text)


def refuse(value: Any) -> Any:
    raise NotAValue("an object")


@pytest.mark.parametrize(
    "data",
    [
        {}, {"int": "0x1", "float": "nan"}, {"int": 5}, {"int": "x"}, {"float": "1"}, {"bytes": "zz"}, {"bytes": 3}, {"complex": [1]},
        {"tuple": 3}, {"complex": ["1", 2]}, {"set": [[1]]}, {"dict": [[1]]}, {"dict": [[[1], 2]]}, {"dict": 3}, {"range": [1, 2, 0]},
        {"range": ["a"]}, {"type": "eval"}, {"type": "BaseException"}, {"type": []},
        {"handle": [0, "x"]}, {"other": 1}, {"frozenset": {"int": "0x1"}},
    ],
)  # fmt: skip
def test_malformed_values_are_refused(data: Any) -> None:
    with pytest.raises(NotAValue):
        decode(data, opaque=refuse)


def test_subclasses_and_too_much_are_no_values() -> None:
    class Text(str): ...

    deep: Any = []
    for _ in range(70):
        deep = [deep]
    for value in (Text("x"), {Text("x"): 1}, deep, [0] * 600_000, 1 << 2_000_000, object(), ValueError, refuse):
        with pytest.raises(NotAValue):
            encode(value, opaque=refuse)


def test_the_data_check_names_references_that_fail_and_stubs_that_pass(tmp_path: Path) -> None:
    rows = [
        {"id": "fine", "prompt": "p", "tests": "assert f(1) == 2", "reference": "def f(x): return x + 1"},
        {"id": "wrong", "prompt": "p", "tests": "assert f(1) == 3", "reference": "def f(x): return x + 1"},
        {"id": "lax", "prompt": "p", "tests": "assert f(1) is None", "reference": "def f(x): pass"},
    ]
    (tmp_path / "humanevalfix_py.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = asyncio.run(check("humanevalfix_py", tmp_path))
    assert (found["references_pass"], found["references"], found["stubs_fail"], found["stubs"]) == (2, 3, 7, 9)
    assert found["failing_references"] == ["wrong: a test failed: line 1: assert f(1) == 3: AssertionError"]
    assert [line.split(":")[0] for line in found["passing_stubs"]] == ["lax", "lax"]
