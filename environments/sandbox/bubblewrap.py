"""Bubblewrap: runs one hostile program in a box of its own and says what happened.

A box has its own user, mount, pid, network, ipc, uts and (where there is one) cgroup namespace; an empty environment; the
interpreter and system libraries read-only; small tmpfs at /tmp and /work; no /proc, no network, no home, no checkout.
Resource limits are set inside the box, the wall clock and the output cap outside. The program is pid 1 of its namespace:
when it ends or is killed, the kernel ends everything that it started.

Bubblewrap never starts as root, because its child would keep host uid 0: as root every run first drops to a uid of its own,
taken from a range that belongs to this process. As an ordinary user it starts directly.

What this does not do: no seccomp filter (the kernel's whole system-call surface is reachable, inside a user namespace without
capabilities that cannot make further ones), no memory limit over the sum of a box's processes (the limit is per process).
"""

import asyncio
import contextlib
import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from environments.sandbox.base import Execution, KilledBy, Limits, SandboxError, SandboxUnavailable
from environments.sandbox.host import (
    HELP,
    STAGING_DIR,
    Interpreter,
    Staging,
    find_tool,
    others_reach,
    system_mounts,
)

_UID_BASE = 0x7000_0000
"""First uid of the boxes: above the ranges of packages, users, subordinate ids and containers. Process p owns the 64 uids from
base + 64 p on; the largest pid (2**22 - 1) ends exactly below 2**31."""
_SLOTS_PER_PROCESS = 64
_free_slots: deque[int] = deque(range(_SLOTS_PER_PROCESS))
_KILL_GRACE_SECONDS = 2.0
"""How long bubblewrap may take to notice that its child was killed before it is killed too."""
_PROBE_WALL_SECONDS = 60.0


