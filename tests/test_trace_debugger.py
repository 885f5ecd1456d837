"""The debugger over recorded traces: what each action leads to, and inputs that are judged by running them."""

from collections.abc import Iterator

import pytest

from environments.traces.debugger.inputs import called_function, gives_output
from environments.traces.debugger.machine import Action, ActionKind, Machine
from environments.traces.debugger.walk import draw_walk
from environments.traces.records import EventKind, Trace, TraceEvent, TraceLimits
from tests.trace_recorder import Recorder

pytestmark = pytest.mark.timeout(120)

PROGRAM = """def inner(x):
    if x > 2:
        raise ValueError(x)
    return x

def gen(n):
    yield n
    yield n + 1

def f(a):
    b = inner(a) + inner(a + 1)
    for g in gen(b):
        b += g
    try:
        inner(b)
    except ValueError:
        b = 0
    return b
"""
EVENTS = (
    "call 10, line 11, call 1, line 2, line 4, return 4, call 1, line 2, line 4, return 4, "  # 0 to 9
    "line 12, call 6, line 7, return 7, line 13, line 12, call 7, line 8, return 8, line 13, "  # 10 to 19
    "line 12, call 8, return 8, line 14, line 15, call 1, line 2, line 3, exception 3, return 3, "  # 20 to 29
    "exception 15, line 16, line 17, line 18, return 18"  # 30 to 34
)
TARGETS = {
    "step_into": {0: 1, 1: 2, 5: 6, 9: 10, 29: 30, 33: 34, 34: None},
    # over all calls of a line; from a return to the caller, not to the next call that the caller's line makes
    "step_over": {0: 1, 1: 10, 2: 3, 4: 5, 5: 10, 9: 10, 10: 14, 22: 23, 24: 30, 27: 28, 28: 29, 29: 30, 33: 34, 34: None},
    "step_return": {0: 34, 2: 5, 4: 5, 5: 34, 12: 13, 17: 18, 27: 29, 34: None},
    "breakpoint 4": {0: 4, 4: 8, 7: 8, 8: None},
    "breakpoint 12": {0: 10, 10: 15, 15: 20, 20: None},
    "breakpoint 1": {0: None},
    "continue": {0: 34, 33: 34, 34: None},
    "reverse_into": {34: 33, 10: 9, 1: 0, 0: None},
    "reverse_over": {34: 33, 30: 24, 23: 20, 10: 1, 6: 1, 2: 1, 5: 4, 3: 2, 25: 24, 1: 0, 0: None},
    "reverse_return": {34: 0, 5: 2, 4: 2, 2: 0, 28: 25, 22: 21, 0: None},
    "reverse_breakpoint 12": {34: 20, 20: 15, 15: 10, 10: None},
    "reverse_continue": {34: 0, 1: 0, 0: None},
}


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture(scope="module")
def machine(recorder: Recorder) -> Machine:
    machine = Machine(recorder.record(PROGRAM, "[1]").trace)
    assert ", ".join(f"{event.kind} {event.line_no}" for event in machine.events) == EVENTS
    return machine


def action(text: str) -> Action:
    kind, _, line_no = text.partition(" ")
    return Action(kind=ActionKind(kind), line_no=int(line_no or 0))


@pytest.mark.parametrize("text", TARGETS)
def test_actions_lead_to_their_events(text: str, machine: Machine) -> None:
    assert {at: machine.target(at, action(text)) for at in TARGETS[text]} == TARGETS[text]
    assert str(action(text)) == text


def test_every_kind_of_action_is_covered() -> None:
    assert {text.partition(" ")[0] for text in TARGETS} == set(ActionKind)


def test_inverses_lead_back(machine: Machine) -> None:
    for at in range(len(machine.events)):
        into = machine.target(at, action("step_into"))
        assert into is None or machine.target(into, action("reverse_into")) == at
        over = machine.target(at, action("step_over"))
        if over is not None and machine.call_of[over] == machine.call_of[at]:
            assert machine.target(over, action("reverse_over")) == at
        if machine.events[at].kind is EventKind.CALL:
            end = machine.target(at, action("step_return"))
            assert end is not None and machine.target(end, action("reverse_return")) == at and machine.is_inverse_of_call(end, at)


