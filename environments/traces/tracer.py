"""The tracer: runs a program in the sandbox and says what it did, event by event.

Program + TraceLimits ─► box (sandbox: `box.py` under `sys.settrace`) ─► record (bytes, hostile) ─► `read.py` ─► Recording
"""

import ast
import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environments.sandbox.base import Execution, Limits, Sandbox
from environments.traces.entry import entry_line, normal_source, source_lines
from environments.traces.native import native_files
from environments.traces.read import Record, read_record
from environments.traces.records import WHOLE, Edit, Recording, StepFilter, Trace, TraceLimits, TraceStatus

_FOLDER = Path(__file__).parent
_MODULES = ("box.py", "box_edit.py", "box_events.py", "box_lines.py", "box_record.py", "box_values.py")
_BOX_FILES = {f"environments/traces/{name}": (_FOLDER / name).read_bytes() for name in _MODULES}
_LAUNCH = b"""
import os, sys
os.execve(sys.executable, [sys.executable, "-sPB", "-X", "utf8", "/work/environments/traces/box.py"], {"PYTHONHASHSEED": "0"})
"""
"""A new interpreter, because the hash seed of one that runs cannot be set: the order of sets must repeat."""
_START_SECONDS = 5.0
_BATCH_BYTES = 8 << 20
"""What a box may write between two looks at its limits, beyond which it is killed."""
MAX_SOURCE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What is traced."""

    source: str
    entry: str | None = None
    """Function to call, defined at the top level; None runs the source as a script. A coroutine that it returns is run by asyncio, a
    generator is read to its end."""
    args: str = "[]"
    """Positional arguments: a Python literal of a list or tuple."""


async def record_trace(
    program: Program,
    *,
    sandbox: Sandbox,
    limits: TraceLimits | None = None,
    step: StepFilter | None = None,
    trace: bool = True,
    edits: Sequence[Edit] = (),
) -> Recording:
    """Trace `program`. Whatever it does is a Recording; SandboxError means that the sandbox failed.

    `trace=False` runs it the same way without a tracer: no events, and no `edits`, made on the way. Raises ValueError for a source that
    is no text, an entry that the source does not define, and arguments or values that are no literals.
    """
    limits, step = limits or TraceLimits(), step or StepFilter()
    source = normal_source(program.source)
    if len(source) > MAX_SOURCE:
        raise ValueError(f"the source has {len(source)} characters; at most {MAX_SOURCE} can be traced")
    check_arguments(program)
    for edit in edits:
        _literal(edit.value, what="value", example="1 or 'a'")
    try:
        marked = entry_line(source, entry=program.entry)
    except SyntaxError as error:
        return _not_run(source, f"{error.msg} (line {error.lineno})" if error.lineno else str(error.msg))
    request = {
        "source": source,
        "entry": program.entry,
        "args": program.args,
        "trace": trace,
        "edits": [(edit.event, edit.name, edit.value) for edit in edits],
        "include": list(step.include),
        "exclude": list(step.exclude),
        "events": limits.events,
        "record_bytes": limits.record_bytes,
        "depth": limits.depth,
        "repr_chars": limits.repr_chars,
        "seconds": limits.seconds,
    }
    native = await asyncio.to_thread(native_files)  # which compiles the first time
    files = {**_BOX_FILES, **native, "request.json": json.dumps(request).encode()}
    execution = await sandbox.run(_LAUNCH, files=files, limits=_box_limits(limits))
    record = read_record(execution.stdout, lines=source_lines(source), first_line=marked, limits=limits)
    status, reason = _outcome(execution, record, limits=limits)
    events = Trace(source=source, entry_line=marked, events=record.events, complete=record.status in WHOLE)
    return Recording(
        trace=events,
        status=status,
        reason=reason,
        value=record.value,
        stdout=execution.stderr[: limits.printed_bytes].decode("utf-8", "replace"),
        n_events=len(record.events),
        seconds=execution.wall_seconds,
    )


def _box_limits(limits: TraceLimits) -> Limits:
    return Limits(
        wall_seconds=limits.seconds + _START_SECONDS,
        cpu_seconds=math.ceil(limits.seconds) + 1,
        memory_mb=limits.memory_mb,
        output_bytes=limits.record_bytes + limits.printed_bytes + _BATCH_BYTES,
    )


def _outcome(execution: Execution, record: Record, *, limits: TraceLimits) -> tuple[TraceStatus, str]:
    """How the program ended, by what the sandbox saw first and the box said second."""
    too_long = TraceStatus.TIMEOUT, f"the program ran longer than {limits.seconds:g} s"
    if record.status in (TraceStatus.SPOILED, TraceStatus.EVENTS, TraceStatus.BYTES):
        return record.status, record.reason
    if len(execution.stderr) > limits.printed_bytes:
        return TraceStatus.OUTPUT, f"the program printed more than {limits.printed_bytes} bytes"
    if execution.killed_by in ("wall", "cpu"):
        return too_long
    if execution.killed_by == "output":
        return TraceStatus.BYTES, f"a larger record than {limits.record_bytes} bytes"
    if execution.killed_by is not None:
        return TraceStatus.MEMORY, f"the program used more than {limits.memory_mb} MiB of memory"
    if record.status is None:
        return TraceStatus.ENDED, f"the program ended its process (exit code {execution.exit_code})"
    return too_long if record.status is TraceStatus.TIMEOUT else (record.status, record.reason)


def _not_run(source: str, reason: str) -> Recording:
    trace = Trace(source=source, entry_line=1, events=(), complete=False)
    return Recording(trace=trace, status=TraceStatus.SYNTAX_ERROR, reason=reason, value=None, stdout="", n_events=0, seconds=0.0)


def check_arguments(program: Program) -> None:
    """Raise ValueError for arguments that are no literal of a list or tuple, and for some that a script would get."""
    value = _literal(program.args, what="args", example="a list such as [1, 'a']")
    if type(value) not in (list, tuple):
        raise ValueError(f"args {program.args[:80]!r} is no list: write [{program.args[:80]}]")
    if value and program.entry is None:
        raise ValueError("args are given without an entry: a script takes none; name the function to call")


def _literal(text: str, *, what: str, example: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{what} {text[:80]!r} is no Python literal ({type(error).__name__}): write {example}") from None