class Bubblewrap:
    """Runs programs, at most `slots` at a time. One instance serves one event loop."""

    def __init__(self, *, slots: int = 0) -> None:
        """`slots`: boxes at once; 0 means one a processor.

        Raises SandboxUnavailable at once when a tool is missing, and from `check` or the first `run` when it does not work.
        """
        slots = slots or min(os.cpu_count() or 1, _SLOTS_PER_PROCESS)
        if not 1 <= slots <= _SLOTS_PER_PROCESS:
            raise ValueError(f"slots is {slots}; it must be from 1 to {_SLOTS_PER_PROCESS}")
        self._semaphore = asyncio.Semaphore(slots)
        self._lock = asyncio.Lock()
        self._checked = False
        self._is_root = os.geteuid() == 0
        self._bwrap, self._prlimit = find_tool("bwrap"), find_tool("prlimit")
        self._interpreter = Interpreter.locate()
        self._staging = Staging.make(self._interpreter.prefix) if self._is_root and not others_reach(self._interpreter.executable) else None
        self._setpriv = find_tool("setpriv") if self._is_root else ""

    @property
    def python(self) -> tuple[str, ...]:
        """Command that starts the interpreter inside a box: isolated, standard library only."""
        return (str(self._interpreter.executable), "-I", "-S", "-X", "utf8")

    async def check(self) -> None:
        """Run a trivial program once. Raises SandboxUnavailable when that does not work."""
        async with self._lock:
            if self._checked:
                return
            try:
                execution = await self._run(
                    (*self.python, "-c", "print(6 * 7)"), stdin=b"", files={}, limits=Limits(wall_seconds=_PROBE_WALL_SECONDS)
                )
            except (SandboxError, OSError) as error:
                raise SandboxUnavailable(f"{HELP}; a first run failed: {error}") from error
            if execution.stdout != b"42\n":
                detail = execution.stderr.decode(errors="replace").strip() or f"exit code {execution.exit_code}"
                raise SandboxUnavailable(f"{HELP}; a first run gave no output: {detail}")
            self._checked = True

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", files: Mapping[str, bytes] | None = None, limits: Limits | None = None
    ) -> Execution:
        """Run `argv` in a fresh box whose working directory /work holds `files` (relative path: content, read-only).

        Whatever the program does is an Execution; SandboxError means that the sandbox itself failed.
        """
        await self.check()
        return await self._run(argv, stdin=stdin, files=files or {}, limits=limits or Limits())

    def close(self) -> None:
        """Release the private mount namespace, if there is one."""
        if self._staging is not None:
            self._staging.close()

    async def _run(self, argv: Sequence[str], *, stdin: bytes, files: Mapping[str, bytes], limits: Limits) -> Execution:
        async with self._semaphore:
            with contextlib.ExitStack() as stack:
                uid = stack.enter_context(_slot_uid()) if self._is_root else None
                status_read, status_write = os.pipe()
                stack.callback(os.close, status_read)
                os.set_blocking(status_read, False)
                with contextlib.ExitStack() as passed:
                    passed.callback(os.close, status_write)
                    file_fds = {_box_path(name): _memory_file(content, stack=passed) for name, content in files.items()}
                    command = self._command(argv, uid=uid, status_fd=status_write, file_fds=file_fds, limits=limits)
                    started = time.monotonic()
                    launch = asyncio.ensure_future(
                        asyncio.create_subprocess_exec(
                            *command,
                            stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            pass_fds=(status_write, *file_fds.values()),
                            env={},
                            cwd="/",
                            start_new_session=True,
                        )
                    )
                    try:
                        process = await asyncio.shield(launch)
                    except asyncio.CancelledError:  # asyncio's own cleanup would kill bubblewrap before it can reap the box
                        await _RunningBox(process=await launch, status_fd=status_read, output_bytes=limits.output_bytes).abort()
                        raise
                box = _RunningBox(process=process, status_fd=status_read, output_bytes=limits.output_bytes)
                return await box.finish(stdin=stdin, wall_seconds=limits.wall_seconds, started=started)

    def _command(
        self, argv: Sequence[str], *, uid: int | None, status_fd: int, file_fds: Mapping[str, int], limits: Limits
    ) -> tuple[str, ...]:
        """The whole launch: [enter the staging namespace,] [drop to the slot's uid,] bubblewrap, resource limits, program."""
        drop = (
            ()
            if uid is None
            else (self._setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", "--no-new-privs", "--")
        )
        enter = () if self._staging is None else self._staging.enter
        source = self._interpreter.prefix if self._staging is None else Path(STAGING_DIR)
        disk = str(limits.disk_mb << 20)
        limit_flags = (
            f"--nproc={limits.processes}",
            f"--cpu={limits.cpu_seconds}",
            f"--as={limits.memory_mb << 20}",
            f"--fsize={disk}",
            "--nofile=256",
            "--core=0",
        )
        return (
            *enter,
            *drop,
            self._bwrap,
            *("--unshare-user", "--uid", "1000", "--gid", "1000", "--disable-userns", "--cap-drop", "ALL"),
            *("--unshare-pid", "--as-pid-1", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
            *("--hostname", "box", "--die-with-parent", "--new-session", "--json-status-fd", str(status_fd)),
            *system_mounts(),
            *self._interpreter.mounts(source=source),
            *("--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/urandom", "/dev/urandom"),
            *("--size", disk, "--tmpfs", "/tmp", "--size", disk, "--tmpfs", "/work"),
            *(word for path, fd in file_fds.items() for word in ("--perms", "0444", "--file", str(fd), path)),
            *("--remount-ro", "/", "--chdir", "/work", "--"),
            *(self._prlimit, *limit_flags, "--"),
            *argv,
        )


class _RunningBox:
    """One launched sandbox: feeds and drains its pipes, kills it at a limit, reads its verdict."""

    def __init__(self, *, process: asyncio.subprocess.Process, status_fd: int, output_bytes: int) -> None:
        self._process = process
        self._status_fd = status_fd
        self._status_text = b""
        self._output_left = output_bytes
        self._killed_by: KilledBy | None = None

    async def finish(self, *, stdin: bytes, wall_seconds: float, started: float) -> Execution:
        """Wait for the end of the program, at most `wall_seconds`. Cancellation kills the box before it propagates."""
        assert self._process.stdout is not None and self._process.stderr is not None
        loop = asyncio.get_running_loop()
        alarm = loop.call_at(loop.time() + wall_seconds - (time.monotonic() - started), self._stop, "wall")
        try:
            _, stdout, stderr, launcher_code = await asyncio.gather(
                self._feed(stdin), self._drain(self._process.stdout), self._drain(self._process.stderr), self._process.wait()
            )
        except BaseException:
            await self.abort()
            raise
        finally:
            alarm.cancel()
        exit_code = self._status().get("exit-code")
        if self._killed_by is None and exit_code is None:
            detail = stderr.decode(errors="replace").strip()[-500:]
            raise SandboxError(f"bubblewrap ended with code {launcher_code} without running the program: {detail or 'no message'}")
        return Execution(
            stdout=stdout,
            stderr=stderr,
            exit_code=137 if exit_code is None else exit_code,
            wall_seconds=time.monotonic() - started,
            cpu_seconds=None,
            peak_memory_mb=None,
            killed_by=self._killed_by or ("kernel" if exit_code == 137 else None),
        )

    async def abort(self) -> None:
        """Kill the box and wait until it is gone."""
        self._kill()
        await self._process.wait()

    async def _feed(self, stdin: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a program may end without reading
            self._process.stdin.write(stdin)
            await self._process.stdin.drain()
        self._process.stdin.close()

    async def _drain(self, stream: asyncio.StreamReader) -> bytes:
        kept = bytearray()
        while chunk := await stream.read(1 << 16):
            kept += chunk[: self._output_left]
            if len(chunk) > self._output_left:
                self._stop("output")
            self._output_left = max(0, self._output_left - len(chunk))
        return bytes(kept)

    def _stop(self, reason: KilledBy) -> None:
        if self._killed_by is None:
            self._killed_by = reason
            self._kill()

    def _kill(self) -> None:
        """Kill the box's pid 1, and with it the box; bubblewrap then reaps it and ends, which leaves no zombie."""
        asyncio.get_running_loop().call_later(_KILL_GRACE_SECONDS, self._kill_launcher)
        self._kill_child()

    def _kill_child(self) -> None:
        if self._process.returncode is not None:
            return
        child = self._status().get("child-pid")
        if child is None:  # still being set up
            asyncio.get_running_loop().call_later(0.01, self._kill_child)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)

    def _kill_launcher(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                self._process.kill()

    def _status(self) -> dict[str, int]:
        """What bubblewrap has reported so far: `child-pid` once the box exists, `exit-code` once the program ended."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._status_fd, 4096):
                self._status_text += chunk
        merged: dict[str, int] = {}
        for line in self._status_text.split(b"\n")[:-1]:  # whole lines only
            merged.update(json.loads(line))
        return merged


@contextlib.contextmanager
def _slot_uid() -> Iterator[int]:
    """A uid that no other box of any process uses meanwhile: process limits count by uid."""
    if not _free_slots:
        raise SandboxError(f"more than {_SLOTS_PER_PROCESS} boxes at once in one process: lower the sandboxes' slots")
    slot = _free_slots.popleft()
    try:
        yield _UID_BASE + os.getpid() * _SLOTS_PER_PROCESS + slot
    finally:
        _free_slots.append(slot)


def _box_path(name: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"file name {name!r} of a sandbox run must be a relative path without `..`")
    return str(PurePosixPath("/work") / path)


def _memory_file(content: bytes, *, stack: contextlib.ExitStack) -> int:
    fd = os.memfd_create("sandbox-file")
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
