"""The tracer with the real sandbox: what a trace holds, how hostile programs end, and that the text is read back as it was written."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from environments.sandbox.base import Sandbox
from environments.sandbox.make import make_sandbox
from environments.traces.records import EventKind, Recording, StepFilter, TraceEvent, TraceLimits, TraceStatus
from environments.traces.text import TraceTextError, parse_frames, parse_trace, render_events, render_trace
from environments.traces.tracer import Program, record_trace
from rl.cli import main
from tests.trace_attacks import ATTACKS

pytestmark = pytest.mark.timeout(120)


class Tracer:
    """One sandbox and its event loop for all tests of this file."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._sandbox: Sandbox = make_sandbox()

    def __call__(
        self, source: str, args: str = "[]", *, entry: str | None = "f", limits: TraceLimits | None = None, step: StepFilter | None = None
    ) -> Recording:
        program = Program(source=source, entry=entry, args=args)
        recording = self._loop.run_until_complete(record_trace(program, sandbox=self._sandbox, limits=limits, step=step))
        text = render_trace(recording.trace)
        assert parse_trace(text) == recording.trace
        assert render_trace(parse_trace(text)) == text
        return recording

    def close(self) -> None:
        self._loop.run_until_complete(self._sandbox.close())
        self._loop.close()


@pytest.fixture(scope="module")
def trace() -> Iterator[Tracer]:
    tracer = Tracer()
    yield tracer
    tracer.close()


def shown(recording: Recording, name: str) -> list[str]:
    """The values that a local takes, one after the other."""
    values: list[str] = []
    for event in recording.trace.events:
        text = (event.locals or {}).get(name)
        if text is not None and values[-1:] != [text]:
            values.append(text)
    return values


def test_text_is_as_cwm_writes_it(trace: Tracer) -> None:
    recording = trace("def g(c):\n    return c == 'é'\n\ndef f(c):\n    n = g(c)\n    return [n]\n", "['é']")
    assert recording.status is TraceStatus.OK and recording.value == "[True]"
    assert render_trace(recording.trace) == (
        "<|begin_of_text|><|trace_context_start|>def g(c):\n    return c == 'é'\n\n"
        "def f(c):  # << START_OF_TRACE\n    n = g(c)\n    return [n]\n<|frame_sep|>"
        '<|call_sep|>{"c": "\'\\u00e9\'"}<|action_sep|>def f(c):\n<|frame_sep|>'
        '<|line_sep|>{"c": ".."}<|action_sep|>    n = g(c)\n<|frame_sep|>'
        '<|call_sep|>{"c": "\'\\u00e9\'"}<|action_sep|>def g(c):\n<|frame_sep|>'
        '<|line_sep|>{"c": ".."}<|action_sep|>    return c == \'é\'\n<|frame_sep|>'
        "<|return_sep|><|action_sep|>    return c == 'é'\n<|arg_sep|>\"True\"<|frame_sep|>"
        '<|line_sep|>{"c": "\'\\u00e9\'", "n": "True"}<|action_sep|>    return [n]\n<|frame_sep|>'
        '<|return_sep|><|action_sep|>    return [n]\n<|arg_sep|>"[True]"<|frame_sep|><|end_of_text|>'
    )


