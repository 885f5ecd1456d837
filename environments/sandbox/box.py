"""One running box seen from outside: feeds its stdin, drains its outputs, ends it at a limit and says what became of it.

This knows nothing of how a box is isolated: a kind of sandbox gives it the pipes, a way to kill the box and a task that says how
the box ended. The wall clock and the output cap live here, out of the program's reach.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from environments.sandbox.base import Execution, KilledBy, Limits, SessionEnded

_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a box ended, once none of its processes is left."""

    exit_code: int
    """The program's exit code, or 128 + signal."""
    cpu_seconds: float | None = None
    peak_memory_mb: float | None = None
    killed_by: KilledBy | None = None


class Pipes:
    """stdin, stdout and stderr of one box: three ends for the program, three for its `Box`."""

    def __init__(self) -> None:
        program_in, self.stdin = os.pipe()
        self.stdout, program_out = os.pipe()
        self.stderr, program_err = os.pipe()
        self.program = (program_in, program_out, program_err)
        for fd in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(fd, False)

    def close_program_ends(self) -> None:
        for fd in self.program:
            os.close(fd)
        self.program = ()  # type: ignore[assignment]  # closed only once

    def close(self) -> None:
        """Everything, when no Box took the other ends over."""
        for fd in (*self.program, self.stdin, self.stdout, self.stderr):
            os.close(fd)


class Box:
    """Owns the ends of `pipes` that are ours. `kill` may be called more than once and at any moment until `ended` is done."""

    def __init__(
        self,
        *,
        pipes: Pipes,
        limits: Limits,
        started: float,
        kill: Callable[[], None],
        ended: "asyncio.Future[Ended] | asyncio.Task[Ended]",
    ) -> None:
        """`started`: by time.monotonic(); the wall clock runs from there. `ended` raises SandboxError when the sandbox failed."""
        self._loop = asyncio.get_running_loop()
        self._kill_box, self._ended, self._started = kill, ended, started
        self._killed_by: KilledBy | None = None
        self._output_left = limits.output_bytes
        self._buffers = {pipes.stdout: bytearray(), pipes.stderr: bytearray()}
        self._stdin, self._stdout, self._stderr = pipes.stdin, pipes.stdout, pipes.stderr
        self._unsent = bytearray()
        self._close_stdin_when_sent = False
        self._lines_read = 0
        """Bytes of stdout that `ask` has returned."""
        self._searched = 0
        """Bytes of stdout that hold no end of a line that `ask` has not returned."""
        self._changed = asyncio.Event()
        self._open = {pipes.stdin, pipes.stdout, pipes.stderr}
        self._closed = False
        """Killed by `close`, which is no limit."""
        self._result: Execution | None = None
        for fd in self._buffers:
            self._loop.add_reader(fd, self._read, fd)
        self._alarm = self._loop.call_later(max(0.0, limits.wall_seconds - (time.monotonic() - started)), self._stop, "wall")
        ended.add_done_callback(lambda _: self._changed.set())

    async def finish(self, *, stdin: bytes) -> Execution:
        """Send `stdin`, wait for the end. Cancellation kills the box before it propagates."""
        self._send(stdin)
        self._close_stdin_when_sent = True
        if not self._unsent:
            self._release(self._stdin)
        return await self._wait()

    async def ask(self, line: bytes, *, seconds: float) -> bytes:
        """See Session.ask."""
        if b"\n" in line:
            raise ValueError("a question to a session must be one line")
        if self._ended.done():
            await self._wait()  # raises when it was the sandbox that failed
            raise SessionEnded("the program has ended")
        self._send(line + b"\n")
        stdout = self._buffers[self._stdout]
        try:
            async with asyncio.timeout(seconds):
                while (end := self._find_line_end(stdout)) < 0 and not self._ended.done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._stop("wall")
            await self._wait()
            raise SessionEnded(f"no answer within {seconds:g} s") from None
        except asyncio.CancelledError:
            self._kill()
            raise
        if end < 0:
            await self._wait()  # drains what was written last
            end = self._find_line_end(stdout)
        if end < 0 or self._killed_by is not None:
            raise SessionEnded(f"the program exceeded its limit: {self._killed_by}" if self._killed_by else "the program has ended")
        answer = bytes(stdout[self._lines_read : end])
        self._lines_read = self._searched = end + 1
        return answer

    def _find_line_end(self, stdout: bytearray) -> int:
        """Where the next line ends, or -1. What was searched is not searched again: a program may write a byte at a time."""
        end = stdout.find(b"\n", self._searched)
        self._searched = len(stdout) if end < 0 else end
        return end

    async def close(self) -> Execution:
        """See Session.close."""
        self._closed = not self._ended.done()
        self._kill()
        return await self._wait()

    async def _wait(self) -> Execution:
        """Until no process of the box is left and its outputs are read to their ends."""
        try:
            ended = await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            self._kill()
            await asyncio.wait([self._ended])
            self._release_all()
            raise
        except BaseException:
            self._release_all()
            raise
        if self._result is None:
            wall_seconds = time.monotonic() - self._started
            for fd in self._buffers:  # the box is gone: what it wrote is in the pipes
                while fd in self._open and self._read(fd):
                    pass
            self._release_all()
            self._result = Execution(
                stdout=bytes(self._buffers[self._stdout]),
                stderr=bytes(self._buffers[self._stderr]),
                exit_code=ended.exit_code,
                wall_seconds=wall_seconds,
                cpu_seconds=ended.cpu_seconds,
                peak_memory_mb=ended.peak_memory_mb,
                killed_by=self._killed_by or (None if self._closed else ended.killed_by),
            )
        return self._result

    def _read(self, fd: int) -> bool:
        """Take one chunk; False when there is nothing to take."""
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._release(fd)
            return False
        self._buffers[fd] += chunk[: self._output_left]
        if len(chunk) > self._output_left:
            self._stop("output")
        self._output_left = max(0, self._output_left - len(chunk))
        self._changed.set()
        return True

    def _send(self, data: bytes) -> None:
        if self._stdin in self._open:
            self._unsent += data
            self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._stdin, memoryview(self._unsent)[:_CHUNK].tobytes())]
        except BlockingIOError:
            self._loop.add_writer(self._stdin, self._write)
            return
        except BrokenPipeError:  # a program may end, or close its stdin, without reading
            self._release(self._stdin)
            return
        self._loop.remove_writer(self._stdin)
        if self._close_stdin_when_sent:
            self._release(self._stdin)

    def _stop(self, reason: KilledBy) -> None:
        if not self._ended.done():
            self._killed_by = self._killed_by or reason
            self._kill()

    def _kill(self) -> None:
        if not self._ended.done():
            self._kill_box()

    def _release(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            with contextlib.suppress(OSError):
                os.close(fd)

    def _release_all(self) -> None:
        self._alarm.cancel()
        for fd in tuple(self._open):
            self._release(fd)
