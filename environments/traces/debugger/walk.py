"""A walk of the debugger through one trace: where it starts and which actions it takes, drawn by a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from environments.traces.debugger.machine import WITH_LINE, Action, ActionKind, Machine
from environments.traces.records import EventKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One action of a walk."""

    at: int
    """The event that it starts from."""
    action: Action
    to: int
    """The event that it leads to."""


def draw_walk(machine: Machine, *, kinds: Sequence[ActionKind], turns: int, seed: str) -> tuple[Step, ...]:
    """At most `turns` steps. It starts at a random event, and each kind of action that leads somewhere is as likely as the others;
    a breakpoint is set on any line that is reached. Empty when no action of these kinds leads anywhere in this trace.
    """
    rng = random.Random(seed)
    starts = list(range(len(machine.events)))
    rng.shuffle(starts)
    at = next((start for start in starts if _choices(machine, start, kinds=kinds)), None)
    steps: list[Step] = []
    while at is not None and len(steps) < turns:
        choices = _choices(machine, at, kinds=kinds)
        if not choices:
            break
        action = rng.choice(choices)
        if action.kind in WITH_LINE:
            action = Action(kind=action.kind, line_no=rng.choice(_lines(machine, at, forward=action.kind is ActionKind.BREAKPOINT)))
        to = machine.target(at, action)
        assert to is not None, "a choice leads somewhere"
        steps.append(Step(at=at, action=action, to=to))
        at = to
    return tuple(steps)


def _choices(machine: Machine, at: int, *, kinds: Sequence[ActionKind]) -> list[Action]:
    """One action of each kind that leads somewhere; a breakpoint has no line yet."""
    return [Action(kind=kind) for kind in kinds if _leads_somewhere(machine, at, kind)]


def _leads_somewhere(machine: Machine, at: int, kind: ActionKind) -> bool:
    if kind in WITH_LINE:
        return bool(_lines(machine, at, forward=kind is ActionKind.BREAKPOINT))
    return machine.target(at, Action(kind=kind)) is not None


def _lines(machine: Machine, at: int, *, forward: bool) -> list[int]:
    """Lines on which a breakpoint would stop, ascending."""
    events = machine.events[at + 1 :] if forward else machine.events[:at]
    return sorted({event.line_no for event in events if event.kind is EventKind.LINE})