CHANGES = {
    "a list through another name": ("a = []\n    b = a\n    b.append(1)\n    return a", "a", ["[]", "[1]"]),
    "in a callee": ("a = [2]\n    def g():\n        a.append(3)\n    g()\n    return 1", "a", ["[2]", "[2, 3]"]),
    "a cell": ("n = 0\n    def g():\n        nonlocal n\n        n += 1\n    g()\n    g()\n    return 1", "n", ["0", "1", "2"]),
    "a defaultdict that is read": (
        "from collections import defaultdict\n    d = defaultdict(int)\n    d['k']\n    return 1",
        "d",
        ["defaultdict(<class 'int'>, {})", "defaultdict(<class 'int'>, {'k': 0})"],
    ),
    "in place": ("a = [1]\n    b = a\n    b += [2]\n    return 1", "a", ["[1]", "[1, 2]"]),
    "an attribute": ("class P: pass\n    p = P()\n    p.x = 1\n    p.x = [p]\n    return 1", "p", ["<f.<locals>.P>", "<f.<locals>.P x=1>"]),
    "type alone": ("a = 1\n    a = True\n    a = 1.0\n    return 1", "a", ["1", "True", "1.0"]),
    "deleted and bound again": ("a = 1\n    del a\n    b = 2\n    a = 1\n    return 1", "a", ["1"]),
    "sort": ("a = [3, 1]\n    a.sort()\n    return 1", "a", ["[3, 1]", "[1, 3]"]),
    "by a slot": ("a = [3, 1]\n    a[0] = a[1] = 60\n    return 1", "a", ["[3, 1]", "[60, 60]"]),
    "sets": ("a = {1}\n    a.add(2)\n    b = [a]\n    a.clear()\n    return 1", "b", ["[{1, 2}]", "[set()]"]),
    "a bytearray in a list": ("a = [bytearray(b'x')]\n    a[0] = b'x'\n    return 1", "a", ["[bytearray(b'x')]", "[b'x']"]),
    "a dataclass": (
        "from dataclasses import dataclass\n    @dataclass\n    class P:\n        x: int\n    p = P(1)\n    p.x = 2\n    return 1",
        "p",
        ["f.<locals>.P(x=1)", "f.<locals>.P(x=2)"],
    ),
}


def test_changes_are_seen_when_they_happen(trace: Tracer) -> None:
    for name, (body, local, values) in CHANGES.items():
        recording = trace(f"def f():\n    {body}\n")
        assert recording.status is TraceStatus.OK, name
        assert shown(recording, local)[: len(values)] == values, name


def test_every_construct_is_followed(trace: Tracer) -> None:
    source = """
import asyncio
def gen(n):
    for i in range(n):
        got = yield i
class Box:
    size = 2
    def __init__(self, x):
        self.x = x
    def double(self):
        return self.x * self.size
async def wait(x):
    await asyncio.sleep(0)
    return x
def fails():
    raise KeyError('k')
async def f(n):
    squares = [i * i for i in gen(n)]
    add = lambda a: a + n
    total = add(Box(n).double())
    try:
        fails()
    except KeyError as error:
        total += 1
    return total + await wait(n), squares
"""
    recording = trace(source, "[2]")
    assert (recording.status, recording.value) == (TraceStatus.OK, "(9, [0, 1])")
    calls = [event.line.strip() for event in recording.trace.events if event.kind is EventKind.CALL]
    assert calls[0] == "async def f(n):"
    assert {"squares = [i * i for i in gen(n)]", "def gen(n):", "add = lambda a: a + n", "def double(self):", "def fails():"} <= set(calls)
    raised = [event.value for event in recording.trace.events if event.kind is EventKind.EXCEPTION and event.line.startswith("    raise")]
    assert raised == ["KeyError('k')"]
    assert trace(source, "[2]").trace == recording.trace


def test_a_script_is_followed_from_its_first_statement(trace: Tracer) -> None:
    recording = trace("# words\nx = {'b', 'a'}\nclass A:\n    y = 1\nfor w in sorted(x):\n    print(w)\n", entry=None)
    assert (recording.status, recording.stdout, recording.trace.entry_line) == (TraceStatus.OK, "a\nb\n", 2)
    assert recording.trace.events[0].line == "x = {'b', 'a'}" and recording.trace.events[0].depth == 1
    assert recording.trace.events[-2].locals == {"x": "{'a', 'b'}", "A": "<class 'A'>", "w": "'b'"}


@pytest.mark.parametrize("source", ["", "# words\n", '"words"\n'])
def test_a_script_of_nothing_has_a_call_a_line_and_a_return(source: str, trace: Tracer) -> None:
    recording = trace(source, entry=None)
    assert recording.status is TraceStatus.OK, recording.reason
    assert [event.kind for event in recording.trace.events] == ["call", "line", "return"]


