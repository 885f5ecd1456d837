"""Prints a recorded trace: CWM's text, JSON, or, for people, a table or sentences."""

import asyncio
import json
import sys
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from environments.sandbox.make import make_sandbox
from environments.traces.records import WHOLE, EventKind, Recording, StepFilter, TraceEvent, TraceLimits
from environments.traces.text import render_trace
from environments.traces.tracer import Program, record_trace
from rl.log.text import visible
from rl.traces.prose import describe_trace

Form = Literal["text", "json", "table", "prose"]
_STYLES = {EventKind.CALL: "cyan", EventKind.LINE: "", EventKind.RETURN: "green", EventKind.EXCEPTION: "red"}


def trace_command(program: Program, *, limits: TraceLimits, step: StepFilter, form: Form) -> int:
    """Trace and print. 0 for a whole trace, 1 for one that was cut off or has no events; why goes to stderr."""
    recording = asyncio.run(_record(program, limits=limits, step=step))
    if form == "json":
        print(json.dumps(to_json(recording)))
    elif form == "table":
        _print_table(recording)
    elif form == "prose":
        print(describe_trace(recording.trace), end="")
    else:
        text = render_trace(recording.trace)
        print(visible(text) if sys.stdout.isatty() else text)
    if recording.status in WHOLE and recording.trace.events:
        return 0
    reason = visible(recording.reason) or "no code of the program ran in the call"
    print(f"rl trace: {recording.status}: {reason}", file=sys.stderr)
    return 1


async def _record(program: Program, *, limits: TraceLimits, step: StepFilter) -> Recording:
    sandbox = make_sandbox()
    try:
        return await record_trace(program, sandbox=sandbox, limits=limits, step=step)
    finally:
        await sandbox.close()


def to_json(recording: Recording) -> dict[str, Any]:
    """Everything of a recording."""
    trace = recording.trace
    return {
        "status": recording.status,
        "reason": recording.reason,
        "value": recording.value,
        "stdout": recording.stdout,
        "complete": trace.complete,
        "seconds": round(recording.seconds, 4),
        "entry_line": trace.entry_line,
        "source": trace.source,
        "events": [event_json(event) for event in trace.events],
    }


def event_json(event: TraceEvent) -> dict[str, Any]:
    """Everything of an event."""
    shown: dict[str, Any] = {"locals": dict(event.locals)} if event.locals is not None else {"value": event.value}
    return {"event": event.kind, "line_no": event.line_no, "depth": event.depth, "line": event.line, **shown}


def _print_table(recording: Recording) -> None:
    table = Table("event", "line", "source", "locals that are new or changed; value", box=None, pad_edge=False)
    known: dict[str, str] = {}
    for event in recording.trace.events:
        if event.locals is None:
            state = visible(event.value or "")
        else:
            changed = {name: text for name, text in event.locals.items() if event.kind is EventKind.CALL or known.get(name) != text}
            state = ", ".join(f"{name}={visible(text)}" for name, text in changed.items())
            known = dict(event.locals)
        if event.kind is EventKind.RETURN:
            known = {}
        indent = "  " * (event.depth - 1)
        cells = (indent + event.kind, str(event.line_no), visible(event.line, one_line=True), state)
        table.add_row(*(Text(cell, style=_STYLES[event.kind]) for cell in cells))
    console = Console()
    console.print(table)
    outcome = f"{recording.status}: {recording.n_events} events"
    if recording.value is not None:
        outcome += f", returned {visible(recording.value)}"
    console.print(Text(outcome, style="bold"))
