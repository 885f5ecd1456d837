"""Docker: one hardened container an execution; for hosts that give out a Docker engine and nothing else.

A container is as `environments/containers/hardening.py` says, without any IP socket and shared memory, and with tmpfs at /tmp and
/work. Starting one takes a tenth of a second or two: the fork-server is some twenty times faster. `files` and the program enter by
stdin, ahead of the program's own input.
"""

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from environments.containers.base import AGENT_UID, ContainerError
from environments.containers.engine import Engine
from environments.containers.hardening import NO_NETWORK, host_config
from environments.containers.owner import disown, own
from environments.containers.reaper import OWNER_LABEL
from environments.containers.waiting import to_its_end
from environments.records import SandboxInfo
from environments.sandbox.base import Execution, Guard, Limits, SandboxError, SandboxUnavailable
from environments.sandbox.box import Box, Ended, Pipes
from environments.sandbox.host import ENVIRONMENT, check_files, pack_program

_LOADER = """
import json, os, struct, sys
def take(size):
    data = bytearray()
    while len(data) < size:
        data += os.read(0, size - len(data)) or sys.exit(125)
    return bytes(data)
names = json.loads(take(*struct.unpack("=I", take(4))))
for name, size in names:
    path = os.path.join("/work", name) if name else "/tmp/main.py"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(take(size))
    os.chmod(path, 0o444)
os.execv(sys.executable, [sys.executable, "-I", "-X", "utf8", "/tmp/main.py"])
"""
_INODES = 4096
_POLL_SECONDS = 0.01
_FRAME = struct.Struct(">BxxxI")


