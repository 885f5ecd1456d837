"""Runs in the box: traces one program and writes the record. Standard library only.

Nothing here is secret and nothing is trusted: the program shares this process and may take it over. It then chooses what its own
trace says, as it chooses what it prints; the other side checks the form of every record and sets the limits.

Records go to the descriptor that was stdout; what the program prints goes to what was stderr. They come in batches, four bytes of length
and a list in marshal's form 2, in which one event follows the other:

    LINE                name, value, ...    a line: what changed since the last event of the frame
    -4 * LINE - 1       name, value, ...    a call: all locals of the new frame
    -4 * LINE - 2       value               a return
    -4 * LINE - 3       value               an exception

A value is as `Shown` gives it; `...` stands for a local that is gone. The last batch is [(status, reason, value)].
"""

import contextlib
import fnmatch
import json
import marshal
import os
import signal
import struct
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

sys.path.insert(0, "/work")  # where the tracer put the modules below, until `main`

from environments.traces.box_lines import CHANGES, LineTable
from environments.traces.box_values import LARGE, Shown, Text

FILE = "program.py"
"""Name of the program's file, which is none on disk."""
BATCH = 512
"""Lines that are collected before they are written."""
Handler = Callable[[Any, str, Any], Any]


class Channel:
    """Where records go; ends the process when the program has had its share."""

    def __init__(self, fd: int, *, events: int, record_bytes: int) -> None:
        self.parts: list[Any] = []
        self._fd, self._events, self._bytes = fd, events, record_bytes
        self._process = os.getpid()
        self.watching = False
        """Whether the tracer is in place, and must stay."""
        self._stdout: Any = sys.stdout
        self._write, self._exit, self._getpid = os.write, os._exit, os.getpid

    def flush(self) -> int:
        """Write what was collected; the number of lines until the next time. Does not return when it is enough."""
        self._events -= BATCH
        self._send()
        if self._events < 0:
            self.end("events", "more events than the limit")
        if self._bytes < 0:
            self.end("bytes", "a larger record than the limit")
        return BATCH

    def end(self, status: str, reason: str, value: str | None = None) -> NoReturn:
        """Write the last record and end the process: nothing of the program runs after its trace."""
        self.watching = False
        if self._getpid() == self._process:
            with contextlib.suppress(BaseException):  # the program may have closed it
                type(self._stdout).flush(self._stdout)
            self._send()
            self.parts.append((status, reason, value))
            self._send()
        self._exit(0)
        raise SystemExit

    def _send(self) -> None:
        data = marshal.dumps(self.parts, 2)
        self.parts.clear()
        data = struct.pack("<I", len(data)) + data
        self._bytes -= len(data)
        while data:
            data = data[self._write(self._fd, data) :]


