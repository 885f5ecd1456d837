"""Runs in the box: traces one program and writes the record. Standard library only.

Nothing here is secret and nothing is trusted: the program shares this process and may take it over. It then chooses what its own
trace says, as it chooses what it prints; the other side checks the form of every record and sets the limits.

Records, on the descriptor that was stdout (what the program prints goes to what was stderr). Each starts with `\\x1e`, its parts are
split by `\\x1f`; changes are `name=text`, or `name` alone for a local that is gone:

    c LINE  changes     call: all locals of the new frame        r LINE  text     return
    l LINE  changes     line: what changed since the frame's     x LINE  text     exception
                        last record                              E status  reason  returned  value
"""

import contextlib
import fnmatch
import json
import os
import signal
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

sys.path.insert(0, "/work")  # where the tracer put the modules below, until `main`

from environments.traces.box_lines import CHANGES, LineTable
from environments.traces.box_values import Text, plain_form, plain_text, scalar_text

FILE = "program.py"
"""Name of the program's file, which is none on disk."""
FLUSH = 4096
"""Parts that are collected before they are written."""
Handler = Callable[[Any, str, Any], Any]


class Channel:
    """Where records go; ends the process when the program has had its share."""

    def __init__(self, fd: int, *, events: int, record_bytes: int) -> None:
        self.parts: list[str] = []
        self._fd, self._events, self._bytes = fd, events, record_bytes
        self._process = os.getpid()
        self.watching = False
        """Whether the tracer is in place, and must stay."""
        self._stdout: Any = sys.stdout
        self._write, self._exit, self._getpid = os.write, os._exit, os.getpid

    def flush(self) -> None:
        """Write what was collected. Does not return when that is enough."""
        text = "\x1f".join(self.parts)
        self.parts.clear()
        self._events -= text.count("\x1e")
        data = text.encode("utf-8", "backslashreplace")
        self._bytes -= len(data)
        self._send(data)
        if self._events < 0:
            self.end("events", "more events than the limit")
        if self._bytes < 0:
            self.end("bytes", "a larger record than the limit")

    def end(self, status: str, reason: str, value: str | None = None) -> NoReturn:
        """Write the last record and end the process: nothing of the program runs after its trace."""
        self.watching = False
        sys.settrace(None)
        reason = "".join(letter if letter.isprintable() else " " for letter in reason)
        if self._getpid() == self._process:
            final = "\x1f".join((f"\x1eE{status}", reason, *(() if value is None else ("returned", value))))
            text = "\x1f".join((*self.parts, final))
            self.parts.clear()
            with contextlib.suppress(BaseException):  # the program may have closed it
                type(self._stdout).flush(self._stdout)
            self._send(text.encode("utf-8", "backslashreplace"))
        self._exit(0)
        raise SystemExit

    def _send(self, data: bytes) -> None:
        while data:
            data = data[self._write(self._fd, data) :]


def make_tracer(channel: Channel, *, depth_limit: int, chars: int, included: Callable[[Any], bool] | None) -> Handler:
    """The function for `sys.settrace`.

    A name is looked at when the line that ran could have bound it, a container when the line could have changed one, and everything when
    other Python code ran in between (`epoch`); `box_lines.py` tells which.
    """
    parts, append = channel.parts, channel.parts.append
    tables: dict[int, tuple[Any, LineTable]] = {}
    stack: list[Any] = [None]
    epoch = 0

    def on_call(frame: Any, event: str, arg: Any) -> Any:
        nonlocal epoch
        epoch += 1
        code = frame.f_code
        if code.co_filename != FILE or event != "call":
            return None
        if included is not None and len(stack) > 1 and not included(code):
            return None
        if len(stack) > depth_limit:
            channel.end("depth", f"more than {depth_limit} calls in one another")
        found = tables.get(id(code))
        if found is None:
            found = tables[id(code)] = (code, LineTable(code))  # the code is kept, so that no other gets its id
        table = found[1]
        state = State(table.is_function, chars)
        seen_epoch = epoch
        stores: tuple[str, ...] = ()
        effect = 0
        stack.append(state)
        append(f"\x1ec{frame.f_lineno}")
        state.look_at_all(frame.f_locals, append)
        look, contents, known = state.look, state.contents, state.known

        def on_event(frame: Any, event: str, arg: Any) -> Any:
            nonlocal stores, effect, seen_epoch
            if stack[-1] is not state:
                channel.end("untraced", "frames of the program were not followed to their ends")
            if event == "line":
                header, next_stores, next_effect = table[frame.f_lineno]
                append(header)
                if not table.is_function:
                    state.look_at_all(frame.f_locals, append)
                elif seen_epoch != epoch:
                    seen_epoch = epoch
                    values = frame.f_locals
                    for name in dict.fromkeys((*stores, *table.cells)):
                        look(name, values.get(name, MISSING), append)
                    state.look_at_contents(values, append, CHANGES)
                elif stores or (effect and contents):
                    values = frame.f_locals
                    for name in stores:
                        value = values.get(name, MISSING)
                        if type(value) is int and -BIG < value < BIG and name not in contents:
                            append(f"{name}={value}")
                            known[name] = None
                        else:
                            look(name, value, append)
                    if effect and contents:
                        state.look_at_contents(values, append, effect)
                stores, effect = next_stores, next_effect
                if len(parts) > FLUSH:
                    channel.flush()
                return on_event
            if event == "return":
                append(f"\x1er{frame.f_lineno}")
                append(state.text(arg))
                stack.pop()
                if not frame.f_trace_lines:
                    channel.end("untraced", "the program turned the tracing of lines off")
            elif event == "exception":
                append(f"\x1ex{frame.f_lineno}")
                append(state.text(arg[1]))
            return on_event

        return on_event

    return on_call


