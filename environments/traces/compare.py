"""How near a predicted event of a trace is to the true one, component by component.

Both are events, not texts: `..` is resolved when a frame is read (`text.parse_event`), so that writing an unchanged value out is no error.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from environments.traces.records import TraceEvent

EVENT_WEIGHT, LINE_WEIGHT, STATE_WEIGHT = 0.2, 0.3, 0.5
"""Shares of `ComponentMatch.reward`. The state, which is what takes a computation, weighs as much as where it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentMatch:
    """What is right in a prediction."""

    event: bool
    """The kind of event."""
    line: bool
    """The text of the line, to the letter. Which of several equal lines it is cannot be said in a trace and is not compared."""
    locals: float | None
    """Share of the names that are right, with their reprs to the letter, of the names that either of the two has: a name too many costs
    as much as one that is missing. 1 when there are none. 0 when the prediction shows none, None when the true event shows none.
    Their order is not compared: JSON objects have none."""
    value: bool | None
    """The repr of a return's or exception's value, to the letter; None when the true event shows none."""

    @property
    def exact(self) -> bool:
        """Whether all of it is right."""
        return self.event and self.line and self.state == 1.0

    @property
    def state(self) -> float:
        """0 to 1: of the locals, or of the value."""
        return self.locals if self.locals is not None else float(bool(self.value))

    @property
    def reward(self) -> float:
        """0 to 1: the components by their weights."""
        return 1.0 if self.exact else EVENT_WEIGHT * self.event + LINE_WEIGHT * self.line + STATE_WEIGHT * self.state


def compare_events(expected: TraceEvent, predicted: TraceEvent | None) -> ComponentMatch:
    """Every component of its own: a right line counts in an event of the wrong kind. `predicted` is None for what is no frame at all."""
    return ComponentMatch(
        event=predicted is not None and expected.kind is predicted.kind,
        line=predicted is not None and expected.line == predicted.line,
        locals=None if expected.locals is None else _locals_share(expected.locals, predicted.locals if predicted else None),
        value=None if expected.value is None else predicted is not None and expected.value == predicted.value,
    )


def _locals_share(expected: Mapping[str, str], predicted: Mapping[str, str] | None) -> float:
    if predicted is None:
        return 0.0
    names = expected.keys() | predicted.keys()
    right = sum(name in predicted and predicted[name] == text for name, text in expected.items())
    return right / len(names) if names else 1.0