def make_tracer(channel: Channel, *, depth_limit: int, shown: Shown, included: Callable[[Any], bool] | None) -> Handler:
    """The function for `sys.settrace`.

    A name is looked at when the line that ran could have bound it, a container when the line could have changed one, and everything when
    other Python code ran in between (`epoch`); `box_lines.py` tells which.
    """
    append, flush = channel.parts.append, channel.flush
    locals_ = Locals(append, shown.value)
    look, look_at_contents = locals_.look, locals_.look_at_contents
    tables: dict[int, LineTable] = {}
    stack: list[Any] = [None]
    other_event = make_writer(channel, stack, shown.value)
    epoch, ticks = 0, BATCH

    def on_call(frame: Any, event: str, arg: Any) -> Any:
        nonlocal epoch
        epoch += 1
        code = frame.f_code
        if code.co_filename != FILE or event != "call":
            return None
        depth = len(stack)
        if included is not None and depth > 1 and not included(code):
            return None
        if depth > depth_limit:
            channel.end("depth", f"more than {depth_limit} calls in one another")
        if (table := tables.get(id(code))) is None:
            table = tables[id(code)] = LineTable(code)
        is_function, cells = table.is_function, table.cells
        written: Written = {}
        changing: Written = {}
        seen_epoch, effect = epoch, 0
        stores: tuple[str, ...] = ()
        stack.append(written)
        append(-4 * frame.f_lineno - 1)
        locals_.look_at_all(frame.f_locals, written, changing, is_function=is_function)

        def on_event(frame: Any, event: str, arg: Any) -> Any:
            nonlocal stores, effect, seen_epoch, ticks
            if stack[-1] is not written:
                channel.end("untraced", "frames of the program were not followed to their ends")
            if event == "line":
                append(line := frame.f_lineno)
                if is_function:
                    if seen_epoch != epoch:
                        seen_epoch, effect = epoch, CHANGES
                        if cells:
                            stores = (*stores, *cells)
                    if stores:
                        values = frame.f_locals
                        for name in stores:
                            value = values.get(name, MISSING)
                            kind = type(value)
                            if name not in changing and (
                                (kind is int and -LARGE < value < LARGE)
                                or (kind is str and len(value) < 100)
                                or kind is float
                                or kind is bool
                            ):
                                append(name)
                                append(value)
                                written[name] = None
                            else:
                                look(name, value, written, changing)
                        if effect and changing:
                            look_at_contents(values, changing, effect)
                    elif effect and changing:
                        look_at_contents(frame.f_locals, changing, effect)
                else:
                    locals_.look_at_all(frame.f_locals, written, changing, is_function=False)
                stores, effect = table[line]
                ticks -= 1
                if not ticks:
                    ticks = flush()
                return on_event
            other_event(frame, event, arg)
            return on_event

        return on_event

    return on_call


def make_writer(channel: Channel, stack: list[Any], value_of: Callable[[Any], Any]) -> Handler:
    """The function for events of a frame that are no lines: it ends, or something was raised in it."""
    append = channel.parts.append

    def on_other_event(frame: Any, event: str, arg: Any) -> None:
        if event == "return":
            append(-4 * frame.f_lineno - 2)
            append(value_of(arg))
            stack.pop()
            if not frame.f_trace_lines:
                channel.end("untraced", "the program turned the tracing of lines off")
        elif event == "exception":
            append(-4 * frame.f_lineno - 3)
            append(value_of(arg[1]))

    return on_other_event


MISSING = object()
dumps = marshal.dumps
Written = dict[str, Any]
"""Locals of one frame that were written, with what was; None where that was not kept. A frame has a second one for those that can change
without being bound anew."""


class Locals:
    """Writes locals that are not as they were."""

    def __init__(self, append: Callable[[Any], None], value_of: Callable[[Any], Any]) -> None:
        self._append, self._value_of = append, value_of

    def look(self, name: str, value: Any, written: Written, changing: Written) -> None:
        """One that was bound."""
        if value is MISSING:
            if written.pop(name, MISSING) is not MISSING:
                changing.pop(name, None)
                self._append(name)
                self._append(...)
            return
        new = self._value_of(value)
        if type(new) is bytes or type(new) is tuple:
            if changing.get(name) == new:
                return
            changing[name] = new
            written[name] = None
        else:
            if changing:
                changing.pop(name, None)
            old = written.get(name)
            if old is not None and old == new and type(old) is type(new):
                return
            written[name] = new
        self._append(name)
        self._append(new)

    def look_at_contents(self, values: Any, changing: Written, effect: int) -> None:
        """Containers and objects after a line that may have changed them; plain ones do not change when they are read."""
        for name, old in changing.items():
            if effect == CHANGES or type(old) is tuple:
                value = values.get(name, MISSING)
                if type(old) is bytes:
                    try:
                        if dumps(value, 2) == old:
                            continue
                    except (ValueError, TypeError, MemoryError, RecursionError):
                        pass
                new = self._value_of(value)
                if new != old:
                    changing[name] = new
                    self._append(name)
                    self._append(new)

    def look_at_all(self, values: Any, written: Written, changing: Written, *, is_function: bool) -> None:
        """Every local. Names of a module or class that Python itself makes are left out."""
        if type(values) is not dict:  # the mapping of a metaclass: reading it would run the program's code
            return
        if is_function:
            for name, value in values.items():
                if type(value) is int and -LARGE < value < LARGE:
                    self._append(name)
                    self._append(value)
                    written[name] = None
                else:
                    self.look(name, value, written, changing)
            return
        for name, value in tuple(values.items()):
            if type(name) is str and name.isidentifier() and not (name.startswith("__") and name.endswith("__")):
                self.look(name, value, written, changing)
        for name in [name for name in written if name not in values]:
            self.look(name, MISSING, written, changing)


