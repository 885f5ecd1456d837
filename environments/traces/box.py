"""Runs in the box: traces one program and writes the record. Standard library only.

Nothing here is secret and nothing is trusted: the program shares this process and may take it over. It then chooses what its own
trace says, as it chooses what it prints; the other side checks the form of every record (`box_record.py`) and sets the limits.
"""

import contextlib
import fnmatch
import importlib
import json
import os
import signal
import sys
import types
from typing import Any, NoReturn

sys.path.insert(0, "/work")  # where the tracer put the modules below, until `main`

from environments.traces.box_edit import make_editing_tracer
from environments.traces.box_events import FILE, Included, make_tracer
from environments.traces.box_record import BATCH, Channel
from environments.traces.box_values import Shown, Text

native: Any = None
with contextlib.suppress(ImportError):  # compiled, for one version of Python and one kind of machine
    native = importlib.import_module("environments.traces.box_native")


def watch(channel: Channel) -> None:
    """End the trace when the program starts a process or takes the tracer away: no other way back leads from there."""
    forks = ("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "subprocess.Popen", "pty.spawn")

    def hook(event: str, args: Any) -> None:
        if event in forks:
            channel.end("forked", f"the program called {event}")
        if event == "sys.settrace" and channel.watching:
            channel.end("untraced", "the program called sys.settrace")

    sys.addaudithook(hook)


def program_filter(include: list[str], exclude: list[str]) -> Included | None:
    if include == ["*"] and not exclude:
        return None

    def included(code: Any) -> bool:
        name = code.co_qualname
        return any(fnmatch.fnmatchcase(name, word) for word in include) and not any(fnmatch.fnmatchcase(name, word) for word in exclude)

    return included


def literal(text: str) -> Any:
    """The value of a literal: the other side has checked that it is one."""
    return eval(text, {"__builtins__": {"set": set}})


def follow(code: Any, request: dict[str, Any], channel: Channel) -> NoReturn:
    """Run the program and end the process with its last record."""
    chars = request["repr_chars"]
    shown = Shown(chars=chars, buffers=any(word in request["source"] for word in ("array", "numpy", "bytes", "memoryview")))
    entry = request["entry"]
    module = types.ModuleType("program" if entry else "__main__")
    sys.modules[module.__name__] = module
    module.__dict__["__file__"] = FILE
    included = program_filter(request["include"], request["exclude"])
    tracer: Any = None
    if request["trace"] and request["edits"]:
        tracer = make_editing_tracer(
            channel,
            file=FILE,
            batch=BATCH,
            depth_limit=request["depth"],
            value_of=shown.value,
            included=included,
            edits=[(number, name, literal(value)) for number, name, value in request["edits"]],
        )
    elif request["trace"]:
        tracer = make_tracer(channel, depth_limit=request["depth"], shown=shown, included=included, native=native)
    settrace, gettrace = sys.settrace, sys.gettrace
    if "async" in request["source"]:
        import asyncio  # takes longer than most programs
    args = literal(request["args"])
    value: Any = None
    target: Any = None
    raised: BaseException | None = None
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
    except BaseException as error:
        raised = error
    whole = gettrace() is tracer or not started
    channel.watching = False
    try:  # noqa: SIM105  # not by a call of Python's, in which a finalizer may run and be followed
        settrace(None)
    except BaseException:  # the program's own hook forbids it
        pass
    if raised is None or (started and type(raised) is SystemExit and raised.code in (None, 0)):
        reason = "" if raised is None else "the program called sys.exit"
        channel.end("ok" if whole else "untraced", reason, Text.of(value, chars=chars) if entry and raised is None else None)
    status = "memory" if type(raised) is MemoryError else "raised" if started else "load_error"
    channel.end(status if whole else "untraced", Text.of(raised, chars=chars))


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
