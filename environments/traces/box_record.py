"""The record that leaves the box, and its way out. Imported in the box of the tracer: standard library only.

Records go to the descriptor that was stdout; what the program prints goes to what was stderr. They come in batches, four bytes of length
and a list in marshal's form 2, in which one event follows the other:

    LINE                name, value, ...    a line: what changed since the last event of the frame
    -4 * LINE - 1       name, value, ...    a call: all locals of the new frame
    -4 * LINE - 2       value               a return
    -4 * LINE - 3       value               an exception

A value is as `Shown` gives it; `...` stands for a local that is gone. LINE is 0 where the instruction has none. The last batch is
[(status, reason, value)].
"""

import contextlib
import marshal
import os
import struct
import sys
from typing import Any, NoReturn

BATCH = 512
"""Lines that are collected before they are written."""


class Channel:
    """Where records go; ends the process when the program has had its share."""

    def __init__(self, fd: int, *, events: int, record_bytes: int) -> None:
        self.parts: list[Any] = []
        self._fd, self._events, self._bytes = fd, events, record_bytes
        self._process = os.getpid()
        self.watching = False
        """Whether the tracer is in place, and must stay."""
        self._stdout: Any = sys.stdout
        self._write, self._exit, self._getpid, self._settrace = os.write, os._exit, os.getpid, sys.settrace

    def stop(self) -> None:
        """Follow nothing any more: finalizers and what stands behind stdout may still run code of the program."""
        self.watching = False
        with contextlib.suppress(BaseException):  # the program may have a hook that forbids it
            self._settrace(None)

    def flush(self) -> int:
        """Write what was collected; the number of lines until the next time. Does not return when it is enough."""
        if self._getpid() != self._process:
            self._exit(0)  # a copy that was made beside Python
        self._events -= BATCH
        self._send()
        if self._events < 0:
            self.end("events", "more events than the limit")
        if self._bytes < 0:
            self.end("bytes", "a larger record than the limit")
        return BATCH

    def end(self, status: str, reason: str, value: str | None = None) -> NoReturn:
        """Write the last record and end the process: nothing of the program is in it that ran after its trace."""
        self.stop()
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
