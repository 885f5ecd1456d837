"""Runs inside an agent's container as its main process: keeps one bash and serves tool calls. Standard library only, Python 3.8 or newer.

A request is two big-endian 32-bit lengths, a marshalled dict and data, on stdin; the answer has the same form, but for JSON in place of
the dict, and the request's `id`, on stdout. At the end of stdin everything ends. Modules that take long to load are not used.

The agent has the same uid, but cannot end this process, which is the container's init, nor look into it: the driver does not start where
it cannot have that. If it did, it could forge answers; they reach nobody but the agent, and the most that they can come to is a patch.
"""

from __future__ import annotations

import _signal as signal
import errno
import fcntl
import marshal
import os
import select
import struct
import sys
import time

from environments.swe.inside.driver_changes import Changes
from environments.swe.inside.driver_files import ToolError, create, edit, read
from environments.swe.inside.json_text import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CHUNK = 1 << 16
"""Also what a pipe holds."""
_BETWEEN = 1 << 20
"""Bytes of background jobs that are taken between two commands; then they wait."""
_PR_SET_DUMPABLE = 4
_OUT, _STATUS, _COMMAND = 7, 8, 9
"""Descriptors in the shell; commands do not get them."""
_SETUP = b"echo 1000 >/proc/self/oom_score_adj\n"
"""When memory runs out, what the agent started ends first."""
_RUN = (
    b"IFS= builtin read -r -d '' -u 9 __command; builtin eval \"$__command\" </dev/null >&7 2>&7 7>&- 8>&- 9<&-; "
    b"builtin printf '%s\\0' \"$?\" >&8\n"
)
"""The shell reads this from its stdin once a command. It is no loop, which a `break` in the command would end."""


