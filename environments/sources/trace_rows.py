"""Rows of the trace environments, made of recordings."""

import random
from collections.abc import Sequence
from typing import Any

from environments.code_tests.compare import literal
from environments.records import Json, Task
from environments.traces.call_frame import call_arguments
from environments.traces.debugger.task import INSTRUCTIONS, LIMITS, DebuggerOptions, DebuggerTask, gold_replies
from environments.traces.programs import TraceProgram
from environments.traces.records import WHOLE, EventKind, Recording, TraceEvent, TraceStatus
from environments.traces.tasks import DEBUGGER, FULL, INPUT, OUTPUT, RETURN
from environments.traces.text import BEGIN, EVENT_TOKENS, render_context, render_events

Row = dict[str, Json]


class NoTask(ValueError):
    """The program makes no task of this environment; the text says why, without naming the program."""


def trace_row(
    env: str,
    program: TraceProgram,
    recording: Recording,
    *,
    reasoning: bool = False,
    frames: bool = False,
    partial_credit: bool = True,
    debugger: DebuggerOptions | None = None,
    seed: int = 0,
) -> Row:
    """The row of one program for one of the trace environments. `seed` chooses where a next frame is asked for, and the walk of the
    debugger. Raises NoTask."""
    if recording.status not in WHOLE:
        raise NoTask(f"its trace ended with the status {recording.status}")
    row: Row = {"id": program.id, "code": recording.trace.source, "call": program.call, "level": program.difficulty}
    if env == OUTPUT:
        return row | _output(program, recording, reasoning=reasoning)
    if env == INPUT:
        return row | _input(program, recording, frames=frames)
    if env == RETURN:
        return row | _return(program, recording)
    if env == DEBUGGER:
        return row | _debugger(program, recording, options=debugger or DebuggerOptions(), seed=seed)
    return row | _frames(env, recording, partial_credit=partial_credit, seed=seed)


def _output(program: TraceProgram, recording: Recording, *, reasoning: bool) -> Row:
    value = _value(program, recording)
    solution = f"```\n{value}\n```"
    if reasoning:
        solution = f"<think>\n{''.join(render_events(recording.trace.events))}\n</think>\n{solution}"
    question = f"{_code(recording)}\nassert {program.call} == ??"
    return {"question": question, "answer": value, "solution": solution, **({"reasoning": True} if reasoning else {})}


def _input(program: TraceProgram, recording: Recording, *, frames: bool) -> Row:
    value = _value(program, recording)
    call = program.call
    given = call[len(program.entry or "") + 1 : -1]
    if not given:
        raise NoTask("its entry takes no arguments")
    if frames:
        try:
            call_arguments(recording.trace.events[0], source=recording.trace.source, entry=program.entry or "")
        except ValueError as error:
            raise NoTask(str(error)) from None
    return {
        "question": f"{_code(recording)}\nassert {program.entry}(??) == {value}",
        "entry": program.entry,
        "output": value,
        "answer": given,
        "solution": "".join(render_events(recording.trace.events)) if frames else f"```\n{given}\n```",
        **({"frames": True} if frames else {}),
    }


def _frames(env: str, recording: Recording, *, partial_credit: bool, seed: int) -> Row:
    trace = recording.trace
    texts = _texts(trace.events)
    cut = 1 if env == FULL else _cut(texts, seed=seed)
    shown = "".join(texts[:cut])
    answer = "".join(texts[cut:]) if env == FULL else texts[cut]
    row: Row = {"question": _context(recording) + shown, "shown": shown, "answer": answer, "solution": answer}
    return row if partial_credit else {**row, "partial_credit": False}


def _return(program: TraceProgram, recording: Recording) -> Row:
    _returned(program, recording)
    events = recording.trace.events
    if sum(event.kind is EventKind.CALL and event.depth == 1 for event in events) > 1:
        raise NoTask("its entry is a generator or a coroutine, which returns more than once")
    shown, *_, answer = _texts(events)
    token = EVENT_TOKENS[EventKind.RETURN]
    return {"question": _context(recording) + shown + token, "shown": shown, "answer": answer, "solution": answer.removeprefix(token)}


def _debugger(program: TraceProgram, recording: Recording, *, options: DebuggerOptions, seed: int) -> Row:
    events = recording.trace.events
    if len(events) > LIMITS.events or max((event.depth for event in events), default=0) > LIMITS.depth:
        raise NoTask(f"it has more than {LIMITS.events} events, or {LIMITS.depth} calls in one another")
    payload: Row = {"entry": program.entry, "args": program.args, "turns": options.turns, "actions": options.actions, "walk": str(seed)}
    task = Task(id=program.id, env=DEBUGGER, prompt=(), payload={"code": program.source, **payload})
    try:
        machine, steps = DebuggerTask.of(task).walk(recording)
    except ValueError as error:
        raise NoTask(str(error)) from None
    return payload | {"question": INSTRUCTIONS, "replies": gold_replies(machine, steps)}


def _texts(events: Sequence[TraceEvent]) -> list[str]:
    try:
        texts = list(render_events(events))
    except ValueError as error:
        raise NoTask(str(error)) from None
    if len(texts) < 2:
        raise NoTask("its trace has no frame behind the first")
    return texts


def _cut(texts: Sequence[str], *, seed: int) -> int:
    """How many frames are shown, one at least. A frame that is among those is not asked for, where there is another."""
    places = list(range(1, len(texts)))
    seen: set[str] = set()
    fresh = []
    for place in places:
        seen.add(texts[place - 1])
        if texts[place] not in seen:
            fresh.append(place)
    return random.Random(seed).choice(fresh or places)


def _code(recording: Recording) -> str:
    return recording.trace.source.rstrip("\n") + "\n"


def _context(recording: Recording) -> str:
    trace = recording.trace
    return render_context(trace.source, entry_line=trace.entry_line).removeprefix(BEGIN)


def _value(program: TraceProgram, recording: Recording) -> str:
    """The returned value as a literal."""
    value = _returned(program, recording)
    try:
        literal(value)
    except ValueError:
        raise NoTask("it returns no literal") from None
    return value


def _returned(program: TraceProgram, recording: Recording) -> str:
    """The repr of the returned value."""
    if program.entry is None:
        raise NoTask("it is a script, which returns nothing")
    if recording.status is not TraceStatus.OK or recording.value is None:
        raise NoTask("its entry raises")
    return recording.value


def row_seed(*key: Any) -> int:
    """A seed for `trace_row` that is equal for equal parts, in every process."""
    return random.Random(repr(key)).getrandbits(62)
