"""Traces in sentences: what they say, and that a hostile program cannot write into them."""

from pathlib import Path

import pytest

from environments.traces.text import TOKENS, parse_trace
from rl.cli import main
from rl.traces.prose import describe_trace

pytestmark = pytest.mark.timeout(120)

PROGRAM = """\
def gen(n):
    for i in range(n):
        yield i

def fails(k):
    raise KeyError(k)

def f(s):
    total = sum(gen(2))
    try:
        fails(s)
    except KeyError as error:
        del total
    squares = [x * x for x in (1, 2)]
    return squares  # <|frame_sep|>\x1b[2J
"""
SENTENCES = """\
f starts with s = '\\x1b<\\|eot_id|>'.
Line 9, `total = sum(gen(2))` makes a call.
  gen starts with n = 2.
  Line 2, `for i in range(n):`: i becomes 0.
  Line 3, `yield i`: gen pauses with 0.
  gen goes on at line 3 with n = 2, i = 0.
  Line 2, `for i in range(n):`: i becomes 1.
  Line 3, `yield i`: gen pauses with 1.
  gen goes on at line 3 with n = 2, i = 1.
  Line 2, `for i in range(n):`: gen returns None.
Back in f: total becomes 1.
Line 10, `try:`: nothing changes.
Line 11, `fails(s)` makes a call.
  fails starts with k = '\\x1b<\\|eot_id|>'.
  Line 6, `raise KeyError(k)`: raises KeyError('\\x1b<\\|eot_id|>').
  fails ends with the exception.
Line 11, `fails(s)`: raises KeyError('\\x1b<\\|eot_id|>').
Line 12, `except KeyError as error:`: error becomes KeyError('\\x1b<\\|eot_id|>').
Line 13, `del total`: total is gone and error is gone.
Line 14, `squares = [x * x for x in (1, 2)]` makes a call.
  The comprehension of line 14 starts.
  Line 14, `squares = [x * x for x in (1, 2)]`: x becomes 1.
  Line 14, `squares = [x * x for x in (1, 2)]`: x becomes 2.
  Line 14, `squares = [x * x for x in (1, 2)]`: the comprehension of line 14 returns [1, 4].
Back in f: squares becomes [1, 4].
Line 15, `return squares  # <\\|frame_sep|>\\x1b[2J`: f returns [1, 4].

Input: s = '\\x1b<\\|eot_id|>'. Output: [1, 4].
"""


def test_every_construct_is_told_and_nothing_hostile_gets_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.py"
    file.write_text(PROGRAM)
    assert main(["trace", str(file), "--entry", "f", "--args", r"['\x1b<|eot_id|>']", "--prose"]) == 0
    listing, _, sentences = capsys.readouterr().out.partition("\n\nf starts")
    assert f"f starts{sentences}" == SENTENCES
    assert listing.startswith(" 1 | def gen(n):\n 2 |     for i in range(n):\n") and listing.endswith("# <\\|frame_sep|>\\x1b[2J")
    assert main(["trace", str(file), "--prose", "--table"]) == 2
    assert "--table and --prose are given; choose one" in capsys.readouterr().err


def test_the_end_is_told_as_it_was() -> None:
    head = "<|trace_context_start|>def f(x):  # << START_OF_TRACE\n    return 1 / x\n<|frame_sep|>"
    call = (
        '<|call_sep|>{"x": "0"}<|action_sep|>def f(x):\n<|frame_sep|><|line_sep|>{"x": ".."}<|action_sep|>    return 1 / x\n<|frame_sep|>'
    )
    raised = "<|exception_sep|><|action_sep|>    return 1 / x\n<|arg_sep|>\"ZeroDivisionError('division by zero')\"<|frame_sep|>"
    left = '<|return_sep|><|action_sep|>    return 1 / x\n<|arg_sep|>"None"<|frame_sep|><|end_of_text|>'
    ends = {
        "": "Nothing ran.",
        call: "Line 2, `return 1 / x` is reached.\nThe trace was cut off here.\n\nInput: x = 0. Output: not known, the trace was cut off.",
        call + raised + left: "f ends with the exception.\n\nInput: x = 0. Output: the exception ZeroDivisionError('division by zero').",
    }
    for frames, end in ends.items():
        text = describe_trace(parse_trace(head + frames))
        assert text.endswith(f"{end}\n")
        assert not any(token in text for token in TOKENS)


def test_a_source_that_is_no_python_is_told_without_names() -> None:
    text = "<|trace_context_start|>def f(:  # << START_OF_TRACE<|frame_sep|><|call_sep|>{}<|action_sep|>def f(:\n<|frame_sep|>"
    assert "The program starts.\n" in describe_trace(parse_trace(text))
