"""Predicted events against true ones: what each component is worth, and that `..` is resolved first."""

import pytest

from environments.traces.compare import ComponentMatch, compare_events
from environments.traces.records import EventKind, TraceEvent
from environments.traces.text import TraceTextError, known_after, parse_event, render_event

TRUE = TraceEvent(kind=EventKind.LINE, line="    n += 1", locals={"n": "1", "m": "[]"})
RETURN = TraceEvent(kind=EventKind.RETURN, line="    return n", value="2")


@pytest.mark.parametrize(
    ("expected", "predicted", "event", "line", "state", "reward"),
    [
        (TRUE, '<|line_sep|>{"m": "..", "n": ".."}<|action_sep|>    n += 1\n<|frame_sep|>', True, True, 1.0, 1.0),
        (TRUE, '<|line_sep|>{"n": "1", "m": "[]"}<|action_sep|>    n += 1\n<|frame_sep|>', True, True, 1.0, 1.0),
        (TRUE, '<|line_sep|>{"n": "2", "m": ".."}<|action_sep|>    n += 1\n<|frame_sep|>', True, True, 0.5, 0.75),
        (TRUE, '<|line_sep|>{"n": ".."}<|action_sep|>    n += 1\n<|frame_sep|>', True, True, 0.5, 0.75),
        (TRUE, '<|line_sep|>{"n": "..", "m": "..", "a": "", "b": ""}<|action_sep|>x\n<|frame_sep|>', True, False, 0.5, 0.45),
        (TRUE, '<|call_sep|>{"n": "1", "m": "[]"}<|action_sep|>    n += 1\n<|frame_sep|>', False, True, 1.0, 0.8),
        (TRUE, '<|return_sep|><|action_sep|>    n += 1\n<|arg_sep|>"1"<|frame_sep|>', False, True, 0.0, 0.3),
        (RETURN, '<|return_sep|><|action_sep|>    return n\n<|arg_sep|>"2"<|frame_sep|>', True, True, 1.0, 1.0),
        (RETURN, "<|return_sep|><|action_sep|>    return n\n<|arg_sep|>\"'2'\"<|frame_sep|>", True, True, 0.0, 0.5),
        (RETURN, "<|line_sep|>{}<|action_sep|>    return n\n<|frame_sep|>", False, True, 0.0, 0.3),
    ],
)
def test_components_count_by_their_weights(
    expected: TraceEvent, predicted: str, event: bool, line: bool, state: float, reward: float
) -> None:
    match = compare_events(expected, parse_event(predicted, known={"n": "1", "m": "[]"}))
    assert (match.event, match.line, match.state) == (event, line, state)
    assert match.reward == pytest.approx(reward)
    assert match.exact == (reward == 1.0)
    assert (match.locals is None) == (expected.locals is None) and (match.value is None) == (expected.value is None)


def test_two_events_without_locals_are_equal() -> None:
    call = TraceEvent(kind=EventKind.CALL, line="def f():", locals={})
    assert compare_events(call, call) == ComponentMatch(event=True, line=True, locals=1.0, value=None)


def test_what_is_no_frame_has_nothing_right() -> None:
    assert compare_events(TRUE, None) == ComponentMatch(event=False, line=False, locals=0.0, value=None)
    assert compare_events(RETURN, None) == ComponentMatch(event=False, line=False, locals=None, value=False)
    assert compare_events(TRUE, None).reward == compare_events(RETURN, None).reward == 0.0


def test_one_frame_is_read_as_it_was_written_and_nothing_else() -> None:
    known = {"n": "1"}
    for event in (TRUE, RETURN):
        assert parse_event(render_event(event, known=known), known=known) == event
    assert known_after(TRUE, known=known) == TRUE.locals and known_after(RETURN, known=known) == {}
    assert known_after(TraceEvent(kind=EventKind.EXCEPTION, line="", value="KeyError('k')"), known=known) == known
    frame = '<|call_sep|>{"n": "1"}<|action_sep|>def f(n):\n<|frame_sep|>'
    for text, words in (
        ("", "a frame should begin here"),
        ("I think " + frame, "a token should stand here"),
        (frame + " ", "something stands behind the frame"),
        (frame + frame, "something stands behind the frame"),
        (frame.replace('"1"', '".."'), "no frame since the last call or return shows it"),
        (frame.removesuffix("<|frame_sep|>"), "<|frame_sep|> should stand here"),
    ):
        with pytest.raises(TraceTextError, match=words.replace("|", r"\|")):
            parse_event(text, known=known)
