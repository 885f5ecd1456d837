"""Locals that are set while a program runs: what follows is what Python does with the new values."""

from collections.abc import Iterator

import pytest

from environments.traces.records import Edit, Recording, TraceStatus
from tests.test_trace_debugger import PROGRAM
from tests.trace_attacks import ATTACKS
from tests.trace_recorder import Recorder

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


COUNT = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"
SCRIPT = "x = 1\ny = x + 1\nclass A:\n    z = y\n    w = z\n"
CLOSURE = "def f(n):\n    def g():\n        return n\n    return g()\n"


def edited(recorder: Recorder, source: str, args: str, *edits: tuple[int, str, str], entry: str | None = "f") -> Recording:
    made = [Edit(event=event, name=name, value=value) for event, name, value in edits]
    return recorder.record(source, args, entry=entry, edits=made)


def test_a_new_value_is_shown_and_used(recorder: Recorder) -> None:
    plain = recorder.record(COUNT, "[3]")
    assert plain.value == "3" and [event.line_no for event in plain.trace.events[:4]] == [1, 2, 3, 4]
    recording = edited(recorder, COUNT, "[3]", (3, "total", "10"))
    assert (recording.status, recording.value) == (TraceStatus.OK, "13")
    assert recording.trace.events[:3] == plain.trace.events[:3]
    assert recording.trace.events[3].locals == {"n": "3", "total": "10", "i": "0"}
    assert edited(recorder, COUNT, "[3]", (0, "n", "2"), (3, "total", "10")).value == "11", "an argument, before its function begins"
    assert edited(recorder, COUNT, "[3]", (3, "total", "'a'")).reason.startswith("TypeError"), "it may fail, too"
    assert edited(recorder, COUNT, "[3]", (5, "total", "0"), (5, "i", "7")).value == "9"


def test_cells_modules_and_classes_can_be_edited(recorder: Recorder) -> None:
    assert edited(recorder, CLOSURE, "[1]", (2, "n", "5")).value == "5"
    script = edited(recorder, SCRIPT, "[]", (2, "x", "40"), entry=None)
    (before_class,) = (event for event in script.trace.events if event.line == "class A:" and event.depth == 1 and event.kind == "line")
    assert before_class.locals == {"x": "40", "y": "41"}
    body = edited(recorder, SCRIPT, "[]", (6, "z", "7"), entry=None)
    assert [event.locals for event in body.trace.events[5:7]] == [{}, {"z": "7"}]


def test_without_a_change_the_trace_is_the_same(recorder: Recorder) -> None:
    """The slower tracer sees what the other one sees."""
    for source, args, entry in ((COUNT, "[3]", "f"), (PROGRAM, "[1]", "f"), (CLOSURE, "[1]", "f"), (SCRIPT, "[]", None)):
        plain = recorder.record(source, args, entry=entry)
        again = edited(recorder, source, args, (10**6, "x", "0"), entry=entry)
        assert (again.trace, again.status, again.value) == (plain.trace, plain.status, plain.value), source


@pytest.mark.parametrize("name", ["endless loop", "endless recursion", "settrace(None)", "metaclass that is asked nothing"])
def test_limits_hold_with_edits(name: str, recorder: Recorder) -> None:
    attack = ATTACKS[name]
    recording = recorder.record(attack.source, limits=attack.limits, edits=[Edit(event=1, name="x", value="0")])
    assert recording.status is attack.status


def test_a_value_is_a_literal(recorder: Recorder) -> None:
    with pytest.raises(ValueError, match=r"value 'exit\(\)' is no Python literal"):
        edited(recorder, COUNT, "[3]", (3, "total", "exit()"))