MISSING = object()
BIG = 10**18


class State:
    """What was written last of the locals of one frame."""

    __slots__ = ("_chars", "_function", "contents", "known")

    def __init__(self, function: bool, chars: int) -> None:
        self._function, self._chars = function, chars
        self.known: dict[str, Any] = {}
        """Names that were written, with their texts; None stands for an integer's."""
        self.contents: dict[str, bytes | str] = {}
        """Locals that can change without being bound anew: their plain form, or their text."""

    def text(self, value: Any) -> str:
        kind = type(value)
        text = scalar_text(value, kind, chars=self._chars)
        if text is None and (kind is list or kind is dict or kind is tuple or kind is set):
            form = plain_form(value)
            text = None if form is None else plain_text(form, chars=self._chars)
        return Text.of(value, chars=self._chars) if text is None else text

    def look(self, name: str, value: Any, append: Callable[[str], None]) -> None:
        """Write a local that was bound, unless it is as it was."""
        if value is MISSING:
            if self.known.pop(name, MISSING) is not MISSING:
                self.contents.pop(name, None)
                append(name)
            return
        kind = type(value)
        text = scalar_text(value, kind, chars=self._chars)
        if text is not None:
            self.contents.pop(name, None)
        elif kind is list or kind is dict or kind is tuple or kind is set:
            form = plain_form(value)
            if form is not None:
                if self.contents.get(name) == form:
                    return
                text = plain_text(form, chars=self._chars)
                if text is not None:
                    self.contents[name] = form
        if text is None:
            text = Text.of(value, chars=self._chars)
            if self.contents.get(name) == text:
                return
            self.contents[name] = text
        elif self.known.get(name) == text:
            return
        self.known[name] = text
        append(f"{name}={text}")

    def look_at_contents(self, values: Any, append: Callable[[str], None], effect: int) -> None:
        """Containers and objects after a line that may have changed them; plain ones do not change when they are read."""
        for name, known in tuple(self.contents.items()):
            if effect == CHANGES or type(known) is str:
                self.look(name, values.get(name, MISSING), append)

    def look_at_all(self, values: Any, append: Callable[[str], None]) -> None:
        """Every local. Names of a module or class that Python itself makes are left out."""
        if type(values) is not dict:  # the mapping of a metaclass: reading it would run the program's code
            return
        for name, value in tuple(values.items()):
            if self._function or (type(name) is str and name.isidentifier() and not (name.startswith("__") and name.endswith("__"))):
                self.look(name, value, append)
        if len(self.known) > len(values) or not self._function:
            for name in [name for name in self.known if name not in values]:
                self.look(name, MISSING, append)


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
    entry = request["entry"]
    module = types.ModuleType("program" if entry else "__main__")
    sys.modules[module.__name__] = module
    module.__dict__["__file__"] = FILE
    included = program_filter(request["include"], request["exclude"])
    tracer = make_tracer(channel, depth_limit=request["depth"], chars=chars, included=included) if request["trace"] else None
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
