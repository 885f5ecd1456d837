"""Bubblewrap: runs one hostile program in a box of its own; the fallback where the fork-server cannot run.

A box has its own user, mount, pid, network, ipc, uts and (where there is one) cgroup namespace; an empty environment; the
interpreter and system libraries read-only; small tmpfs at /tmp and /work; no /proc, no network, no home, no checkout.
Resource limits are set inside the box, the wall clock and the output cap outside. The program is pid 1 of its namespace:
when it ends or is killed, the kernel ends everything that it started.

Bubblewrap never starts as root, because its child would keep host uid 0: as root every run first drops to a uid of its own,
taken from a range that belongs to this process. As an ordinary user it starts directly.

What this does not do: no memory limit over the sum of a box's processes (the limit is per process), no limit on the number of files
(the processor limit stops a flood), no measure of processor time and memory.
"""

import asyncio
import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from environments.sandbox.base import Execution, Guard, Limits, SandboxError, SandboxUnavailable
from environments.sandbox.box import Box, Ended, Pipes
from environments.sandbox.host import (
    DEVICES,
    ENVIRONMENT,
    HELP,
    UIDS_PER_PROCESS,
    Interpreter,
    Mount,
    Staging,
    box_uid,
    check_files,
    find_tool,
    others_reach,
    package_paths,
    system_mounts,
)
from environments.sandbox.seccomp import seccomp_filter

_free_slots: deque[int] = deque(range(UIDS_PER_PROCESS))
_KILL_GRACE_SECONDS = 2.0
"""How long bubblewrap may take to notice that its child was killed before it is killed too."""
_PROBE_WALL_SECONDS = 60.0
_PROGRAM = "/tmp/main.py"


