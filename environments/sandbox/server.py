"""The sandbox server of a node: holds the boxes that many rollout workers share.

Started by the first client (`client.py`) as a process of its own, it listens on a unix socket in a folder that only its user can
enter, serves that user alone, and ends a moment after its last client has gone. Each connection is one thing: a lease (a client that
is there), one execution, or one session; a connection that ends early kills its box.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

from configs.schema import SandboxConfig
from environments.sandbox.base import Limits, Sandbox, SandboxError, SandboxUnavailable, SessionEnded
from environments.sandbox.build import build_sandbox
from environments.sandbox.wire import (
    Message,
    error_message,
    execution_message,
    guards_message,
    receive,
    send,
)

_LINGER_SECONDS = 3.0
"""How long a server without clients waits for the next one."""
_GONE = (EOFError, ConnectionError)


class PoolServer:
    """Serves one sandbox on one socket."""

    def __init__(self, *, sandbox: Sandbox, kind: str) -> None:
        self._sandbox, self._kind = sandbox, kind
        self._leases = 0
        self._idle = asyncio.Event()
        self._used = asyncio.Event()
        self._handlers: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Until no client has been there for a moment."""
        server = await asyncio.start_unix_server(self._handle, sock=listener)
        async with server:
            while True:
                self._used.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._used.wait(), timeout=_LINGER_SECONDS)
                if self._leases:
                    self._idle.clear()
                    await self._idle.wait()
                elif not self._used.is_set():
                    return

    async def close(self) -> None:
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._sandbox.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            if _peer_uid(writer) != os.geteuid():
                return
            await self._answer(await receive(reader), reader, writer)
        except (*_GONE, asyncio.CancelledError):
            pass
        except Exception as error:  # a fault of the server is the client's to hear
            with contextlib.suppress(*_GONE):
                await send(writer, error_message(error))
        finally:
            self._handlers.discard(task)
            writer.close()

    async def _answer(self, message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if message.kind == "lease":
            await self._lease(reader, writer)
        elif message.kind == "guards":
            await send(writer, guards_message(await self._sandbox.guards()))
        elif message.kind == "run":
            await self._run(message, reader, writer)
        else:
            await self._session(message, reader, writer)

    async def _lease(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._leases += 1
        self._used.set()
        try:
            await send(writer, Message(kind="leased", values={"kind": self._kind, "pid": os.getpid()}))
            await reader.read(1)  # nothing comes but the end
        finally:
            self._leases -= 1
            if not self._leases:
                self._idle.set()

    async def _run(self, message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source, stdin, *contents = message.parts
        files = dict(zip(message.values["names"], contents, strict=True))
        work = asyncio.ensure_future(self._sandbox.run(source, stdin=stdin, files=files, limits=Limits(**message.values["limits"])))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return
            await send(writer, execution_message(work.result()))
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _session(self, message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source, *contents = message.parts
        files = dict(zip(message.values["names"], contents, strict=True))
        session = await self._sandbox.open(source, files=files, limits=Limits(**message.values["limits"]))
        try:
            await send(writer, Message(kind="opened", values={}))
            while (question := await receive(reader)).kind == "ask":
                try:
                    answer = await session.ask(question.parts[0], seconds=question.values["seconds"])
                    reply = Message(kind="answer", values={}, parts=(answer,))
                except (SessionEnded, SandboxError, ValueError) as error:
                    reply = error_message(error)
                await send(writer, reply)
            await send(writer, execution_message(await session.close()))
        finally:
            with contextlib.suppress(SandboxError):
                await session.close()


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def main(folder: Path, key: str, config: SandboxConfig) -> None:
    """The whole life of a server. One line on stdout says that it listens, or why it does not."""
    if os.fork():  # the client that starts a server is not its parent for long
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_live(folder, key, config))


async def _live(folder: Path, key: str, config: SandboxConfig) -> None:
    try:
        sandbox, kind = await build_sandbox(config)
    except (SandboxError, ValueError, OSError) as error:
        _report(error_message(error if isinstance(error, ValueError) else SandboxUnavailable(str(error))))
        return
    listener = socket.socket(socket.AF_UNIX)
    path, own = folder / f"{key}.socket", folder / f"{key}.{os.getpid()}"
    listener.bind(str(own))
    listener.listen(4096)
    own.rename(path)
    pool = PoolServer(sandbox=sandbox, kind=kind)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)  # type: ignore[union-attr]  # inside a task
    inode = path.stat().st_ino
    _report(Message(kind="ready", values={}))
    try:
        await pool.serve(listener)
    finally:
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # no client looks for a server, and no other server comes, meanwhile
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()
        await pool.close()


def _report(message: Message) -> None:
    """To the client that started this process; then it has no more outputs."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps({"kind": message.kind, "values": message.values}).encode() + b"\n")
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    arguments["config"]["preload"] = tuple(arguments["config"]["preload"])
    main(Path(arguments["folder"]), arguments["key"], SandboxConfig(**arguments["config"]))
