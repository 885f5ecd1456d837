"""The tracer without a sandbox, for programs of the project's own generator alone.

Such a program ends by itself, calls nothing but a few built-in functions, and nobody else wrote a word of it. Anything else is traced in
the sandbox (`tracer.py`). Both use the same tracer and the same reader, so that their recordings agree.
"""

import ast
import builtins
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from environments.traces.box_events import FILE, python_tracer
from environments.traces.box_record import Channel
from environments.traces.box_values import Shown, Text
from environments.traces.entry import entry_line, source_lines
from environments.traces.read import read_record
from environments.traces.records import Recording, Trace, TraceLimits, TraceStatus
from environments.traces.tracer import Program

OWN_BUILTINS = ("abs", "len", "list", "max", "min", "range", "sorted", "str", "sum")
"""All that a generated program may call."""


class TooLong(Exception):
    """The program passes a limit, where its trace is given up."""


class _Memory(Channel):
    """A channel whose records stay here, and which never ends the process."""

    def __init__(self, *, limits: TraceLimits) -> None:
        super().__init__(-1, events=limits.events, record_bytes=limits.record_bytes)
        self.data = bytearray()
        self._write = self._keep

    def _keep(self, fd: int, data: Any) -> int:
        self.data += data
        return len(data)

    def end(self, status: str, reason: str, value: str | None = None) -> NoReturn:
        raise TooLong(reason)


def value_own(program: Program) -> Any:
    """What a generated program returns."""
    entry, args = _load(program)
    return entry(*args)


def record_own(program: Program, *, limits: TraceLimits) -> Recording:
    """Trace a generated program in this process. Raises TooLong for one that passes a limit."""
    entry, args = _load(program)
    shown = Shown(chars=limits.repr_chars, buffers=False)
    channel = _Memory(limits=limits)
    tracer = python_tracer(channel, depth_limit=limits.depth, shown=shown, included=None)
    started, before = time.perf_counter(), sys.gettrace()
    sys.settrace(tracer)
    try:
        value = entry(*args)
    finally:
        sys.settrace(before)
    channel.flush()
    line = entry_line(program.source, entry=program.entry)
    found = read_record(bytes(channel.data), lines=source_lines(program.source), first_line=line, limits=limits)
    if found.status is not None:
        raise TooLong(found.reason)
    return Recording(
        trace=Trace(source=program.source, entry_line=line, events=found.events, complete=True),
        status=TraceStatus.OK,
        reason="",
        value=Text.of(value, chars=limits.repr_chars),
        stdout="",
        n_events=len(found.events),
        seconds=time.perf_counter() - started,
    )


def _load(program: Program) -> tuple[Callable[..., Any], list[Any]]:
    """The function and its arguments."""
    assert program.entry is not None, "a generated program is a function"
    names: dict[str, Any] = {"__builtins__": {name: getattr(builtins, name) for name in OWN_BUILTINS}}
    exec(compile(program.source, FILE, "exec", dont_inherit=True), names)
    return names[program.entry], ast.literal_eval(program.args)
