"""One zygote seen from outside: starts the jail (`jail.py`), gives it programs, watches its boxes.

A zygote runs one box at a time. When it dies, at whatever moment, its boxes die with it (they live in its pid namespace), the box in
work ends with `ZygoteLost`, and the zygote is not used again.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.sandbox.base import Limits, SandboxError, SandboxUnavailable
from environments.sandbox.box import Box, Ended, Pipes
from environments.sandbox.cgroups import Controllers, Group
from environments.sandbox.host import DEVICES, ENVIRONMENT, Interpreter, Mount, box_uid, pack_program, system_mounts
from environments.sandbox.jail import OVERHEAD_PROCESSES
from environments.sandbox.seccomp import seccomp_filter

_JAIL = Path(__file__).with_name("jail.py")
_BOOT_SECONDS = 60.0
_START_SECONDS = 30.0
_CLOSE_SECONDS = 5.0
_SLACK_MB = 16
"""Page tables and pipes, on top of the program's memory and its two tmpfs: a program alone meets its own limit first."""
_MESSAGE_BYTES = 4096


class ZygoteLost(SandboxError):
    """The zygote died; another one can run the program again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JailPlan:
    """What all zygotes of a process have in common."""

    interpreter: Path
    mounts: tuple[Mount, ...]
    seccomp: bytes
    preload: tuple[str, ...]
    controllers: Controllers

    @staticmethod
    def make(*, preload: tuple[str, ...], packages: tuple[Path, ...]) -> "JailPlan":
        """Raises SandboxUnavailable."""
        interpreter = Interpreter.locate()
        return JailPlan(
            interpreter=interpreter.executable,
            mounts=(*system_mounts(), *interpreter.mounts(packages)),
            seccomp=seccomp_filter(),
            preload=preload,
            controllers=Controllers.find(),
        )


class Zygote:
    """Made by `start`."""

    def __init__(self, *, process: "subprocess.Popen[bytes]", sock: socket.socket, group: Group | None) -> None:
        self._process, self._sock, self._group = process, sock, group
        self._base_address_space = 0
        self._waiting: asyncio.Future[tuple[dict[str, Any], list[int]]] | None = None
        self.dead = False
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._receive)

    @staticmethod
    async def start(plan: JailPlan, *, number: int) -> "Zygote":
        """Boot a jail for box `number` of this process. Raises SandboxUnavailable when this machine does not let it."""
        uid = box_uid(number) if os.geteuid() == 0 else None
        group = None
        if plan.controllers.version is not None:
            try:
                group = plan.controllers.group(f"box-{number}")
            except OSError as error:
                raise SandboxUnavailable(f"no control group can be made although one could before: {error}") from error
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            process = subprocess.Popen(
                [str(plan.interpreter), "-I", "-S", "-X", "utf8", str(_JAIL)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        zygote = Zygote(process=process, sock=ours, group=group)
        try:
            await zygote._boot(plan, uid=uid)
        except BaseException:
            await zygote.close()
            raise
        return zygote

    async def _boot(self, plan: JailPlan, *, uid: int | None) -> None:
        config = {
            "uid": uid,
            "mounts": [[mount.kind, mount.source, mount.target] for mount in plan.mounts],
            "devices": list(DEVICES),
            "environment": ENVIRONMENT,
            "seccomp": plan.seccomp.hex(),
            "preload": list(plan.preload),
        }
        try:
            if self._group is not None:
                self._group.join(self._process.pid)
            self._sock.send(json.dumps(config).encode())
            await self._expect("unshared", seconds=_BOOT_SECONDS)
            self._map_ids(uid)
            self._sock.send(b"mapped")
            _, (pidfd,) = await self._expect("ready", seconds=_BOOT_SECONDS)
            try:
                pages = int(Path(f"/proc/{_pid_of(pidfd)}/statm").read_text().split()[0])
            finally:
                os.close(pidfd)
            self._base_address_space = pages * os.sysconf("SC_PAGE_SIZE")
            if self._group is not None:
                self._group.measure_base()
        except (SandboxError, OSError) as error:
            raise SandboxUnavailable(
                f"the sandbox's jail does not start: {error}. It needs a kernel (5.14 or newer) that allows user namespaces "
                "(sysctl user.max_user_namespaces > 0; in a container: a seccomp profile that allows unshare and mount) and /proc; "
                "sandbox.kind: docker works without"
            ) from error

    async def launch(self, program: "Program", *, limits: Limits) -> Box:
        """Start a box. Raises ZygoteLost, SandboxError, OSError; then the zygote is dead."""
        started = time.monotonic()
        pipes = Pipes()
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened: list[int] = []
        try:
            if self._group is not None:
                self._group.limit(
                    memory_bytes=(limits.memory_mb + 2 * limits.disk_mb + _SLACK_MB) << 20, processes=limits.processes + OVERHEAD_PROCESSES
                )
            request = {"disk_bytes": limits.disk_mb << 20, "rlimits": self._rlimits(limits)}
            with theirs:
                socket.send_fds(self._sock, [json.dumps(request).encode()], [*pipes.program, program.fd, theirs.fileno()])
            pipes.close_program_ends()
            _, (pidfd,) = await self._expect("started", seconds=_START_SECONDS)
            opened.append(pidfd)
            # The kernel, short of memory, takes the box's processes before it takes the zygote.
            Path(f"/proc/{_pid_of(pidfd)}/oom_score_adj").write_text("1000")
            control.send(b"g")
        except BaseException as error:
            pipes.close()
            control.close()
            for fd in opened:
                os.close(fd)
            await self.close()
            if isinstance(error, OSError):
                raise ZygoteLost(f"a box could not be started: {error}") from error
            raise
        ended = asyncio.ensure_future(self._end(pidfd, control=control, limits=limits))
        return Box(pipes=pipes, limits=limits, started=started, kill=lambda: _kill(pidfd), ended=ended)

    async def close(self) -> None:
        """Kill the jail and all in it, and take its traces away."""
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._lose()
        self._sock.close()
        await asyncio.to_thread(self._reap)
        if self._group is not None:
            await asyncio.to_thread(self._group.remove)

    def _reap(self) -> None:
        """The end of its socket ends the zygote, and with it the launcher that waits for it."""
        try:
            self._process.wait(timeout=_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _map_ids(self, uid: int | None) -> None:
        """One uid and one gid exist in the jail; setgroups is denied to an ordinary user's namespaces."""
        folder = Path(f"/proc/{self._process.pid}")
        if uid is None:
            (folder / "setgroups").write_text("deny")
        (folder / "uid_map").write_text(f"1000 {os.geteuid() if uid is None else uid} 1")
        (folder / "gid_map").write_text(f"1000 {os.getegid() if uid is None else uid} 1")

    def _rlimits(self, limits: Limits) -> dict[str, tuple[int, int]]:
        memory, disk = self._base_address_space + (limits.memory_mb << 20), limits.disk_mb << 20
        processes = limits.processes + OVERHEAD_PROCESSES
        stack = 8 << 20
        return {
            "RLIMIT_CPU": (limits.cpu_seconds, limits.cpu_seconds + 1),
            "RLIMIT_AS": (memory, memory),
            "RLIMIT_FSIZE": (disk, disk),
            "RLIMIT_NOFILE": (256, 256),
            "RLIMIT_CORE": (0, 0),
            "RLIMIT_STACK": (stack, stack),
            "RLIMIT_MEMLOCK": (1 << 16, 1 << 16),
            "RLIMIT_MSGQUEUE": (0, 0),
            "RLIMIT_NPROC": (processes, processes),
        }

    async def _end(self, pidfd: int, *, control: socket.socket, limits: Limits) -> Ended:
        """Wait until the box is gone."""
        try:
            message, _ = await self._expect("ended", seconds=None)
        finally:
            os.close(pidfd)
            with control:
                failure = b"" if self.dead else _pending(control)
        if failure:
            raise SandboxError(f"a box could not be prepared: {failure.decode(errors='replace')}")
        code = message["code"] if message["code"] >= 0 else 128 - message["code"]
        by_memory = self._group is not None and self._group.killed_by_memory()
        killed = code == 128 + signal.SIGKILL
        spent = code == 128 + signal.SIGXCPU or (killed and message["cpu"] >= limits.cpu_seconds)
        return Ended(
            exit_code=code,
            cpu_seconds=message["cpu"],
            peak_memory_mb=message["peak_kb"] / 1024,
            killed_by="memory" if killed and by_memory else "cpu" if spent else "kernel" if killed else None,
        )

    async def _expect(self, state: str, *, seconds: float | None) -> tuple[dict[str, Any], list[int]]:
        """The next message, which must be `state`."""
        if self.dead:
            raise ZygoteLost("the zygote is dead")
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                message, fds = await self._waiting
        except TimeoutError:
            raise ZygoteLost(f"the zygote did not say {state!r} within {seconds} s") from None
        finally:
            self._waiting = None
        if message["state"] != state:
            raise SandboxError(str(message.get("error", message)))
        return message, fds

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _MESSAGE_BYTES, 4)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._lose()
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((json.loads(data), fds))

    def _lose(self) -> None:
        self.dead = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ZygoteLost("the zygote died"))


class Program:
    """A program and its files in a memory file, which crosses into the box unread."""

    def __init__(self, source: bytes, files: Mapping[str, bytes]) -> None:
        self.fd = os.memfd_create("program", os.MFD_CLOEXEC)
        with open(self.fd, "wb", closefd=False) as file:
            file.write(pack_program(source, files))

    def close(self) -> None:
        os.close(self.fd)


def _pid_of(pidfd: int) -> int:
    """The pid, in this process's namespace, that a descriptor stands for."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise SandboxError("the kernel does not say which process a pidfd stands for")


def _kill(pidfd: int) -> None:
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _pending(control: socket.socket) -> bytes:
    control.setblocking(False)
    try:
        return control.recv(1024)
    except OSError:
        return b""
