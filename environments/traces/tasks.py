"""What the graders of trace predictions need of a problem, read from its reference and checked.

| env | the reference has |
|---|---|
| trace_output | `answer`: the literal that the call returns; `reasoning`: whether the reply thinks first |
| trace_input | `code`, `entry`, `output`: the literal that the call must return; `answer`: an input that is right; `frames`: see there |
| trace_next_frame | `code`, `shown`: the frames in the prompt; `answer`: the frame that follows; `partial_credit` |
| trace_full | as trace_next_frame, with all frames that follow; `complete` |
| trace_return | `code`, `shown`: the call frame of the entry; `answer`: its return frame |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from environments.code_tests.compare import literal
from environments.records import Json
from environments.traces.entry import entry_line
from environments.traces.records import EventKind, TraceEvent
from environments.traces.text import END, EVENT_TOKENS, FRAME, TraceTextError, known_after, parse_event, parse_frames

OUTPUT, INPUT, NEXT_FRAME, FULL, RETURN = "trace_output", "trace_input", "trace_next_frame", "trace_full", "trace_return"
TRACE_ENVS = (OUTPUT, INPUT, NEXT_FRAME, FULL, RETURN)
"""Environments of trace prediction; all are single-turn."""
DEBUGGER = "trace_debugger"
"""The one of several turns: `debugger/`."""
TASK_FIELDS = ("code", "entry", "output", "shown", "reasoning", "frames", "partial_credit", "complete")
"""Fields of a reference beside `answer` and `solution`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputTask:
    """Which value does the call return?"""

    answer: str
    """A literal."""
    reasoning: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class InputTask:
    """Which arguments make the function return the value?"""

    code: str
    entry: str
    output: str
    """A literal."""
    known_input: str
    """Arguments that are right, as they stand between the parentheses of a call; empty where none are known."""
    frames: bool
    """Whether the reply is the whole trace of the call, whose first frame shows the input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameTask:
    """Which frame, or frames, follow those that are shown?"""

    code: str
    shown: str
    """Text of the frames in the prompt."""
    known: Mapping[str, str]
    """What the next frame may write as `..`."""
    expected: tuple[TraceEvent, ...]
    partial_credit: bool


TraceTask = OutputTask | InputTask | FrameTask


def read_trace_task(env: str, reference: Mapping[str, Json]) -> TraceTask:
    """The task of one of TRACE_ENVS. Raises ValueError that names the field: what could not be graded later is an error here."""
    if env == OUTPUT:
        return OutputTask(answer=_literal(reference, "answer"), reasoning=_flag(reference, "reasoning", default=False))
    if env == INPUT:
        code, entry, known = _text(reference, "code"), _text(reference, "entry"), reference.get("answer")
        try:
            entry_line(code, entry=entry)
        except SyntaxError as error:
            raise ValueError(f"field 'code' is no Python: {error}") from None
        return InputTask(
            code=code,
            entry=entry,
            output=_literal(reference, "output"),
            known_input="" if known is None else str(known),
            frames=_flag(reference, "frames", default=False),
        )
    return read_frame_task(env, reference)


def read_frame_task(env: str, reference: Mapping[str, Json]) -> FrameTask:
    """The task of `trace_next_frame`, `trace_full` or `trace_return`. Raises ValueError as `read_trace_task`."""
    if env == FULL and not _flag(reference, "complete", default=True):
        raise ValueError("field 'complete' is false: the trace was cut off, and nobody knows how it goes on")
    return _frame_task(
        env,
        code=_text(reference, "code"),
        shown=str(reference.get("shown") or ""),
        answer=_text(reference, "answer"),
        partial_credit=_flag(reference, "partial_credit", default=True),
    )


@lru_cache(maxsize=64)  # every sample of a group asks for the same one
def _frame_task(env: str, *, code: str, shown: str, answer: str, partial_credit: bool) -> FrameTask:
    try:
        before, _ = parse_frames(shown, source=code)
    except TraceTextError as error:
        raise ValueError(f"field 'shown' is no text of frames: {error}") from None
    known: Mapping[str, str] = {}
    for event in before:
        known = known_after(event, known=known)
    try:
        if env == FULL:
            events, _ = parse_frames(shown + answer, source=code)
            expected = events[len(before) :]
        else:
            expected = (parse_event(answer, known=known),)
    except TraceTextError as error:
        raise ValueError(f"field 'answer' is no text of {'frames' if env == FULL else 'a frame'}: {error}") from None
    if env == RETURN and expected[0].kind is not EventKind.RETURN:
        raise ValueError(f"field 'answer' is the frame of a {expected[0].kind} event; it must be that of a return")
    if env == FULL and not ends_entry(expected):
        raise ValueError("field 'answer' does not go to the return of the entry: the trace was cut off")
    return FrameTask(code=code, shown=shown, known=known, expected=expected, partial_credit=partial_credit)


def trace_reference(row: Mapping[str, Json], reference: Mapping[str, Json], *, env: str, where: str) -> dict[str, Json]:
    """`reference` with what the grader of `env` needs. Raises ValueError, beginning with `where`, for a row that cannot be graded."""
    whole: dict[str, Json] = {**reference, **{name: row[name] for name in TASK_FIELDS if row.get(name) is not None}}
    try:
        read_trace_task(env, whole)
    except ValueError as error:
        raise ValueError(f"{where}: {error} (environment {env!r})") from None
    return whole


def ends_entry(events: tuple[TraceEvent, ...]) -> bool:
    """Whether the last event is the return of the entry."""
    return bool(events) and events[-1].kind is EventKind.RETURN and events[-1].depth == 1


def frames_text(reply: str) -> str:
    """The frames of a reply: white space around them and `<|end_of_text|>` do not count.

    A last `<|frame_sep|>` that is missing is put there: it may be the token that ended the sampling.
    """
    text = reply.strip().removesuffix(END).rstrip()
    return text if not text or text.endswith(FRAME) else text + FRAME


def return_text(reply: str) -> str:
    """The return frame of a reply that may begin behind `<|return_sep|>`, which ends the prompt."""
    text, token = frames_text(reply), EVENT_TOKENS[EventKind.RETURN]
    return text if text.startswith(token) else token + text


def _text(reference: Mapping[str, Json], name: str) -> str:
    value = reference.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {name!r} is {'missing' if value is None else repr(value)[:60]}; it must be text")
    return value


def _literal(reference: Mapping[str, Json], name: str) -> str:
    text = _text(reference, name)
    try:
        literal(text)
    except ValueError as error:
        raise ValueError(f"field {name!r} is {text[:60]!r}, {error}; a prediction can only be compared with a Python literal") from None
    return text


def _flag(reference: Mapping[str, Json], name: str, *, default: bool) -> bool:
    value = reference.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"field {name!r} is {str(value)[:60]!r}; it must be true or false")
    return value
