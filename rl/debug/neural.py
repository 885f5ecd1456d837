"""A model as a debugger: it continues a trace frame by frame, and what a step means is said by the event token it starts from.

| step | frames that the model writes |
|---|---|
| step into | one, of any event |
| step over | one of any event; where it is a call, then its return (forced) and one more, until the frame belongs to the same call |
| step out | the return of the call (forced); from a return, that of the caller |
| continue | to a breakpoint: one after the other, of any event; without one: the return of every open call (forced) |

So a trace may leave out what a call did, as CWM's own traces do where a function was not followed. A step that goes wrong changes nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from environments.traces.records import WITH_LOCALS, EventKind, TraceEvent
from environments.traces.text import ACTION, END, EVENT_TOKENS, TraceTextError, known_after, parse_event, render_context, render_events

ENDED = "the trace has ended"


class ContextFull(Exception):
    """The trace has grown longer than the model's context; the text says so."""


class FrameWriter(Protocol):
    """What writes the frames."""

    def write(self, prompt: str, *, starts: tuple[str, ...]) -> str:
        """What follows `prompt`, up to the end of a frame or of the trace where there is one. What does not begin with one of `starts` is
        no frame, and need not be written to its end. Raises ContextFull."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One frame that the model wrote."""

    text: str
    """As it was written, the forced event token included. Anything may be in it."""
    event: TraceEvent | None
    """None for what is no frame that can stand there."""
    problem: str = ""
    """Why not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTrace:
    """The trace so far, as the model knows it."""

    source: str
    entry_line: int
    frames: tuple[TraceEvent, ...]

    @property
    def depth(self) -> int:
        """Open calls."""
        return sum((event.kind is EventKind.CALL) - (event.kind is EventKind.RETURN) for event in self.frames)

    def prompt(self) -> str:
        """CWM's text of it."""
        return render_context(self.source, entry_line=self.entry_line) + "".join(render_events(self.frames))

    def with_frame(self, event: TraceEvent) -> "ModelTrace":
        """One frame later."""
        return replace(self, frames=(*self.frames, event))


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStep:
    """What came of one step."""

    trace: ModelTrace
    """After it; as it was before when it went wrong."""
    predictions: tuple[Prediction, ...]
    problem: str = ""
    """Why it went wrong; also that the trace had ended before."""

    @property
    def event(self) -> TraceEvent | None:
        """Where the model stands after the step; None when it went wrong."""
        return None if self.problem or not self.predictions else self.predictions[-1].event


class NeuralDebugger:
    """Takes the steps of a debugger by asking the model for frames."""

    def __init__(self, writer: FrameWriter, *, most_frames: int) -> None:
        """`most_frames`: of one step."""
        self._writer, self._most_frames = writer, most_frames

    def step_into(self, trace: ModelTrace) -> ModelStep:
        return self._steps(trace).take().done()

    def step_over(self, trace: ModelTrace) -> ModelStep:
        steps, level = self._steps(trace).take(), trace.depth
        while level > 0 and steps.goes_on and steps.trace.depth > level:
            steps.take(EventKind.RETURN)
            if steps.goes_on:
                steps.take()
        return steps.done()

    def step_out(self, trace: ModelTrace) -> ModelStep:
        return self._steps(trace).take(EventKind.RETURN).done()

    def run_to_end(self, trace: ModelTrace) -> ModelStep:
        steps = self._steps(trace).take(EventKind.RETURN)
        while steps.goes_on and steps.trace.depth > 0:
            steps.take(EventKind.RETURN)
        return steps.done()

    def run_to_line(self, trace: ModelTrace, lines: Collection[str]) -> ModelStep:
        """To the next line event of one of these source lines, or to the return of the entry."""
        steps = self._steps(trace).take()
        while steps.goes_on and steps.trace.depth > 0 and not steps.stands_on(lines):
            steps.take()
        return steps.done()

    def _steps(self, trace: ModelTrace) -> "_Steps":
        return _Steps(self._writer, trace, most_frames=self._most_frames)


class _Steps:
    """Frames of one step, until it is done or goes wrong."""

    def __init__(self, writer: FrameWriter, trace: ModelTrace, *, most_frames: int) -> None:
        self.trace = trace
        self._writer, self._before, self._most_frames = writer, trace, most_frames
        self._predictions: list[Prediction] = []
        self._problem = ""

    @property
    def goes_on(self) -> bool:
        return not self._problem

    def take(self, kind: EventKind | None = None) -> "_Steps":
        """One more frame, of this event or of any."""
        if len(self._predictions) >= self._most_frames:
            self._problem = f"the step is not done after {self._most_frames} frames"
            return self
        if self.trace.depth == 0 and kind is not None:
            self._problem = ENDED
            return self
        prediction = _predict(self._writer, self.trace, kind)
        self._predictions.append(prediction)
        if prediction.event is None:
            self._problem = prediction.problem
        else:
            self.trace = self.trace.with_frame(prediction.event)
        return self

    def stands_on(self, lines: Collection[str]) -> bool:
        last = self.trace.frames[-1]
        return last.kind is EventKind.LINE and last.line in lines

    def done(self) -> ModelStep:
        trace = self._before if self._problem else self.trace
        return ModelStep(trace=trace, predictions=tuple(self._predictions), problem=self._problem)


def _predict(writer: FrameWriter, trace: ModelTrace, kind: EventKind | None) -> Prediction:
    forced = "" if kind is None else EVENT_TOKENS[kind]
    starts = (*EVENT_TOKENS.values(), END) if kind is None else (("{",) if kind in WITH_LOCALS else (ACTION,))
    try:
        text = forced + writer.write(trace.prompt() + forced, starts=starts)
    except ContextFull as error:
        return Prediction(text=forced, event=None, problem=str(error))
    if text.startswith(END):
        problem = f"the model ends the trace inside of {trace.depth} calls" if trace.depth else ENDED
        return Prediction(text=text, event=None, problem=problem)
    known: Mapping[str, str] = {}
    for event in trace.frames:
        known = known_after(event, known=known)
    try:
        event = parse_event(text, known=known)
    except TraceTextError as error:
        return Prediction(text=text, event=None, problem=f"no frame: {error}")
    if trace.depth == 0 and event.kind is not EventKind.CALL:
        return Prediction(text=text, event=None, problem=f"a {event.kind} frame outside of any call")
    depth = trace.depth + (event.kind is EventKind.CALL)
    return Prediction(text=text, event=replace(event, depth=depth))