class Collector:
    """Keeps the beginning and the end of a stream."""

    def __init__(self) -> None:
        self.head, self.tail = bytearray(), bytearray()
        self.total = 0
        self.keep = _BETWEEN

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        room = max(self.keep // 2 - len(self.head), 0)
        self.head += data[:room]
        self.tail += data[room:]
        self.trim(slack=_CHUNK)

    def trim(self, *, slack: int = 0) -> None:
        most = self.keep - self.keep // 2
        if len(self.tail) > most + slack:
            del self.tail[: len(self.tail) - most]

    def limit(self, keep: int) -> None:
        """From here on at most `keep` bytes are kept, of what is there already too."""
        self.keep = keep
        self.tail[:0] = self.head[keep // 2 :]
        del self.head[keep // 2 :]
        self.trim()


class Result:
    """What a command came to."""

    def __init__(self, *, ended: str, code: int | None) -> None:
        """`ended`: `done`, `timeout`, or `shell`: the shell itself ended."""
        self.ended, self.code = ended, code


class Shell:
    """One bash. It is made anew after it ended or was ended."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.output = Collector()
        self.pid = 0
        self._wake, wake = _pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._script = self._command = self.out = self._status = -1
        self._code = 0

    def start(self) -> None:
        """Raises OSError when there is no process to be had."""
        script, self._script = _pipe()
        command, self._command = _pipe()
        self.out, out = _pipe()
        self._status, status = _pipe()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become_bash({0: script, 1: null, 2: null, _OUT: out, _STATUS: status, _COMMAND: command}, self.folder)
        except OSError:
            self.end()
            raise
        finally:
            for descriptor in (script, command, out, status, null):
                os.close(descriptor)
        for descriptor in (self.out, self._status, self._script, self._command):
            os.set_blocking(descriptor, False)
        os.write(self._script, _SETUP)

    def run(self, command: bytes, *, seconds: float) -> Result:
        """Run a command. The output is in `output`."""
        deadline = time.monotonic() + seconds
        if self.pid == 0:
            self.start()
        _read(self._status)  # nothing, unless the shell was meddled with
        todo = {self._script: _RUN, self._command: command + b"\0"}
        status = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self.drain()
                self.end()
                return Result(ended="timeout", code=None)
            readable, writable, _ = select.select([self.out, self._status, self._wake], [fd for fd, data in todo.items() if data], [], left)
            for descriptor in writable:
                todo[descriptor] = todo[descriptor][_write(descriptor, todo[descriptor]) :]
            if self.out in readable:
                self.drain()
            if self._status in readable:
                part = _read(self._status)
                status += part
                if not part:  # the shell ended, or gave its descriptor away
                    self._await_end()
                if status.endswith(b"\0"):
                    self.drain()
                    return Result(ended="done", code=int(status[:-1]) if status[:-1].isdigit() else None)
            if self._wake in readable:
                _read(self._wake)
                self._reap()
            if self.pid == 0:
                self.drain()
                self.end()
                return Result(ended="shell", code=self._code)

    def _await_end(self) -> None:
        for _ in range(100):
            self._reap()
            if self.pid == 0:
                return
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)

    def drain(self) -> None:
        """Take what the pipe holds now, and no more: a background job may write for ever."""
        left = _CHUNK
        while left > 0:
            data = _read(self.out, left)
            if not data:
                return
            self.output.feed(data)
            left -= len(data)

    def end(self) -> None:
        """End everything in the container but this process."""
        for _ in range(1000):
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                break
            self._reap()
            time.sleep(0.002)
        self._reap()
        self.pid = 0
        for descriptor in (self._script, self._command, self.out, self._status):
            if descriptor >= 0:
                os.close(descriptor)
        self._script = self._command = self.out = self._status = -1

    def working_folder(self) -> bytes:
        """Where the shell is; where it starts when there is none."""
        try:
            return os.readlink(b"/proc/%d/cwd" % self.pid)
        except OSError:
            return os.fsencode(self.folder)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.pid = 0
                self._code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _become_bash(descriptors: dict[int, int], folder: str) -> None:
    try:
        os.setsid()
        for number, descriptor in descriptors.items():
            os.dup2(descriptor, number)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if os.access(folder, os.X_OK):  # the agent may have locked itself out
            os.chdir(folder)
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-s"])
    finally:
        os._exit(127)


def _pipe() -> tuple[int, int]:
    """A pipe whose numbers are out of the way of the shell's."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _read(descriptor: int, size: int = _CHUNK) -> bytes:
    try:
        return os.read(descriptor, size)
    except BlockingIOError:
        return b""


def _write(descriptor: int, data: bytes) -> int:
    try:
        return os.write(descriptor, data[:_CHUNK])
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(data)  # the shell has ended: that is seen elsewhere


class Stream:
    """The requests."""

    def __init__(self) -> None:
        self.left = 0
        """Of the data of the present request."""

    def request(self) -> dict[str, Any] | None:
        """The next one, without its data; None at the end."""
        first = self._exactly(8)
        if not first:
            return None
        size, self.left = struct.unpack(">II", first)
        found: dict[str, Any] = marshal.loads(self._exactly(size))
        return found

    def read(self, size: int) -> bytes:
        """Some of the data; as a file's `read`."""
        data = self._exactly(min(size, self.left))
        self.left -= len(data)
        return data

    @staticmethod
    def _exactly(size: int) -> bytes:
        parts = []
        while size > 0:
            part = os.read(0, min(size, 1 << 20))
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def answer(header: dict[str, Any], data: bytes | Changes = b"") -> None:
    text = to_json(header).encode()
    size, parts = (len(data), iter((data,))) if isinstance(data, bytes) else (data.size, data.data())
    _send(struct.pack(">II", len(text), size) + text)
    for part in parts:
        _send(part)


def _send(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]


def serve(request: dict[str, Any], stream: Stream, shell: Shell) -> tuple[dict[str, Any], bytes | Changes]:
    """The answer to a request, without its id."""
    op = request["op"]
    data = stream.read(stream.left)
    if op == "changes":
        shell.end()
        return {}, Changes(os.fsencode(shell.folder), data, most=request["limit"])
    if op == "bash":
        shell.output.limit(request["keep"])
        result = shell.run(data, seconds=request["command_seconds"])
        output, shell.output = shell.output, Collector()
        output.trim()
        kept = bytes(output.head + output.tail)
        return {"ended": result.ended, "code": result.code, "head": len(output.head), "dropped": output.total - len(kept)}, kept
    shown = request["path"]
    path = os.path.join(shell.working_folder(), os.fsencode(shown))
    if op == "read":
        return {}, read(path, shown, most=request["size"])
    if op == "create":
        return {}, create(path, shown, data).encode("utf-8", "replace")
    cut = request["search"]
    text = edit(path, shown, search=data[:cut], replacement=data[cut:], around=request["around"])
    return {}, text.encode("utf-8", "replace")


def _close_to_others() -> None:
    """Others of this user cannot look into the process from now on, where the image's Python can make that call."""
    try:
        import _ctypes

        everything: Any = None
        prctl = _ctypes.dlsym(_ctypes.dlopen(everything, 0), "prctl")
        _ctypes.call_function(prctl, (_PR_SET_DUMPABLE, 0, 0, 0, 0))
    except (ImportError, OSError, AttributeError):
        return


def main() -> None:
    if os.getpid() != 1:
        sys.exit("the driver ends all processes of its user: it runs as a container's main process only")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as init it does not get what has no handler
    _close_to_others()
    if os.stat("/proc/self/mem").st_uid == os.getuid():
        sys.exit("the image's Python has no ctypes, by which the driver keeps the agent out of its own process")
    stream, shell = Stream(), Shell(sys.argv[1])
    while True:
        listen = [0, shell.out] if shell.out >= 0 and shell.output.total < _BETWEEN else [0]
        readable = select.select(listen, [], [])[0]
        if 0 not in readable:
            shell.drain()
            continue
        request = stream.request()
        if request is None:
            os._exit(0)  # with the init all other processes end
        data: bytes | Changes
        try:
            header, data = serve(request, stream, shell)
        except ToolError as error:
            header, data = {"error": str(error)}, b""
        except OSError as error:
            header, data = {"error": f"{request.get('path', request['op'])}: {os.strerror(error.errno or errno.EIO)}"}, b""
        while stream.left:
            stream.read(_CHUNK)
        answer({"id": request["id"], **header}, data)