def test_the_stack_is_where_each_open_call_stands(machine: Machine) -> None:
    assert machine.stack(0) == (0,)
    assert machine.stack(7) == (1, 7)
    assert machine.stack(28) == (24, 28)


def test_a_trace_that_was_cut_off_has_no_end(recorder: Recorder) -> None:
    source = "def g():\n    return 1\ndef f():\n    g()\n    return g()\n"
    machine = Machine(recorder.record(source, limits=TraceLimits(events=4)).trace)
    assert [event.kind for event in machine.events] == ["call", "line", "call", "line"]
    for text in ("step_return", "continue", "step_over"):
        assert machine.target(3, action(text)) is None, text
    assert machine.target(1, action("step_over")) is None
    assert machine.target(3, action("reverse_return")) == 2


def test_the_entry_of_a_generator_is_called_again_and_again(recorder: Recorder) -> None:
    machine = Machine(recorder.record("def f():\n    yield 1\n    yield 2\n").trace)
    assert [event.kind for event in machine.events] == ["call", "line", "return", "call", "line", "return", "call", "return"]
    assert [machine.target(2, action(text)) for text in ("step_over", "step_return", "continue")] == [3, None, 7]
    assert [machine.target(3, action(text)) for text in ("reverse_over", "reverse_return", "reverse_continue")] == [2, None, 0]


def test_walks_follow_from_their_seed(machine: Machine) -> None:
    kinds = tuple(ActionKind)
    walk = draw_walk(machine, kinds=kinds, turns=40, seed="a")
    assert walk == draw_walk(machine, kinds=kinds, turns=40, seed="a") != draw_walk(machine, kinds=kinds, turns=40, seed="b")
    assert len(walk) == 40 and {step.action.kind for step in walk} == set(kinds)
    for before, step in zip((None, *walk), walk, strict=False):
        assert machine.target(step.at, step.action) == step.to and (before is None or before.to == step.at)
    (only,) = draw_walk(machine, kinds=(ActionKind.CONTINUE,), turns=5, seed="a")
    assert only.to == 34
    assert draw_walk(Machine(Trace(source="", entry_line=1, events=(), complete=False)), kinds=kinds, turns=5, seed="") == ()


def test_another_input_with_the_same_output_is_right(recorder: Recorder) -> None:
    source = (
        "def even(n, *, k=2):\n    return n % k == 0\n"
        "def half(n):\n    return n // 2\n"
        "def one(n): return (lambda n: n)(n)\n"
        "def down(n):\n    while n != 0: n -= 1\n    return n\n"
        "def f(xs):\n    xs.append(half(5))\n    even(4)\n    one(1)\n    down(1)\n    return sorted(xs)\n"
    )
    machine = Machine(recorder.record(source, "[[3, 1]]").trace)
    calls = {event.line: index for index, event in enumerate(machine.events) if event.kind is EventKind.CALL}

    def right(line: str, **shown: str) -> bool:
        predicted = TraceEvent(kind=EventKind.CALL, line=line, locals=shown)
        return recorder.run(gives_output(machine, calls[line], predicted, sandbox=recorder.sandbox))

    assert called_function(machine, calls["def half(n):"]) == ("half", ("n",))
    assert called_function(machine, calls["def even(n, *, k=2):"]) is None
    assert called_function(machine, calls["def one(n): return (lambda n: n)(n)"]) is None
    assert right("def half(n):", n="5") and right("def half(n):", n="4") and right("def half(n):", n="4  # or 5")
    assert right("def f(xs):", xs="[1, 3]") and not right("def f(xs):", xs="[1, 2]")
    assert right("def down(n):", n="3") and not right("def down(n):", n="-1"), "it would run for ever"
    for text in ("6", "4.0", "1 / 0", "n", "", "__import__('os')._exit(0)", "4), (5", "1e999", "9" * 5000, "[" * 10_000, "'5'"):
        assert not right("def half(n):", n=text), text[:40]
    assert not right("def half(n):", m="4") and not right("def half(n):", n="4", m="4") and not right("def half(n):")