class DockerSandbox:
    """Runs programs, at most `slots` at a time. One instance serves one event loop."""

    def __init__(self, *, image: str, slots: int = 0) -> None:
        """`image` must be on the engine and hold `python3`. Raises SandboxUnavailable when there is no engine or no such image."""
        self._engine = Engine(connections=2 * (slots or os.cpu_count() or 1))
        try:
            self._image_digest = str(self._engine.image(image)["Id"])
            self._labels = {OWNER_LABEL: own(self._engine.address)}
        except BaseException:
            self._engine.close()
            raise
        self._image = image
        self._semaphore = asyncio.Semaphore(slots or os.cpu_count() or 1)
        self._sessions: set[DockerSession] = set()

    async def run(
        self, source: bytes, *, stdin: bytes = b"", files: Mapping[str, bytes] | None = None, limits: Limits | None = None
    ) -> Execution:
        """See Sandbox.run."""
        async with self._semaphore:
            session = await self.open(source, files=files, limits=limits)
            return await session.finish(stdin=stdin)

    async def open(self, source: bytes, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> "DockerSession":
        """See Sandbox.open. A session does not count against `slots`: it is idle most of its life."""
        files, limits = files or {}, limits or Limits()
        check_files(files, limits)
        if b"\0" in source:  # some interpreters would run what stands before it
            source = b"raise SyntaxError('source code cannot contain null bytes')"
        started = time.monotonic()
        container, stream = await to_its_end(asyncio.to_thread(self._start, limits), undo=self._undo)
        pipes = Pipes()
        ended = asyncio.ensure_future(_carry(self._engine, container, stream, pipes, pack_program(source, files)))
        kill = _Killer(self._engine, container)
        box = Box(pipes=pipes, limits=limits, started=started, kill=kill, ended=ended)
        session = DockerSession(box, info=SandboxInfo(image_digest=self._image_digest, refs=(container,)))
        self._sessions.add(session)
        ended.add_done_callback(lambda _: self._sessions.discard(session))
        return session

    async def guards(self) -> tuple[Guard, ...]:
        """See Sandbox.guards. Raises SandboxUnavailable when a first program does not run."""
        try:
            execution = await self.run(b"print(6 * 7)", limits=Limits(wall_seconds=60.0))
        except SandboxError as error:
            raise SandboxUnavailable(f"the Docker engine does not run a container: {error}") from error
        if execution.stdout != b"42\n":
            detail = execution.stderr.decode(errors="replace")[-300:]
            raise SandboxUnavailable(f"image {self._image!r} does not run `python3`: exit code {execution.exit_code} {detail}")
        found = {
            "container": f"image {self._image}, no network, read-only root",
            "own uid": "1000, no capabilities, no new privileges",
            "system-call filter": "as a Docker profile",
            "memory, processes and processor (cgroup)": "set by the engine",
            "tmpfs with size and inode limits": "/tmp and /work",
        }
        return tuple(Guard(name=name, state="on", found=text) for name, text in found.items())

    async def close(self) -> None:
        """See Sandbox.close."""
        for session in tuple(self._sessions):
            with contextlib.suppress(SandboxError):
                await session.close()
        self._engine.close()
        await asyncio.to_thread(disown, self._engine.address)

    def _start(self, limits: Limits) -> "tuple[str, socket.socket]":
        """Create a container, attach to it and start it; blocking."""
        container = self._engine.create(self._config(limits))
        try:
            stream = self._engine.attach(container)
            stream.setblocking(True)
            self._engine.start(container)
        except BaseException:
            _remove(self._engine, container)
            raise
        return container, stream

    def _config(self, limits: Limits) -> dict[str, Any]:
        """Body of the engine's create call."""
        disk = limits.disk_mb << 20
        tmpfs = f"size={disk},nr_inodes={_INODES},mode=700,uid={AGENT_UID},gid={AGENT_UID},nosuid,nodev,exec"
        resources = {"cpu": limits.cpu_seconds, "fsize": disk, "data": limits.memory_mb << 20, "nofile": 256, "core": 0}
        return {
            "Image": self._image,
            "Entrypoint": ["python3", "-I", "-c", _LOADER],
            "Cmd": [],
            "User": f"{AGENT_UID}:{AGENT_UID}",
            "WorkingDir": "/work",
            "Hostname": "box",
            **NO_NETWORK,
            "Env": [f"{name}={value}" for name, value in ENVIRONMENT.items()],
            "Labels": self._labels,
            "OpenStdin": True,
            "StdinOnce": True,
            "HostConfig": host_config(
                memory=limits.memory_mb + 2 * limits.disk_mb << 20,
                processes=limits.processes,
                cpus=1.0,
                tmpfs={"/tmp": tmpfs, "/work": tmpfs},
                ulimits=resources,
                runtime="",
                loopback=False,
            ),
        }

    async def _undo(self, started: "tuple[str, socket.socket]") -> None:
        container, stream = started
        stream.close()
        await asyncio.to_thread(_remove, self._engine, container)


class DockerSession:
    """One container."""

    def __init__(self, box: Box, *, info: SandboxInfo) -> None:
        self._box, self._info = box, info

    def sandbox_info(self) -> SandboxInfo:
        """See Sandboxed.sandbox_info."""
        return self._info

    async def finish(self, *, stdin: bytes) -> Execution:
        """Send all of stdin and wait for the end."""
        return await self._box.finish(stdin=stdin)

    async def ask(self, line: bytes, *, seconds: float) -> bytes:
        """See Session.ask."""
        return await self._box.ask(line, seconds=seconds)

    async def close(self) -> Execution:
        """See Session.close."""
        return await self._box.close()


class _Killer:
    """Kills a container once, without holding up the event loop."""

    def __init__(self, engine: Engine, container: str) -> None:
        self._engine, self._container, self._called = engine, container, False

    def __call__(self) -> None:
        if not self._called:
            self._called = True
            asyncio.get_running_loop().run_in_executor(None, self._kill)

    def _kill(self) -> None:
        with contextlib.suppress(ContainerError):  # whoever waits for the end of it is told
            self._engine.kill(self._container)


async def _carry(engine: Engine, container: str, stream: socket.socket, pipes: Pipes, head: bytes) -> Ended:
    """Move bytes between the pipes and the engine until the container has ended; then remove it."""
    stdin, stdout, stderr = pipes.program
    pipes.program = ()  # type: ignore[assignment]  # theirs from here on
    feeding = asyncio.ensure_future(asyncio.to_thread(_feed, stream, head, stdin))
    try:
        await asyncio.to_thread(_drain, stream, {1: stdout, 2: stderr})
        state = await asyncio.to_thread(_final_state, engine, container)
    except OSError as error:
        raise SandboxError(f"the Docker engine failed: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            stream.shutdown(socket.SHUT_RDWR)
        for fd in (stdout, stderr):
            os.close(fd)
        await asyncio.to_thread(_remove, engine, container)
    feeding.add_done_callback(lambda _: stream.close())
    code = state["ExitCode"]
    killed = code == 137
    return Ended(exit_code=code, killed_by="memory" if killed and state["OOMKilled"] else "kernel" if killed else None)


def _feed(stream: socket.socket, head: bytes, stdin: int) -> None:
    """The program, then its input; ends when our end of the pipe is closed."""
    with contextlib.suppress(OSError):  # the program is gone
        stream.sendall(head)
        while chunk := os.read(stdin, 1 << 16):
            stream.sendall(chunk)
        stream.shutdown(socket.SHUT_WR)
    os.close(stdin)


def _drain(stream: socket.socket, outputs: Mapping[int, int]) -> None:
    """Take the engine's frames apart; a full pipe holds the container up."""
    with stream.makefile("rb") as frames:
        while head := frames.read(_FRAME.size):
            kind, size = _FRAME.unpack(head)
            data = frames.read(size)
            while data:
                data = data[os.write(outputs[kind], data) :]


def _final_state(engine: Engine, container: str) -> dict[str, Any]:
    """Its outputs end a moment before it does, or before it is killed when it closed them itself."""
    while (state := engine.state(container))["Running"]:
        time.sleep(_POLL_SECONDS)
    return state


def _remove(engine: Engine, container: str) -> None:
    with contextlib.suppress(ContainerError):  # the engine is gone; the watcher of this process, or the next owner, removes it
        engine.remove(container)
