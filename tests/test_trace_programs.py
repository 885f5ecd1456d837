"""Programs for trace tasks: how rows are read, how hard a program is, and what the generator makes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from environments.sandbox.make import make_sandbox
from environments.traces.difficulty import ValueKind, measure, value_kind
from environments.traces.generator import SHAPES, Generator, GeneratorOptions
from environments.traces.programs import TraceProgram, read_programs
from environments.traces.records import Recording
from environments.traces.tracer import Program, record_trace

pytestmark = pytest.mark.timeout(120)


def record(*programs: Program) -> list[Recording]:
    async def run() -> list[Recording]:
        sandbox = make_sandbox()
        try:
            return [await record_trace(program, sandbox=sandbox) for program in programs]
        finally:
            await sandbox.close()

    return asyncio.run(run())


def read(folder: Path, form: str, *rows: dict[str, Any]) -> list[TraceProgram]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_programs(file, form=form))


FROM = {"source": "repo@1:file", "license": "MIT"}
ROWS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "humaneval": (
        {
            "id": "h/1",
            "prompt": "def add(a, b):\n",
            "reference": "    return a + b\n",
            "tests": "def check(candidate):\n    assert candidate(len('ab'), 2) == 4\n    assert candidate(-1, 2) == 1\n",
            "entry_point": "add",
            **FROM,
        },
        "add(-1, 2)",
        "1",
    ),
    "mbpp": ({"id": 2, "reference": "def up(s): return s.upper()", "tests": "assert up('a') == 'A'", **FROM}, "up('a')", "'A'"),
    "cruxeval": ({"code": "def f(a, b=1):\n    return [a, b]", "input": "'x', 3", "output": "['x', 3]"}, "f('x', 3)", "['x', 3]"),
}


@pytest.mark.parametrize("form", ROWS)
def test_reference_solutions_are_called_as_their_first_test_does(form: str, tmp_path: Path) -> None:
    row, call, value = ROWS[form]
    (found,) = read(tmp_path, form, row)
    assert found.call == call and found.id == str(row.get("id", "000000"))
    assert (found.origin, found.license) == (row.get("source", ""), row.get("license", ""))
    assert record(found.program)[0].value == value


def test_a_call_that_is_no_list_of_literals_is_made_by_main(tmp_path: Path) -> None:
    rows = [{"code": "def f(a, b=1):\n    return [a, b]", "input": text, "output": "[1, 2]"} for text in ("1, b=2", "len('a'), 2")]
    found = read(tmp_path, "cruxeval", *rows)
    assert [one.call for one in found] == ["main()", "main()"]
    assert [one.value for one in record(*(one.program for one in found))] == ["[1, 2]", "[1, 2]"]
    (tests_only,) = read(tmp_path, "mbpp", {"reference": "def g(x):\n    return x", "tests": "assert g(len([])) == 0"})
    assert tests_only.entry == "main" and "assert g(len([])) == 0" in tests_only.source


def test_own_rows(tmp_path: Path) -> None:
    rows = [{"source": "x = 1\n"}, {"id": "b", "source": "def f(x): return x", "entry": "f", "args": "[{'a': (1,)}]", "license": "MIT"}]
    script, function = read(tmp_path, "programs", *rows)
    assert (script.entry, script.call, function.call, function.license) == (None, "", "f({'a': (1,)})", "MIT")


@pytest.mark.parametrize(
    ("form", "row", "says"),
    [
        ("program", {}, "unknown form of rows 'program'; did you mean 'programs'"),
        ("programs", {"source": 3}, "field 'source' is 3"),
        ("programs", {"source": "x", "entry": "a b"}, "field 'entry' is 'a b'"),
        ("programs", {"source": "x", "entry": "f", "args": "[f()]"}, "field 'args': args '[f()]' is no Python literal"),
        ("programs", {"source": "x", "args": "[1]"}, "without an entry"),
        ("mbpp", {"reference": "def f(:", "tests": "f()"}, "field 'reference' is no Python"),
        ("cruxeval", {"code": "def f(): pass", "input": ")", "output": "1"}, "field 'input' is no Python"),
    ],
)
def test_a_row_that_is_no_program_is_named(form: str, row: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        read(tmp_path, form, row)
    assert says in str(error.value) and (form == "program" or "rows.jsonl:1: " in str(error.value))


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: field 'id': id 'a' is already used on line 1"):
        read(tmp_path, "programs", *({"id": "a", "source": "x"} for _ in range(2)))


KINDS = {
    ValueKind.NUMBER: ("1", "-2.5e-07", "None", "False", "nan", "-inf", "(1+2j)"),
    ValueKind.TEXT: ("'[1]'", '"it\'s"', "b'x'", "''"),
    ValueKind.FLAT: ("[1, 'a(', None]", "{'a': 1}", "(1,)", "{1, 2}", "[]", "()"),
    ValueKind.NESTED: ("[[1]]", "{'a': (1, 2)}", "[{}]"),
    ValueKind.OBJECT: ("<Stack items=[1]>", "Point(x=1)", "[<function f>]", "deque([1])", "frozenset({1})", "[Point(x=1)]", "'cut..."),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_values(kind: ValueKind) -> None:
    assert [value_kind(text) for text in KINDS[kind]] == [kind] * len(KINDS[kind])


def test_difficulty_counts_events_turns_calls_and_values() -> None:
    straight, loops, calls = record(
        Program(source="def f(a):\n    b = a + 1\n    return b\n", entry="f", args="[1]"),
        Program(
            source="def f(n):\n    xs = [y for y in 'ab']\n    for i in range(n):\n        while n:\n            n -= 1\n",
            entry="f",
            args="[3]",
        ),
        Program(source="def g(n):\n    return [n and g(n - 1)]\n\ndef f():\n    return g(3)\n", entry="f"),
    )
    found = [measure(one.trace) for one in (straight, loops, calls)]
    assert [(one.iterations, one.calls) for one in found] == [(0, 0), (6, 0), (0, 4)]
    assert [one.values for one in found] == [ValueKind.NUMBER, ValueKind.FLAT, ValueKind.NESTED]
    assert [one.level for one in found] == ["trivial", "medium", "medium"]


@pytest.mark.parametrize("level", SHAPES)
def test_generated_programs_are_of_their_level_distinct_and_repeatable(level: str) -> None:
    made = list(Generator(GeneratorOptions(level=level), seed=3).distinct(20))
    again = Generator(GeneratorOptions(level=level), seed=3)
    assert [again.program(index).program for index in (2, 0)] == [made[2].program, made[0].program]
    assert len({(one.program.source, one.program.args) for one in made}) == 20
    assert all(measure(one.recording.trace).level == level == one.program.difficulty for one in made)
    assert [one.program for one in Generator(GeneratorOptions(level=level), seed=4).distinct(3)] != [one.program for one in made[:3]]


def test_generated_programs_have_all_that_they_may_have() -> None:
    text = "".join(one.program.source for one in Generator(GeneratorOptions(level="medium"), seed=0).distinct(60))
    for part in (
        "for i in range(",
        "for ch in s:",
        "for x in xs:",
        "while ",
        "if ",
        "else:",
        "def g(n):\n    if n <= 0:",
        "[::-1]",
        ".get(",
    ):
        assert part in text, part
    numbers = "".join(one.program.source for one in Generator(GeneratorOptions(types="int"), seed=0).distinct(20))
    assert "xs" not in numbers and "'" not in numbers


def test_generated_programs_are_recorded_as_in_the_sandbox() -> None:
    made = [one for level in SHAPES for one in Generator(GeneratorOptions(level=level), seed=5).distinct(3)]
    for one, recording in zip(made, record(*(one.program.program for one in made)), strict=True):
        assert (recording.status, recording.trace, recording.value) == ("ok", one.recording.trace, one.recording.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"level": "extreme"}, "options.level: unknown level 'extreme'"),
        ({"types": "int float"}, "options.types: unknown type 'float'"),
        ({"types": ""}, "options.types is empty"),
    ],
)
def test_options_that_generate_nothing_are_refused(options: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Generator(GeneratorOptions(**options), seed=0)