class Bubblewrap:
    """Runs programs, at most `slots` at a time. One instance serves one event loop."""

    def __init__(self, *, slots: int = 0, packages: Sequence[str] = ()) -> None:
        """`slots`: boxes at once, 0 means one a processor. `packages`: installed modules that programs may import.

        Raises SandboxUnavailable at once when a tool is missing, and from `check` or the first `run` when it does not work.
        """
        slots = slots or min(os.cpu_count() or 1, UIDS_PER_PROCESS)
        if not 1 <= slots <= UIDS_PER_PROCESS:
            raise ValueError(f"slots is {slots}; it must be from 1 to {UIDS_PER_PROCESS}")
        self._semaphore = asyncio.Semaphore(slots)
        self._lock = asyncio.Lock()
        self._checked = False
        self._is_root = os.geteuid() == 0
        self._bwrap, self._prlimit = find_tool("bwrap"), find_tool("prlimit")
        self._interpreter = Interpreter.locate()
        self._seccomp = seccomp_filter()
        paths = package_paths(packages)
        mounts = self._interpreter.mounts(paths)
        sources = [Path(mount.source) for mount in mounts if mount.kind == "bind"]
        hidden = self._is_root and not all(others_reach(path) for path in sources)
        self._staging = Staging.make([str(path) for path in sources]) if hidden else None
        self._mounts = (
            *(word for mount in (*system_mounts(), *mounts) for word in self._words(mount)),
            *(word for mount in mounts if mount.kind == "hide" for word in ("--remount-ro", mount.target)),
        )
        self._setpriv = find_tool("setpriv") if self._is_root else ""

    async def check(self) -> None:
        """Run a trivial program once. Raises SandboxUnavailable when that does not work."""
        async with self._lock:
            if self._checked:
                return
            try:
                async with self._semaphore:
                    session = await self._start(b"print(6 * 7)", files={}, limits=Limits(wall_seconds=_PROBE_WALL_SECONDS))
                    execution = await session.finish(stdin=b"")
            except (SandboxError, OSError) as error:
                raise SandboxUnavailable(f"{HELP}; a first run failed: {error}") from error
            if execution.stdout != b"42\n":
                detail = execution.stderr.decode(errors="replace").strip() or f"exit code {execution.exit_code}"
                raise SandboxUnavailable(f"{HELP}; a first run gave no output: {detail}")
            self._checked = True

    async def run(
        self, source: bytes, *, stdin: bytes = b"", files: Mapping[str, bytes] | None = None, limits: Limits | None = None
    ) -> Execution:
        """See Sandbox.run."""
        await self.check()
        async with self._semaphore:
            session = await self._start(source, files=files or {}, limits=limits or Limits())
            return await session.finish(stdin=stdin)

    async def open(self, source: bytes, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> "BubblewrapSession":
        """See Sandbox.open. A session does not count against `slots`: it is idle most of its life."""
        await self.check()
        return await self._start(source, files=files or {}, limits=limits or Limits())

    async def guards(self) -> tuple[Guard, ...]:
        """See Sandbox.guards."""
        await self.check()
        return (
            Guard(name="namespaces", state="on", found="user, pid, mount, net, ipc, uts"),
            Guard(name="own uid", state="on", found="one a box" if self._is_root else "this user's, inside a user namespace"),
            Guard(name="own root", state="on", found="interpreter and system libraries, read-only; no /proc, no home, no checkout"),
            Guard(name="system-call filter", state="on", found=f"{len(self._seccomp) // 8} instructions"),
            Guard(name="resource limits", state="on", found="address space, processor time, processes, files, core dumps"),
            Guard(name="tmpfs with size limits", state="on", found="/tmp and /work"),
            *(
                Guard(
                    name=name, state="unavailable", found=f"bubblewrap sets no {what}", fix="use the fork-server (sandbox.kind: forkserver)"
                )
                for name, what in (("tmpfs with inode limits", "number of inodes"), ("memory of the whole box (cgroup)", "control group"))
            ),
        )

    async def close(self) -> None:
        """Release the private mount namespace, if there is one. Open sessions are their owners' to close."""
        if self._staging is not None:
            self._staging.close()

    async def _start(self, source: bytes, *, files: Mapping[str, bytes], limits: Limits) -> "BubblewrapSession":
        check_files(files, limits)
        if b"\0" in source:  # some interpreters would run what stands before it
            source = b"raise SyntaxError('source code cannot contain null bytes')"
        with contextlib.ExitStack() as stack:
            uid = stack.enter_context(_slot_uid()) if self._is_root else None
            status_read, status_write = os.pipe()
            stack.callback(os.close, status_read)
            os.set_blocking(status_read, False)
            pipes = Pipes()
            with contextlib.ExitStack() as passed:
                passed.callback(os.close, status_write)
                passed.callback(pipes.close_program_ends)
                fixed = [_memory_file(content, stack=passed) for content in (source, self._seccomp)]
                file_fds = {f"/work/{name}": _memory_file(content, stack=passed) for name, content in files.items()}
                command = self._command(
                    uid=uid, status_fd=status_write, program_fd=fixed[0], seccomp_fd=fixed[1], file_fds=file_fds, limits=limits
                )
                started = time.monotonic()
                launch = asyncio.ensure_future(
                    asyncio.create_subprocess_exec(
                        *command,
                        stdin=pipes.program[0],
                        stdout=pipes.program[1],
                        stderr=pipes.program[2],
                        pass_fds=(status_write, *fixed, *file_fds.values()),
                        env={},
                        cwd="/",
                        start_new_session=True,
                    )
                )
                cancelled = False
                try:
                    process = await asyncio.shield(launch)
                except asyncio.CancelledError:  # asyncio's own cleanup would kill bubblewrap before it can reap the box
                    process, cancelled = await launch, True
            launcher = _Launcher(process=process, status_fd=status_read)
            session = BubblewrapSession(launcher=launcher, pipes=pipes, limits=limits, started=started, stack=stack.pop_all())
        if cancelled:
            await session.close()
            raise asyncio.CancelledError
        return session

    def _words(self, mount: Mount) -> tuple[str, ...]:
        """Bubblewrap's options for one mount."""
        if mount.kind == "link":
            return ("--symlink", mount.source, mount.target)
        if mount.kind == "hide":
            return ("--tmpfs", mount.target)
        staged = {} if self._staging is None else self._staging.places
        return ("--ro-bind", staged.get(mount.source, mount.source), mount.target)

    def _command(
        self, *, uid: int | None, status_fd: int, program_fd: int, seccomp_fd: int, file_fds: Mapping[str, int], limits: Limits
    ) -> tuple[str, ...]:
        """The whole launch: [enter the staging namespace,] [drop to the slot's uid,] bubblewrap, resource limits, program."""
        drop = (
            ()
            if uid is None
            else (self._setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", "--no-new-privs", "--")
        )
        enter = () if self._staging is None else self._staging.enter
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
            *("--seccomp", str(seccomp_fd), *(word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value))),
            *self._mounts,
            *(word for name in DEVICES for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")),
            *("--size", disk, "--tmpfs", "/tmp", "--size", disk, "--tmpfs", "/work"),
            *(word for path, fd in file_fds.items() for word in ("--perms", "0444", "--file", str(fd), path)),
            *("--perms", "0444", "--ro-bind-data", str(program_fd), _PROGRAM),
            *("--remount-ro", "/", "--chdir", "/work", "--"),
            *(self._prlimit, *limit_flags, "--"),
            *(str(self._interpreter.executable), "-I", "-X", "utf8", _PROGRAM),
        )


class BubblewrapSession:
    """One box, from its launch to its end."""

    def __init__(self, *, launcher: "_Launcher", pipes: Pipes, limits: Limits, started: float, stack: contextlib.ExitStack) -> None:
        """`stack` holds what the box occupies; it is released when the box has ended."""
        ended = asyncio.ensure_future(launcher.ended())
        ended.add_done_callback(lambda _: stack.close())
        self._launcher = launcher
        self._box = Box(pipes=pipes, limits=limits, started=started, kill=launcher.kill, ended=ended)

    async def finish(self, *, stdin: bytes) -> Execution:
        """Send all of stdin and wait for the end."""
        return self._judged(await self._box.finish(stdin=stdin))

    async def ask(self, line: bytes, *, seconds: float) -> bytes:
        """See Session.ask."""
        return await self._box.ask(line, seconds=seconds)

    async def close(self) -> Execution:
        """See Session.close."""
        return self._judged(await self._box.close())

    def _judged(self, execution: Execution) -> Execution:
        """Bubblewrap's own failures are no verdict."""
        if not self._launcher.ran and not self._launcher.killed:
            detail = execution.stderr.decode(errors="replace").strip()[-500:]
            raise SandboxError(f"bubblewrap ended with code {execution.exit_code} without running the program: {detail or 'no message'}")
        return execution


class _Launcher:
    """The bubblewrap process of one box, and what it reports."""

    def __init__(self, *, process: asyncio.subprocess.Process, status_fd: int) -> None:
        self._process = process
        self._status_fd = status_fd
        self._status_text = b""
        self.killed = False
        self.ran = False

    async def ended(self) -> Ended:
        """Wait for the end of the box."""
        code = await self._process.wait()
        exit_code = self._status().get("exit-code")
        self.ran = exit_code is not None
        if exit_code is None:
            return Ended(exit_code=137 if self.killed else code)
        return Ended(exit_code=exit_code, killed_by="kernel" if exit_code == 137 and not self.killed else None)

    def kill(self) -> None:
        """Kill the box's pid 1, and with it the box; bubblewrap then reaps it and ends, which leaves no zombie."""
        if not self.killed:
            self.killed = True
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
        raise SandboxError(f"more than {UIDS_PER_PROCESS} boxes at once in one process: lower the sandboxes' slots")
    slot = _free_slots.popleft()
    try:
        yield box_uid(slot)
    finally:
        _free_slots.append(slot)


def _memory_file(content: bytes, *, stack: contextlib.ExitStack) -> int:
    fd = os.memfd_create("sandbox-file")
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
