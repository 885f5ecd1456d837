"""Runs in the candidate's box: loads the response's code, calls what it defines, reports what came back.

One JSON object a line on stdin, one line in answer. Nothing here is secret and nothing here is trusted: the code under test
shares this process, may take it over, and then chooses what its functions "returned", which it could do anyway. Expected values
and comparisons are elsewhere. Standard library only.
"""

import atexit
import base64
import contextlib
import gc
import io
import json
import os
import select
import signal
import sys
import threading
import types
from typing import Any

sys.path.insert(0, "/work")  # where the grader put the two modules below

from environments.code_tests.shared_files import SharedFiles
from environments.code_tests.values import MAX_REPLY_BYTES, MAX_STDOUT_BYTES, NotAValue, decode, encode, seed_random

_PROGRAM_FILE = "/work/main.py"
_MAX_STDERR_BYTES = 1000
_MAX_PRINTED_BYTES = 1000
_MAX_LISTED = 10_000


class _Printed(io.RawIOBase):
    """Where stdout or stderr of functions under test go: keeps the first bytes since it was last asked."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._kept = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def write(self, data: Any, /) -> int:
        room = _MAX_PRINTED_BYTES - len(self._kept)
        if room > 0:
            self._kept += bytes(data[:room])
        return len(data)

    def take(self) -> str:
        """What was kept, which starts anew."""
        kept, self._kept = self._kept, b""
        return kept.decode(errors="replace")


class _Foreign:
    """Stands for an object of the tests that is no plain value; it can be kept and given back."""

    def __init__(self, number: int) -> None:
        self._number = number


class Candidate:
    """The response's code, and the objects of it that the other side knows by number."""

    def __init__(self) -> None:
        module = types.ModuleType("candidate")  # data classes and pickled objects look for the module of their class
        sys.modules["candidate"] = module
        self._namespace = module.__dict__
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._foreign: dict[int, _Foreign] = {}
        self._program: Any = None
        self._files: SharedFiles | None = None

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run `code` after `context`, as a continuation of it where it is no module by itself; the `names` that then exist."""
        if request["share_files"]:
            self._files = SharedFiles()
        seed_random(request["code"])
        if request["context"]:
            exec(compile(request["context"], "context.py", "exec"), self._namespace)
        try:
            code = compile(request["code"], "candidate.py", "exec")
        except SyntaxError:
            if not request["context"]:
                raise
            code = compile(request["context"] + "\n" + request["code"], "candidate.py", "exec")
        exec(code, self._namespace)
        return {"names": {name: self._number(self._namespace[name]) for name in request["names"] if name in self._namespace}}

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._files is not None and "files" in request:
            self._files.apply(request["files"])
        args = [self._decode(item) for item in request["args"]]
        kwargs = {name: self._decode(item) for name, item in request["kwargs"].items()}
        reply: dict[str, Any] = {"value": self._encode(self._objects[request["target"]](*args, **kwargs))}
        if request["want_args"]:
            reply["args"] = [self._encode(item) for item in args]
        return reply

    def read(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"value": self._encode(getattr(self._objects[request["target"]], request["name"]))}

    def write(self, request: dict[str, Any]) -> dict[str, Any]:
        setattr(self._objects[request["target"]], request["name"], self._decode(request["value"]))
        return {"value": None}

    def items(self, request: dict[str, Any]) -> dict[str, Any]:
        """The items of an iterable, at most as many as a value may have here."""
        listed = []
        for item in self._objects[request["target"]]:
            listed.append(item)
            if len(listed) > _MAX_LISTED:
                raise NotAValue("an iterable with too many items")
        return {"value": self._encode(listed)}

    def evaluate(self, request: dict[str, Any]) -> dict[str, Any]:
        """The arguments that `code`, the text between the parentheses of a call, stands for."""

        def arguments(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            return args, kwargs

        call = compile(f"arguments({request['code']}\n)", "input.py", "eval")
        args, kwargs = eval(call, {"arguments": arguments})
        return {"args": [self._encode(item) for item in args], "kwargs": {str(name): self._encode(item) for name, item in kwargs.items()}}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        self._program = compile(request["code"], _PROGRAM_FILE, "exec")
        with open(_PROGRAM_FILE, "w") as file:
            file.write(request["code"])
        return {}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the compiled program in a process of its own, with `stdin` to read."""
        stdin, stdout, stderr = (os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600) for _ in range(3))  # files without a name
        with open(stdin, "wb") as read, open(stdout, "rb") as printed, open(stderr, "rb") as complaints:
            read.write(request["stdin"].encode())
            read.flush()
            read.seek(0)
            pid = os.fork()
            if pid == 0:
                self._become_program(stdin, stdout, stderr)
            process = os.pidfd_open(pid)
            ready, _, _ = select.select([process], [], [], request["seconds"])
            os.close(process)
            for kill in (os.killpg, os.kill):  # the group, and the program itself if it has not made the group yet
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            printed.seek(0)
            output = printed.read(MAX_STDOUT_BYTES + 1)
            complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _MAX_STDERR_BYTES))
            return {
                "stdout": base64.b64encode(output[:MAX_STDOUT_BYTES]).decode(),
                "stderr": complaints.read(_MAX_STDERR_BYTES).decode(errors="replace"),
                "exit": os.waitstatus_to_exitcode(status),
                "timeout": not ready,
                "too_much": len(output) > MAX_STDOUT_BYTES,
            }

    def changed_files(self) -> dict[str, str | None] | None:
        return None if self._files is None else self._files.changes()

    def _become_program(self, *fds: int) -> None:
        """Be what `python main.py` would be, and end as it would: exit handlers run, threads that are no daemons are waited for."""
        status = 1
        try:
            os.setsid()
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
            os.closerange(3, 256)
            sys.stdin = sys.__stdin__ = os.fdopen(0, "r", closefd=False)  # type: ignore[misc]
            sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)  # type: ignore[misc]
            sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)  # type: ignore[misc]
            stdout = sys.stdout
            module = types.ModuleType("__main__")
            module.__file__ = _PROGRAM_FILE
            sys.modules["__main__"] = module
            sys.argv = ["main.py"]
            try:
                exec(self._program, module.__dict__)
                status = 0
            except SystemExit as leave:
                status = 0 if leave.code is None else leave.code if isinstance(leave.code, int) else 1
                if status == 1 and not isinstance(leave.code, int):
                    print(leave.code, file=sys.stderr)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            threading._shutdown()  # type: ignore[attr-defined]  # waits for the program's threads
            atexit._run_exitfuncs()
            _flush(sys.stdout, stdout)
            for name in [name for name in module.__dict__ if name != "__builtins__"]:
                module.__dict__[name] = None  # open files are written when they are collected
            gc.collect()
            _flush(sys.stdout, stdout)
        finally:
            os._exit(status & 255)

    def _decode(self, data: Any) -> Any:
        return decode(data, opaque=self._known)

    def _encode(self, value: Any) -> Any:
        return encode(value, opaque=self._number)

    def _known(self, data: dict[str, Any]) -> Any:
        ((tag, content),) = data.items()
        if tag == "handle":
            return self._objects[content[0]]
        return self._foreign.setdefault(content, _Foreign(content))

    def _number(self, value: Any) -> Any:
        if type(value) is _Foreign:
            return {"foreign": value._number}
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)  # kept alive, so that no other object gets its id
        return {"handle": [number, type(value).__name__[:60]]}