def test_an_exception_that_leaves_the_entry_is_a_whole_trace(trace: Tracer) -> None:
    recording = trace("def g():\n    return 1 / 0\ndef f():\n    return g()\n")
    assert (recording.status, recording.reason, recording.trace.complete) == (
        TraceStatus.RAISED,
        "ZeroDivisionError('division by zero')",
        True,
    )
    assert " ".join(event.kind for event in recording.trace.events) == "call line call line exception return exception return"


def test_functions_are_stepped_into_and_over(trace: Tracer) -> None:
    source = "def g():\n    return h()\ndef h():\n    return 1\ndef f():\n    return g()\n"

    def calls(step: StepFilter) -> list[str]:
        return [event.line[4] for event in trace(source, step=step).trace.events if event.kind is EventKind.CALL]

    assert calls(StepFilter()) == ["f", "g", "h"]
    assert calls(StepFilter(exclude=("g",))) == ["f", "h"]
    assert calls(StepFilter(include=("g",))) == ["f", "g"]


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_programs_end_with_a_named_status(name: str, trace: Tracer) -> None:
    attack = ATTACKS[name]
    recording = trace(attack.source, limits=attack.limits)
    assert recording.status is attack.status, recording.reason
    assert recording.trace.complete == (attack.status in (TraceStatus.OK, TraceStatus.RAISED))
    assert bool(recording.reason) == (attack.status is not TraceStatus.OK)
    assert attack.least_events <= recording.n_events <= attack.most_events
    assert len(recording.stdout) <= attack.limits.printed_bytes
    assert all(len(text) <= 1003 for event in recording.trace.events for text in (event.locals or {}).values())


def test_what_cannot_be_traced_is_said(trace: Tracer) -> None:
    for program, words in (
        (("def f():\n    pass", "[]", "g"), "entry 'g' is not defined at the top level of the program, which defines f"),
        (("def f():\n    pass", "[f]", "f"), "no Python literal"),
        (("def f():\n    pass", "3", "f"), "is no list: write \\[3\\]"),
        (("x = 1", "[1]", None), "args are given without an entry"),
        (("x = '\0'", "[]", None), "NUL"),
    ):
        with pytest.raises(ValueError, match=words):
            trace(program[0], program[1], entry=program[2])
    with pytest.raises(ValueError, match="trace limit events is 0"):
        TraceLimits(events=0)


HEAD = "<|begin_of_text|><|trace_context_start|>def f():  # << START_OF_TRACE\n    x = 1\n<|frame_sep|>"
CALL = "<|call_sep|>{}<|action_sep|>def f():\n<|frame_sep|>"
BROKEN = {
    "": "<|trace_context_start|> should stand here",
    "x" + HEAD: "a token should stand here",
    HEAD.replace("  # <<", " # <"): "entry mark",
    HEAD + "<|line_sep|>{}<|action_sep|>    x = 1\n<|frame_sep|>": "outside of any call",
    HEAD + CALL + "<|end_of_text|>": "ends inside of 1 calls",
    HEAD + CALL + '<|line_sep|>{"x": ".."}<|action_sep|>    x = 1\n<|frame_sep|>': "no frame since the last call or return shows it",
    HEAD + CALL + '<|line_sep|>{"x": 1}<|action_sep|>    x = 1\n<|frame_sep|>': "1 is no string",
    HEAD + CALL + '<|line_sep|>{"x": "1", "x": "2"}<|action_sep|>    x = 1\n<|frame_sep|>': "a name stands twice",
    HEAD + CALL + '<|line_sep|>["x"]<|action_sep|>    x = 1\n<|frame_sep|>': "JSON object",
    HEAD + CALL + '<|line_sep|>{"x": []}<|action_sep|>    x = 1\n<|frame_sep|>': "must be a JSON string",
    HEAD + CALL + "<|line_sep|>{}<|action_sep|>    x = 1\n    y\n<|frame_sep|>": "one line",
    HEAD + CALL + "<|return_sep|><|action_sep|>    x = 1\n<|arg_sep|>None<|frame_sep|>": "no JSON",
    HEAD + CALL + "<|return_sep|><|action_sep|>    x = 1\n<|frame_sep|>": "<|arg_sep|> should stand here",
    HEAD + CALL + "<|line_sep|>{}": "<|action_sep|> should stand here, not the end of the text",
    HEAD + CALL + "<|frame_sep|>": "a frame should begin here",
    HEAD + CALL + '<|return_sep|><|action_sep|>    x = 1\n<|arg_sep|>"1"<|frame_sep|><|end_of_text|>more': "something stands behind",
}


