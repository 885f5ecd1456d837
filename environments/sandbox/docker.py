"""Docker: one hardened container an execution; for hosts that give out a Docker engine and nothing else. Owner of the docker library.

A container has no network, a read-only root, no capabilities, no-new-privileges, uid 1000, this project's system-call filter, limits
on memory, processes and processor, no shared memory, and tmpfs at /tmp and /work. Starting one takes a few tenths of a second:
the fork-server is some thirty times faster. `files` and the program enter by stdin, ahead of the program's own input.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import docker
from docker.errors import DockerException, ImageNotFound

from environments.sandbox.base import Execution, Guard, Limits, SandboxError, SandboxUnavailable
from environments.sandbox.box import Box, Ended, Pipes
from environments.sandbox.host import ENVIRONMENT, check_files, pack_program
from environments.sandbox.seccomp import docker_profile

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
_HELP = "install Docker (Debian: apt-get install docker.io), start its engine and let this user reach it (group docker, or DOCKER_HOST)"
_INODES = 4096
_FRAME = struct.Struct(">BxxxI")


class DockerSandbox:
    """Runs programs, at most `slots` at a time. One instance serves one event loop."""

    def __init__(self, *, image: str, slots: int = 0) -> None:
        """`image` must be on the engine and hold `python3`. Raises SandboxUnavailable when there is no engine or no such image."""
        try:
            self._client = docker.from_env()
            self._client.images.get(image)
        except ImageNotFound as error:
            raise SandboxUnavailable(f"sandbox.image is {image!r}, which this Docker engine does not have: docker pull {image}") from error
        except DockerException as error:
            raise SandboxUnavailable(f"no Docker engine answers ({error}): {_HELP}") from error
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
        launch = asyncio.ensure_future(asyncio.to_thread(self._start, limits))
        try:
            container, stream = await asyncio.shield(launch)
        except asyncio.CancelledError:
            container, stream = await launch
            stream.close()
            await asyncio.to_thread(_remove, container)
            raise
        except DockerException as error:
            raise SandboxError(f"a container could not be started: {error}") from error
        pipes = Pipes()
        ended = asyncio.ensure_future(_carry(container, stream, pipes, pack_program(source, files)))
        kill = _Killer(container)
        session = DockerSession(Box(pipes=pipes, limits=limits, started=started, kill=kill, ended=ended))
        self._sessions.add(session)
        ended.add_done_callback(lambda _: self._sessions.discard(session))
        return session

    async def guards(self) -> tuple[Guard, ...]:
        """See Sandbox.guards. Raises SandboxUnavailable when a first program does not run."""
        try:
            execution = await self.run(b"print(6 * 7)", limits=Limits(wall_seconds=60.0))
        except SandboxError as error:
            raise SandboxUnavailable(f"{error}: {_HELP}") from error
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
        self._client.close()

    def _start(self, limits: Limits) -> "tuple[Any, socket.socket]":
        """Create a container, attach to it and start it; blocking."""
        disk = limits.disk_mb << 20
        tmpfs = f"size={disk},nr_inodes={_INODES},mode=700,uid=1000,gid=1000,nosuid,nodev"
        memory = limits.memory_mb + 2 * limits.disk_mb << 20
        container = self._client.containers.create(
            self._image,
            entrypoint=["python3", "-I", "-c", _LOADER],
            stdin_open=True,
            user="1000:1000",
            working_dir="/work",
            hostname="box",
            environment=dict(ENVIRONMENT),
            network_mode="none",
            ipc_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", f"seccomp={json.dumps(docker_profile())}"],
            tmpfs={"/tmp": tmpfs, "/work": tmpfs},
            mem_limit=memory,
            memswap_limit=memory,
            pids_limit=limits.processes,
            nano_cpus=10**9,
            ulimits=[
                docker.types.Ulimit(name=name, soft=value, hard=value)
                for name, value in {
                    "cpu": limits.cpu_seconds,
                    "fsize": disk,
                    "data": limits.memory_mb << 20,
                    "nofile": 256,
                    "core": 0,
                }.items()
            ],
            log_config=docker.types.LogConfig(type="none"),
        )
        try:
            params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            stream: socket.socket = self._client.api.attach_socket(container.id, params=params)._sock
            stream.settimeout(None)
            container.start()
        except BaseException:
            _remove(container)
            raise
        return container, stream


class DockerSession:
    """One container."""

    def __init__(self, box: Box) -> None:
        self._box = box

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

    def __init__(self, container: Any) -> None:
        self._container, self._called = container, False

    def __call__(self) -> None:
        if not self._called:
            self._called = True
            asyncio.get_running_loop().run_in_executor(None, self._kill)

    def _kill(self) -> None:
        with contextlib.suppress(DockerException):  # it has ended by itself
            self._container.kill()


async def _carry(container: Any, stream: socket.socket, pipes: Pipes, head: bytes) -> Ended:
    """Move bytes between the pipes and the engine until the container has ended; then remove it."""
    stdin, stdout, stderr = pipes.program
    pipes.program = ()  # type: ignore[assignment]  # theirs from here on
    feeding = asyncio.ensure_future(asyncio.to_thread(_feed, stream, head, stdin))
    try:
        await asyncio.to_thread(_drain, stream, {1: stdout, 2: stderr})
        state = await asyncio.to_thread(_final_state, container)
    except (DockerException, OSError) as error:
        raise SandboxError(f"the Docker engine failed: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            stream.shutdown(socket.SHUT_RDWR)
        for fd in (stdout, stderr):
            os.close(fd)
        await asyncio.to_thread(_remove, container)
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


def _final_state(container: Any) -> dict[str, Any]:
    container.wait()
    container.reload()
    state: dict[str, Any] = container.attrs["State"]
    return state


def _remove(container: Any) -> None:
    with contextlib.suppress(DockerException):
        container.remove(force=True)
