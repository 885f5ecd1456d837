"""Tasks of the debugger: what a payload holds, which walk it asks for, and how a turn is put to the policy."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.schema import bounded
from environments.lookup import unknown
from environments.records import Task
from environments.traces.debugger.machine import FORWARD, WITH_LINE, ActionKind, Machine
from environments.traces.debugger.walk import Step, draw_walk
from environments.traces.records import WHOLE, Recording, TraceLimits, TraceStatus
from environments.traces.text import escape, render_context, render_event
from environments.traces.tracer import Program, check_arguments

LIMITS = TraceLimits(events=2_000, seconds=5.0, depth=50)
"""Of the programs that are debugged."""
_REPEATABLE = (*WHOLE, TraceStatus.EVENTS, TraceStatus.DEPTH)
"""Statuses of recordings that end at the same event each time."""
INSTRUCTIONS = """You are a debugger of the Python program below, but you cannot run it. A turn gives you a state and an action. The state \
has one frame for each open call, the innermost one last: where it stands, and its locals before that line runs. Answer with the one frame \
where the debugger stands after the action, in the same form, and nothing else; ".." may stand for a value as in the last frame.
Actions: step_into: to the next event. step_over: to the next event of the same call; from a return, of its caller. step_return: to the \
return of the call; from a return, of its caller. breakpoint N: to the next time before line N runs. continue: to the last event. Those \
with reverse_ go back: to the event before; to the one before of the same call; to the start of the call; to the last time before line N \
ran; to the first event."""


@dataclass(frozen=True, kw_only=True)
class DebuggerOptions:
    """Options of a source of debugger tasks."""

    turns: int = bounded(4, low=1, high=100)
    """Actions of an episode; `rollout.max_turns` must be as high."""
    walks: int = bounded(1, low=1, high=10_000)
    """Episodes of each program, each with a seed of its own."""
    actions: str = "all"
    """`all`, `forward`, `reverse`, or names of actions with spaces between."""

    @property
    def kinds(self) -> tuple[ActionKind, ...]:
        """The actions. Raises ValueError for a name that is none."""
        groups = {"all": tuple(ActionKind), "forward": FORWARD, "reverse": tuple(kind for kind in ActionKind if kind not in FORWARD)}
        if self.actions in groups:
            return groups[self.actions]
        names = self.actions.split()
        for name in names or [""]:
            if name not in tuple(ActionKind):
                raise ValueError(f"actions: {unknown('action', name, (*groups, *ActionKind))}")
        return tuple(dict.fromkeys(map(ActionKind, names)))


@dataclass(frozen=True, kw_only=True, slots=True)
class DebuggerTask:
    """What an episode is about."""

    program: Program
    kinds: tuple[ActionKind, ...]
    turns: int
    seed: str
    """Of the walk."""

    @classmethod
    def of(cls, task: Task) -> "DebuggerTask":
        """Read a payload. Raises ValueError that names the field that is wrong."""
        payload = task.payload
        source, entry, args = payload.get("source"), payload.get("entry"), payload.get("args", "[]")
        if not isinstance(source, str) or not source.strip() or not isinstance(entry, str | None) or not isinstance(args, str):
            raise ValueError(f"task {task.id}: payload.source, entry and args must be the text of a program, a name, and a literal")
        try:
            check_arguments(Program(source=source, entry=entry, args=args))
            options = DebuggerOptions(turns=int(payload.get("turns", 4)), actions=" ".join(payload.get("actions", ("all",))))
            kinds = options.kinds
        except (ValueError, TypeError) as error:
            raise ValueError(f"task {task.id}: payload: {error}") from None
        program = Program(source=source, entry=entry, args=args)
        return cls(program=program, kinds=kinds, turns=options.turns, seed=f"{task.id}/{payload.get('walk', 0)}")

    def walk(self, recording: Recording) -> tuple[Machine, tuple[Step, ...]]:
        """The machine and its steps. Raises ValueError when the program cannot be debugged: its trace is not the same each time, or
        the actions lead nowhere in it."""
        if recording.status not in _REPEATABLE or not recording.trace.events:
            raise ValueError(f"the program cannot be debugged ({recording.status}): {recording.reason or 'it has no events'}")
        machine = Machine(recording.trace)
        steps = draw_walk(machine, kinds=self.kinds, turns=self.turns, seed=self.seed)
        if not steps:
            raise ValueError(f"none of the actions {', '.join(self.kinds)} leads anywhere in the {len(machine.events)} events of the trace")
        return machine, steps


def opening_text(machine: Machine, steps: Sequence[Step]) -> str:
    """The program and the first turn."""
    return f"{render_context(machine.trace.source, entry_line=machine.trace.entry_line)}\n{turn_text(machine, steps[0])}"


def turn_text(machine: Machine, step: Step) -> str:
    """The question of one turn: the frames of all open calls, with all their values, and the action."""
    frames = "".join(render_event(machine.events[index], known={}) for index in machine.stack(step.at))
    line = f" ({escape(machine.line(step.action.line_no).strip())})" if step.action.kind in WITH_LINE else ""
    return f"State:\n{frames}\nAction: {step.action}{line}"


def known_values(machine: Machine, step: Step) -> Mapping[str, str]:
    """What `..` may stand for in the answer: the values of the last frame that the question shows."""
    return machine.events[step.at].locals or {}


def gold_replies(machine: Machine, steps: Sequence[Step]) -> list[str]:
    """The right answers, turn by turn."""
    return [render_event(machine.events[step.to], known=known_values(machine, step)) for step in steps]


def walk_digest(machine: Machine, steps: Sequence[Step]) -> str:
    """16 hexadecimal digits over all questions and right answers of a walk."""
    texts = [*(turn_text(machine, step) for step in steps), *gold_replies(machine, steps)]
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
