"""A process's way to the node's sandbox server: starts it when there is none, tries again when it dies."""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, TypeVar

from configs.schema import SandboxConfig
from environments.sandbox.base import Execution, Guard, Limits, SandboxError, SandboxUnavailable, SessionEnded
from environments.sandbox.build import pool_key
from environments.sandbox.wire import Message, raise_error, read_execution, read_guards, receive, send

_ATTEMPTS = 3
_ROOT = Path(__file__).parents[2]
_GONE = (EOFError, ConnectionError, FileNotFoundError)
T = TypeVar("T")


class PoolClient:
    """A Sandbox that a server runs. One instance serves one event loop."""

    in_flight: ClassVar[int] = 0
    """Programs of this process that run in the sandbox, or wait for it."""

    def __init__(self, config: SandboxConfig, *, slots: int = 0) -> None:
        """`slots`: executions that this client has running at once; 0: as many as the server lets it."""
        if slots < 0:
            raise ValueError(f"slots is {slots}; it must be >= 0")
        self._config = config
        self._folder = _private_folder()
        self._key = pool_key(config)
        self._path = str(self._folder / f"{self._key}.socket")
        self._running = asyncio.Semaphore(slots) if slots else None
        self._lock = asyncio.Lock()
        self._lease: asyncio.StreamWriter | None = None
        self._lease_reader: asyncio.StreamReader | None = None
        self.kind = ""
        """What the server runs, once a program has run."""
        self.server_pid = 0
        """The server's process, once a program has run."""

    async def run(
        self, source: bytes, *, stdin: bytes = b"", files: Mapping[str, bytes] | None = None, limits: Limits | None = None
    ) -> Execution:
        """See Sandbox.run. A server that dies is replaced, and the program runs again."""
        files = files or {}
        values = {"names": list(files), "limits": asdict(limits or Limits())}
        message = Message(kind="run", values=values, parts=(source, stdin, *files.values()))
        PoolClient.in_flight += 1
        try:
            async with self._running or contextlib.nullcontext():
                return read_execution(await self._again(lambda: self._ask_once(message)))
        finally:
            PoolClient.in_flight -= 1

    async def open(self, source: bytes, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> "PoolSession":
        """See Sandbox.open."""
        files = files or {}
        values = {"names": list(files), "limits": asdict(limits or Limits())}
        message = Message(kind="open", values=values, parts=(source, *files.values()))

        async def open_once() -> PoolSession:
            reader, writer = await self._connect()
            try:
                await send(writer, message)
                raise_error(await receive(reader))
            except BaseException:
                writer.close()
                raise
            return PoolSession(reader, writer)

        return await self._again(open_once)

    async def guards(self) -> tuple[Guard, ...]:
        """See Sandbox.guards; the pool itself is the first."""
        guards = read_guards(await self._again(lambda: self._ask_once(Message(kind="guards", values={}))))
        return (Guard(name="kind", state="on", found=self.kind), *guards)

    async def close(self) -> None:
        """End the lease; the server goes when no other client is left. Open sessions are their owners' to close."""
        self._drop_lease()

    def _drop_lease(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.close()

    async def _again(self, act: Callable[[], Awaitable[T]]) -> T:
        """`act`, once more with a new server when the server dies over it."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await act()
            except _GONE as error:
                self._drop_lease()  # its own end may not have been noticed yet
                if attempt == _ATTEMPTS:
                    raise SandboxError(f"{_ATTEMPTS} sandbox servers died over this: {type(error).__name__}: {error}") from error
        raise AssertionError("unreachable")

    async def _ask_once(self, message: Message) -> Message:
        reader, writer = await self._connect()
        try:
            await send(writer, message)
            reply = await receive(reader)
        finally:
            writer.close()
        raise_error(reply)
        return reply

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with self._lock:
            if self._lease is None or self._lease_reader is None or self._lease_reader.at_eof():
                self._drop_lease()
                await asyncio.to_thread(self.ensure_server)
                self._lease_reader, self._lease = await asyncio.open_unix_connection(self._path)
                await send(self._lease, Message(kind="lease", values={}))
                leased = await receive(self._lease_reader)
                self.server_pid, self.kind = leased.values["pid"], leased.values["kind"]
        return await asyncio.open_unix_connection(self._path)

    def ensure_server(self) -> None:
        """Start a server unless one listens. Raises SandboxUnavailable, ValueError."""
        with (self._folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                probe.connect(self._path)
                return
            arguments = {"folder": str(self._folder), "key": self._key, "config": asdict(self._config)}
            run = "runpy.run_module('environments.sandbox.server', run_name='__main__')"
            code = f"import sys, runpy; sys.path.insert(0, {str(_ROOT)!r}); {run}"
            with tempfile.TemporaryFile() as complaints:
                starter = subprocess.Popen(
                    [sys.executable, "-c", code, json.dumps(arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=complaints,
                    env={"PATH": os.environ.get("PATH", os.defpath)},
                    cwd="/",
                )
                assert starter.stdout is not None
                line = starter.stdout.readline()
                starter.stdout.close()
                starter.wait()
                if not line:
                    complaints.seek(0)
                    detail = complaints.read().decode(errors="replace").strip()[-500:]
                    raise SandboxUnavailable(f"the sandbox server does not start: {detail or 'it says nothing'}")
            report = json.loads(line)
            raise_error(Message(kind=report["kind"], values=report["values"]))


class PoolSession:
    """A session that the server holds; the end of the connection is its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._execution: Execution | None = None

    async def ask(self, line: bytes, *, seconds: float) -> bytes:
        """See Session.ask. A server that died is a SandboxError: what the session knew is lost."""
        if self._execution is not None:
            raise SessionEnded("the session is closed")
        reply = await self._exchange(Message(kind="ask", values={"seconds": seconds}, parts=(line,)))
        return reply.parts[0]

    async def close(self) -> Execution:
        """See Session.close."""
        if self._execution is None:
            try:
                self._execution = read_execution(await self._exchange(Message(kind="close", values={})))
            finally:
                self._writer.close()
        return self._execution

    async def _exchange(self, message: Message) -> Message:
        try:
            await send(self._writer, message)
            reply = await receive(self._reader)
        except _GONE as error:
            raise SandboxError(f"the sandbox server died, and its sessions with it: {type(error).__name__}") from error
        except asyncio.CancelledError:
            self._writer.close()  # an answer that comes too late must not be taken for the next one
            raise
        raise_error(reply)
        return reply


def _private_folder() -> Path:
    """A folder that only this user can enter, for the sockets of servers. Raises SandboxUnavailable."""
    folder = Path(tempfile.gettempdir()) / f"codeworld-rl-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SandboxUnavailable(f"no folder for the sandbox server's socket: {error}: set TMPDIR to a writable folder") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SandboxUnavailable(f"{folder} is not a folder of this user alone (mode 0700): remove it, or set TMPDIR to another folder")
    if len(str(folder)) > 60:
        raise SandboxUnavailable(f"{folder} is too long a path for a socket: set TMPDIR to a shorter one")
    return folder