def watch(channel: Channel) -> None:
    """End the trace when the program starts a process or takes the tracer away: no other way back leads from there."""
    forks = ("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "subprocess.Popen", "pty.spawn")

    def hook(event: str, args: Any) -> None:
        if event in forks:
            channel.end("forked", f"the program called {event}")
        if event == "sys.settrace" and channel.watching:
            channel.end("untraced", "the program called sys.settrace")

    sys.addaudithook(hook)


def program_filter(include: list[str], exclude: list[str]) -> Callable[[Any], bool] | None:
    if include == ["*"] and not exclude:
        return None

    def included(code: Any) -> bool:
        name = code.co_qualname
        return any(fnmatch.fnmatchcase(name, word) for word in include) and not any(fnmatch.fnmatchcase(name, word) for word in exclude)

    return included


def follow(code: Any, request: dict[str, Any], channel: Channel) -> NoReturn:
    """Run the program and end the process with its last record."""
    chars = request["repr_chars"]
    shown = Shown(chars=chars, buffers=any(word in request["source"] for word in ("array", "numpy", "bytes", "memoryview")))
    entry = request["entry"]
    module = types.ModuleType("program" if entry else "__main__")
    sys.modules[module.__name__] = module
    module.__dict__["__file__"] = FILE
    included = program_filter(request["include"], request["exclude"])
    tracer = make_tracer(channel, depth_limit=request["depth"], shown=shown, included=included) if request["trace"] else None
    settrace, gettrace = sys.settrace, sys.gettrace
    if "async" in request["source"]:
        import asyncio  # takes longer than most programs
    args = eval(request["args"], {"__builtins__": {"set": set}})  # a literal: the other side has checked it
    value: Any = None
    target: Any = None
    started = False
    watch(channel)
    try:
        if entry:
            exec(code, module.__dict__)
            if entry not in module.__dict__:
                channel.end("load_error", f"the program does not define {entry}")
            target = module.__dict__[entry]
        started = True
        settrace(tracer)
        channel.watching = True
        if entry:
            value = target(*args)
            if type(value) is types.CoroutineType:
                value = asyncio.run(value)
            elif type(value) is types.GeneratorType:
                value = list(value)
        else:
            exec(code, module.__dict__)
        held = gettrace() is tracer
    except BaseException as error:
        held = gettrace() is tracer
        if type(error) is SystemExit and error.code in (None, 0):
            channel.end("ok" if held else "untraced", "the program called sys.exit")
        status = "memory" if type(error) is MemoryError else "raised" if started else "load_error"
        channel.end(status if held or not started else "untraced", Text.of(error, chars=chars))
    channel.end("ok" if held else "untraced", "", Text.of(value, chars=chars) if entry else None)


def main() -> NoReturn:
    with open("/work/request.json") as file:
        request = json.load(file)
    sys.path.remove("/work")
    fd = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.dup2(null, 2)
    os.close(null)
    sys.argv = [FILE]
    os.chdir("/tmp")
    channel = Channel(fd, events=request["events"], record_bytes=request["record_bytes"])
    signal.signal(signal.SIGALRM, lambda number, frame: channel.end("timeout", "the program ran longer than the limit"))
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    try:
        code = compile(request["source"], FILE, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        channel.end("syntax_error", f"{type(error).__name__}: {error}"[:300])
    follow(code, request, channel)


if __name__ == "__main__":
    main()