def _flush(*files: Any) -> None:
    for file in files:
        with contextlib.suppress(Exception):  # the program may have closed or replaced it
            file.flush()


def describe(error: BaseException) -> list[Any]:
    """[nearest built-in exception, arguments if they are plain, type and text]; the error's own methods may fail."""
    try:
        nearest = next((kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"), "Exception")
        text = f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return ["Exception", [], "an exception that cannot be shown"]
    try:
        args = [encode(item, opaque=_refuse) for item in error.args]
    except BaseException:
        args = [text]
    return [nearest, args, text]


def _refuse(value: Any) -> Any:
    raise NotAValue(type(value).__name__)


def serve() -> None:
    requests = os.fdopen(os.dup(0), "rb")
    channel = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    loads, dumps, write = json.loads, json.dumps, os.write
    printed = _Printed(1), _Printed(2)
    outputs = [io.TextIOWrapper(io.BufferedWriter(one), encoding="utf-8", errors="backslashreplace") for one in printed]
    sys.stdout, sys.stderr = outputs
    candidate = Candidate()
    operations = {name: getattr(candidate, name) for name in ("load", "call", "read", "write", "items", "evaluate", "prepare", "run")}
    for line in requests:
        request = loads(line)
        try:
            reply = operations[request["op"]](request)
        except BaseException as error:  # the candidate may raise anything, SystemExit included
            reply = {"error": describe(error)}
        try:
            files = candidate.changed_files()
            if files:
                reply["files"] = files
            _flush(*outputs)
            if said := "".join(one.take() for one in printed):
                reply["printed"] = said
            data = dumps(reply, allow_nan=False).encode()
        except BaseException as error:
            data = dumps({"error": describe(error)}).encode()
        if len(data) > MAX_REPLY_BYTES:
            data = b'{"error": ["Exception", [], "returned more than 4 MiB"]}'
        data += b"\n"
        while data:
            data = data[write(channel, data) :]


if __name__ == "__main__":
    serve()
