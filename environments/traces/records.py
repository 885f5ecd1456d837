"""What an execution trace is, and what a recording of one says beside it.

A `Trace` is what CWM's format can hold: source, entry, events. A `Recording` is a trace with what the recorder knows and the text does not:
how the program ended, what it printed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum


class EventKind(StrEnum):
    """As Python's `sys.settrace` names them. A `yield` is a return and the resumption of a generator is a call."""

    CALL = "call"
    LINE = "line"
    RETURN = "return"
    EXCEPTION = "exception"


WITH_LOCALS = (EventKind.CALL, EventKind.LINE)
"""Kinds of events that show locals; the others show a value."""


class TraceStatus(StrEnum):
    """How the traced program ended."""

    OK = "ok"
    """It ran to its end."""
    RAISED = "raised"
    """An exception left the entry, `SystemExit` with a code other than 0 included."""
    SYNTAX_ERROR = "syntax_error"
    """The source cannot be compiled; there are no events."""
    LOAD_ERROR = "load_error"
    """The module did not define the entry, or raised before it could be called; there are no events."""
    EVENTS = "events"
    """More events than `TraceLimits.events`."""
    BYTES = "bytes"
    """A larger record than `TraceLimits.record_bytes`."""
    DEPTH = "depth"
    """More traced calls in one another than `TraceLimits.depth`."""
    OUTPUT = "output"
    """More printed than `TraceLimits.printed_bytes`."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    FORKED = "forked"
    """It tried to start another process."""
    UNTRACED = "untraced"
    """It took the tracer away or changed what frames are traced."""
    ENDED = "ended"
    """It ended its process itself, or crashed it."""
    SPOILED = "spoiled"
    """It wrote into the record, which makes no sense any more from there on."""


WHOLE = (TraceStatus.OK, TraceStatus.RAISED)
"""Statuses of a trace that holds every event from the entry to the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceEvent:
    """One frame of CWM's format."""

    kind: EventKind
    line: str
    """Text of the source line, with its indentation, without its end and without the entry mark."""
    locals: Mapping[str, str] | None = None
    """call, line: each local's name and its repr before the line runs, in the order of assignment, all of them. None for others."""
    value: str | None = None
    """return, exception: repr of the value. None for others."""
    line_no: int = field(default=0, compare=False)
    """From 1; 0 where a text that was parsed does not say which of several equal lines it is, or none of them."""
    depth: int = field(default=1, compare=False)
    """Traced calls that are open, this one included; 1 for the entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Source, entry and events: all that the text holds. `parse_trace(render_trace(trace)) == trace`."""

    source: str
    """Whole program, without the entry mark; lines end with a newline character."""
    entry_line: int
    """Where the entry mark stands, from 1."""
    events: tuple[TraceEvent, ...]
    complete: bool
    """Whether the events go to the end of the entry; False for a trace that was cut off, whose text lacks `<|end_of_text|>`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What the tracer says of one program."""

    trace: Trace
    status: TraceStatus
    reason: str
    """One line for people: why the trace ends where it ends; empty when the status is `ok`."""
    value: str | None
    """repr of what the entry returned, by the rules of the locals; None when it did not return, and for a script."""
    stdout: str
    """What the program printed, at most `TraceLimits.printed_bytes`."""
    n_events: int
    """Events in the trace."""
    seconds: float
    """Wall time, start of the box included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceLimits:
    """How far a program is followed."""

    events: int = 20_000
    record_bytes: int = 16 << 20
    """Size of the record in which only changes of locals are written."""
    depth: int = 200
    """Traced calls in one another."""
    repr_chars: int = 1000
    """A longer repr is cut there and ends with `...`."""
    seconds: float = 10.0
    """Wall time of the program."""
    memory_mb: int = 512
    printed_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for spec in fields(self):
            if getattr(self, spec.name) <= 0:
                raise ValueError(f"trace limit {spec.name} is {getattr(self, spec.name)}; it must be > 0")
        if self.depth > MAX_DEPTH:
            raise ValueError(f"trace limit depth is {self.depth}; it must be at most {MAX_DEPTH}, below Python's own recursion limit")


MAX_DEPTH = 800


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """A local that is set while the program runs, as in a debugger."""

    event: int
    """Number in the trace, from 0, of the call or line event that shows the new value."""
    name: str
    """A local that this event shows anyway: Python gives a function no others."""
    value: str
    """Python literal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFilter:
    """Which functions of the program's own file are followed: shell patterns on qualified names, such as `Stack.*`.

    The entry is always followed. Code of other files, and text that the program executes, never is. What is called by a function
    that is not followed may be followed again.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
