"""Tasks of the debugger: what a payload holds, which walk it asks for, and how a turn is put to the policy."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.checked import bounded
from environments.lookup import unknown
from environments.records import Json, Task
from environments.traces.debugger.machine import FORWARD, WITH_LINE, ActionKind, Machine
from environments.traces.debugger.walk import Step, draw_walk
from environments.traces.records import WHOLE, Recording, TraceLimits, TraceStatus
from environments.traces.text import BEGIN, escape, render_context, render_event
from environments.traces.tracer import Program, check_arguments

PAYLOAD_FIELDS = ("code", "entry", "args", "turns", "actions", "walk")
"""Of a task: the program, and which walk."""
MAX_TURNS = 100
LIMITS = TraceLimits(events=2_000, depth=50)
"""Of the programs that are debugged."""
_NAMES = tuple(kind.value for kind in ActionKind)
_GROUPS = {
    "all": tuple(ActionKind),
    "forward": FORWARD,
    "reverse": tuple(kind for kind in ActionKind if kind not in FORWARD),
}
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
    """Options of a source, for trace_debugger alone."""

    turns: int = bounded(4, low=1, high=MAX_TURNS)
    """Actions of an episode; `rollout.max_turns` must be as high."""
    actions: str = "all"
    """`all`, `forward`, `reverse`, or names of actions with spaces between."""


def check_actions(actions: Json, *, where: str) -> tuple[ActionKind, ...]:
    """The actions that `DebuggerOptions.actions` names. Raises ValueError, beginning with `where`, for a name that is none."""
    if not isinstance(actions, str):
        raise ValueError(f"{where} is {str(actions)[:60]!r}; it must be text such as 'all' or 'step_into step_over'")
    if actions in _GROUPS:
        return _GROUPS[actions]
    for name in actions.split() or [""]:
        if name not in _NAMES:
            raise ValueError(f"{where}: {unknown('action', name, (*_GROUPS, *_NAMES))}")
    return tuple(dict.fromkeys(map(ActionKind, actions.split())))


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
        code, entry, args = payload.get("code"), payload.get("entry"), payload.get("args", "[]")
        if not isinstance(code, str) or not code.strip():
            raise ValueError(f"field 'code' is {str(code)[:60]!r}; it must be the text of the program")
        if not isinstance(entry, str | None) or not isinstance(args, str):
            raise ValueError("fields 'entry' and 'args' must be the name of a function, and a literal of a list")
        turns, actions = payload.get("turns", DebuggerOptions.turns), payload.get("actions", DebuggerOptions.actions)
        if type(turns) is not int or not 1 <= turns <= MAX_TURNS:
            raise ValueError(f"field 'turns' is {turns!r}; it must be a whole number from 1 to {MAX_TURNS}")
        program = Program(source=code, entry=entry, args=args)
        check_arguments(program)
        kinds = check_actions(actions, where="field 'actions'")
        return cls(program=program, kinds=kinds, turns=turns, seed=str(payload.get("walk", 0)))

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
    context = render_context(machine.trace.source, entry_line=machine.trace.entry_line).removeprefix(BEGIN)
    return f"{context}\n{turn_text(machine, steps[0])}"


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
