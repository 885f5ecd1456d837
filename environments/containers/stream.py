"""Both ways to a process in a container, over the engine's hijacked connection."""

import asyncio
import contextlib
import socket
import struct
from typing import Self

from environments.containers.base import ContainerError

ERRORS_KEPT = 64 << 10
_HELD = 1 << 20
"""Bytes of stdout that are taken before somebody reads them; the process waits when there are more."""
_FRAME = struct.Struct(">BxxxI")
_STDOUT, _STDERR = 1, 2


class Stream:
    """stdin, stdout and stderr of one process. Its frames are taken apart in the background, so stderr never holds it up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, head: bytes, errors_kept: int, first: bool) -> None:
        self._reader, self._writer, self._head = reader, writer, head
        self._stdout, self._stderr = bytearray(), bytearray()
        self._errors_kept, self._first_errors = errors_kept, first
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._dropping = False
        self.errors_dropped = False
        """Some of stderr did not fit."""
        self._ended = asyncio.ensure_future(self._take_frames())
        self._ended.add_done_callback(lambda _: self._changed.set())

    @classmethod
    async def open(cls, connection: socket.socket, *, head: bytes = b"", errors_kept: int = ERRORS_KEPT, first: bool = False) -> Self:
        """`head`: what was read from the connection before. Of stderr, `errors_kept` bytes are kept: the `first` or the last."""
        reader, writer = await asyncio.open_connection(sock=connection)
        return cls(reader, writer, head=head, errors_kept=errors_kept, first=first)

    @property
    def ended(self) -> bool:
        """No more is to come."""
        return self._ended.done()

    async def write(self, data: bytes) -> None:
        """Raises ContainerError when the process is gone."""
        if self.ended:
            raise ContainerError("the container's main process has ended")
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise ContainerError(f"the container's main process cannot be written to: {error}") from error

    async def close_stdin(self) -> None:
        with contextlib.suppress(OSError):
            if self._writer.can_write_eof() and not self._writer.is_closing():
                self._writer.write_eof()

    async def read(self, size: int) -> bytes:
        """At most `size` bytes of stdout; empty at its end."""
        while not self._stdout and not self.ended:
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._stdout[:size])
        del self._stdout[:size]
        if len(self._stdout) < _HELD:
            self._room.set()
        return data

    def errors(self) -> bytes:
        """What is kept of stderr so far."""
        return bytes(self._stderr)

    async def wait_end(self) -> None:
        """Until the process has closed its outputs; its stdout must be read meanwhile when it is much."""
        await asyncio.shield(self._ended)

    def drop_output(self) -> None:
        """Nobody reads stdout any more: what comes is taken and dropped. The engine cannot end a process that it cannot write for."""
        self._dropping = True
        self._room.set()

    async def close(self) -> None:
        """Drop the connection."""
        self._ended.cancel()
        self._writer.close()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await asyncio.gather(self._ended, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _take_frames(self) -> None:
        """Until the end of the connection. The engine going away looks like the end: what is asked of it next fails."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                kind, size = _FRAME.unpack(await self._take(_FRAME.size))
                while size:
                    data = await self._take(min(size, 1 << 16))
                    size -= len(data)
                    await self._keep(kind, data)

    async def _take(self, size: int) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head if len(head) == size else head + await self._reader.readexactly(size - len(head))

    async def _keep(self, kind: int, data: bytes) -> None:
        if kind == _STDERR:
            self._stderr += data
            if (over := len(self._stderr) - self._errors_kept) > 0:
                self.errors_dropped = True
                del self._stderr[self._errors_kept if self._first_errors else 0 : None if self._first_errors else over]
        elif kind == _STDOUT and not self._dropping:
            self._stdout += data
            self._changed.set()
            if len(self._stdout) >= _HELD:
                self._room.clear()
                await self._room.wait()