@pytest.mark.parametrize("text", BROKEN)
def test_broken_texts_are_refused_with_a_position(text: str) -> None:
    with pytest.raises(TraceTextError) as error:
        parse_trace(text)
    assert BROKEN[text] in error.value.reason and 0 <= error.value.position <= len(text)


@pytest.mark.parametrize(
    "unit", ["<|frame_sep|>", "<", "<\\", '{"a":', "[", "9", CALL, '<|line_sep|>{"x": "..", "y": "1"}', '<|arg_sep|>"', "\\"], ids=repr
)
def test_hostile_texts_are_refused_or_read_in_linear_time(unit: str) -> None:
    """A quadratic step would take hours for these, and the timeout would end it."""
    bulk = unit * (4_000_000 // len(unit))
    for text in (
        bulk,
        HEAD + bulk,
        HEAD + CALL + "<|line_sep|>" + bulk,
        f"<|trace_context_start|>{bulk}  # << START_OF_TRACE<|frame_sep|>",
    ):
        try:
            parse_trace(text)
        except TraceTextError as error:
            assert 0 <= error.position <= len(text)


def test_frames_of_a_model_are_read_without_their_context() -> None:
    source = "def f():\n    x = 1\n    x = 1\n    return x\n"
    text = "<|call_sep|>{ }<|action_sep|>def f():  # << START_OF_TRACE<|frame_sep|><|line_sep|>{}<|action_sep|>    x = 1\n<|frame_sep|>"
    events, complete = parse_frames(text, source=source)
    assert not complete
    assert [(event.kind, event.line, event.line_no) for event in events] == [
        (EventKind.CALL, "def f():", 1),
        (EventKind.LINE, "    x = 1", 0),
    ]
    unsayable = TraceEvent(kind=EventKind.CALL, line="def f():", locals={"x": ".."})
    with pytest.raises(ValueError, match=r"stands for an unchanged value"):
        list(render_events([unsayable]))


def test_rl_trace_prints_text_json_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.py"
    file.write_text("def f(s):\n    t = s * 2  # \x1b[31m\n    return t\n")
    words = ["trace", str(file), "--entry", "f", "--args", r"['\x1b[2J']"]
    assert main(words) == 0
    assert parse_trace(capsys.readouterr().out.removesuffix("\n")).complete
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["value"], len(found["events"])) == ("ok", r"'\x1b[2J\x1b[2J'", 4)
    assert main([*words, "--table"]) == 0
    table = capsys.readouterr().out
    assert "return" in table and "ok: 4 events" in table and "\x1b" not in table
    assert main([*words, "--events", "2"]) == 1
    assert "rl trace: events: more than 2 events" in capsys.readouterr().err
    assert main([*words, "--table", "--json"]) == 2
    assert "choose one" in capsys.readouterr().err
    assert main(words[:-2]) == 1
    assert "rl trace: raised: TypeError(" in capsys.readouterr().err
    file.write_bytes(b"\xef\xbb\xbfdef f():\n    return len('a')\n")
    assert main(words[:-2]) == 0
    assert capsys.readouterr().out.startswith("<|begin_of_text|><|trace_context_start|>def f():")
