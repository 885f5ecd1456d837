"""The guard of comparisons on sources of tests, in this process: who is caught, and what honest tests do unharmed."""

import ast
import gc
import sys
from typing import Any

import pytest

from environments.swe.inside.suite_worker_decoys import alike, decoys
from environments.swe.inside.suite_worker_guard import ForgedComparison, Guard


class Query:
    """As a database's field: `==` builds what is asked later."""

    def __eq__(self, other: object) -> Any:
        return lambda row: row == other

    __hash__ = None  # type: ignore[assignment]


class Always:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __eq__(self, other: object) -> Any:
        return self.answer

    __hash__ = None  # type: ignore[assignment]


def guarded(source: str, **names: Any) -> Guard:
    """A function `test` with this body, run by a new guard."""
    guard = Guard("/testbed")
    tree = ast.parse("def test():\n" + "".join(f"    {line}\n" for line in source.splitlines()))
    guard.transform(tree)
    code = guard.bind(compile(tree, "test_x.py", "exec"))
    guard.trust(code)
    exec(code, names)
    names["test"]()
    return guard


@pytest.mark.parametrize(
    "source",
    [
        "query = Query() == 1\nassert query(1) and not query(2)",
        "assert (Query() == 1)(1)",
        "parts = [Query() == n for n in (1, 2)]\nassert parts[0](1)",
        "assert all(n == n for n in range(3)) and not any(n == 4 for n in range(3))",
        "found = 1 == 1\nif found == True: pass\nassert found",
    ],
)
def test_honest_tests_run_through(source: str) -> None:
    guard = guarded(source, Query=Query)
    assert (guard.completions, guard.hits) == ([True], [])


@pytest.mark.parametrize("answer", [True, 1, "yes", object()], ids=lambda answer: type(answer).__name__)
@pytest.mark.parametrize(
    "source",
    [
        "assert one == 3",
        "assert not (not one == 3)",
        "assert all(each == 3 for each in [one])",
        "assert any([one == 3])",
        "found = one == 3\nassert found",
        "if one == 3: pass\nelse: raise ValueError",
        "assert 1 if one == 3 else 0",
        "assert [each for each in [one] if each == 3]",
    ],
)
def test_who_is_equal_to_everything_is_caught(source: str, answer: object) -> None:
    with pytest.raises(ForgedComparison, match="class Always is equal to values that it cannot be equal to"):
        guarded(source, one=Always(answer))


@pytest.mark.parametrize("real", [90_000, 1.5, "some words", (1, 2, "x"), [1, 2], {"a": 1}, b"bytes"], ids=repr)
def test_the_real_value_is_referred_to_as_often_as_the_others(real: object) -> None:
    kept = [real] * 50
    values = [*decoys(real, 8), real]
    held = alike(values, len(values) - 1)
    counts = {sys.getrefcount(value) for value in values}
    assert len(counts) == 1, (counts, held, kept)
    same = [gc.is_tracked(value) for value in values if type(value) is type(real)]
    assert same.count(gc.is_tracked(real)) >= len(same) - 1  # the far one has an object in it
