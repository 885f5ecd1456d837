"""The debugger as a state machine over the events of a trace: which event each action leads to.

Actions are those of the neural debugger (arXiv 2603.09951), each with its inverse. What each means to the event is defined here, as close
to pdb's `step`, `next`, `return` and `until`, and to gdb's `reverse-step`, `reverse-next` and `reverse-finish`, as a recording allows. A
state is an event. A call is what lies between a call event and its return event, so each resumption of a generator is one of its own.

| action | leads to |
|---|---|
| step_into | the next event |
| step_over | the next event of the same call, whatever it calls in between; from a return, the next event of the caller |
| step_return | the return event of the call; from a return, that of the caller |
| breakpoint LINE | the next line event of that line, in any call |
| continue | the last event |
| reverse_into | the event before |
| reverse_over | the event before of the same call; from a call event, the event of the caller at which the call was made |
| reverse_return | the call event of the call; from a call event, that of the caller |
| reverse_breakpoint LINE | the last line event of that line before, in any call |
| reverse_continue | the first event |

At the top level, where nobody called, step_over from a return and reverse_over from a call lead to the neighbouring event. An action
that leads nowhere, such as one forward from the last event, cannot be taken; nor can `continue` in a trace that was cut off.
"""

from dataclasses import dataclass
from enum import StrEnum

from environments.traces.entry import source_lines
from environments.traces.records import EventKind, Trace


class ActionKind(StrEnum):
    """What an action does; the inverses begin with `reverse_`."""

    STEP_INTO = "step_into"
    STEP_OVER = "step_over"
    STEP_RETURN = "step_return"
    BREAKPOINT = "breakpoint"
    CONTINUE = "continue"
    REVERSE_INTO = "reverse_into"
    REVERSE_OVER = "reverse_over"
    REVERSE_RETURN = "reverse_return"
    REVERSE_BREAKPOINT = "reverse_breakpoint"
    REVERSE_CONTINUE = "reverse_continue"


FORWARD = tuple(kind for kind in ActionKind if not kind.startswith("reverse_"))
WITH_LINE = (ActionKind.BREAKPOINT, ActionKind.REVERSE_BREAKPOINT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One action."""

    kind: ActionKind
    line_no: int = 0
    """Of a breakpoint, from 1; 0 for others."""

    def __str__(self) -> str:
        return f"{self.kind} {self.line_no}" if self.kind in WITH_LINE else self.kind.value


class Machine:
    """What the actions lead to in one trace. Building it takes linear time."""

    def __init__(self, trace: Trace) -> None:
        events = trace.events
        self.trace, self.events = trace, events
        self.call_of = [0] * len(events)
        """By event: the event of the call that it belongs to."""
        self.caller_of: dict[int, int | None] = {}
        """By call event: the last event of the caller before it; None at the top level."""
        self.return_of: dict[int, int] = {}
        """By call event: its return event; none for a call that the trace does not see the end of."""
        self._next: list[int | None] = [None] * len(events)
        self._previous: list[int | None] = [None] * len(events)
        """By event: its neighbours of the same call."""
        latest: list[tuple[int, int]] = []  # of each open call: its call event, and its latest event
        for index, event in enumerate(events):
            if event.kind is EventKind.CALL:
                self.caller_of[index] = latest[-1][1] if latest else None
                latest.append((index, index))
            else:
                call, before = latest[-1]
                self._previous[index], self._next[before] = before, index
                latest[-1] = (call, index)
            self.call_of[index] = latest[-1][0]
            if event.kind is EventKind.RETURN:
                self.return_of[latest.pop()[0]] = index

    def target(self, at: int, action: Action) -> int | None:
        """The event that `action` leads to from event `at`; None when it leads nowhere."""
        match action.kind:
            case ActionKind.STEP_INTO:
                return self._near(at + 1)
            case ActionKind.STEP_OVER:
                return self._over(at)
            case ActionKind.STEP_RETURN:
                call = self.call_of[at]
                ended = self._calling(call) if self.return_of.get(call) == at else call
                return None if ended is None else self.return_of.get(ended)
            case ActionKind.CONTINUE:
                return len(self.events) - 1 if self.trace.complete and at < len(self.events) - 1 else None
            case ActionKind.REVERSE_INTO:
                return self._near(at - 1)
            case ActionKind.REVERSE_OVER:
                if at not in self.caller_of:
                    return self._previous[at]
                caller = self.caller_of[at]
                return self._near(at - 1) if caller is None else caller
            case ActionKind.REVERSE_RETURN:
                call = self.call_of[at]
                return self._calling(call) if call == at else call
            case ActionKind.REVERSE_CONTINUE:
                return 0 if at > 0 else None
        step = 1 if action.kind is ActionKind.BREAKPOINT else -1
        ahead = range(at + step, len(self.events) if step > 0 else -1, step)
        return next((index for index in ahead if self.stops_at(index, action.line_no)), None)

    def stops_at(self, index: int, line_no: int) -> bool:
        """Whether a breakpoint on that line stops at this event."""
        return self.events[index].kind is EventKind.LINE and self.events[index].line_no == line_no

    def line(self, line_no: int) -> str:
        """Text of a line of the source, from 1."""
        return source_lines(self.trace.source)[line_no - 1]

    def stack(self, at: int) -> tuple[int, ...]:
        """Where each open call stands, the outermost first: of the callers the event at which they made the call, and `at` itself."""
        found = [at]
        while (caller := self.caller_of[self.call_of[found[-1]]]) is not None:
            found.append(caller)
        return tuple(reversed(found))

    def is_inverse_of_call(self, at: int, to: int) -> bool:
        """Whether a step leads from the return of a call to that call: the question which input gives this output."""
        return self.return_of.get(to) == at

    def _near(self, index: int) -> int | None:
        return index if 0 <= index < len(self.events) else None

    def _over(self, at: int) -> int | None:
        if self.events[at].kind is not EventKind.RETURN:
            return self._next[at]
        caller = self.caller_of[self.call_of[at]]
        return self._near(at + 1) if caller is None else self._next[caller]

    def _calling(self, call: int) -> int | None:
        """The call event of the caller of a call."""
        caller = self.caller_of[call]
        return None if caller is None else self.call_of[caller]
