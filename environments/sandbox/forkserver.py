"""Fork-server: a jailed interpreter that forks each program into fresh namespaces; the default on Linux.

A program's process has its own pid, mount, net, ipc and uts namespace below a user namespace that maps one uid (as root a uid of its
own, as an ordinary user that user's), no capabilities, a system-call filter, resource limits, a control group where the host
allows, and tmpfs at /tmp and /work with limits on size and number of files. It starts in a few milliseconds because the
interpreter and the preloaded modules are there already. See `jail.py` for the inside and `zygote.py` for the outside.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence

from environments.sandbox.base import Execution, Guard, Limits, SandboxError, SandboxUnavailable
from environments.sandbox.box import Box
from environments.sandbox.host import UIDS_PER_PROCESS, check_files, package_paths
from environments.sandbox.zygote import JailPlan, Program, Zygote, ZygoteLost

_ATTEMPTS = 3


class ForkServer:
    """Runs programs, at most `slots` at a time, and sessions, as many as uids are left. One instance serves one event loop."""

    def __init__(self, *, slots: int = 0, packages: Sequence[str] = ()) -> None:
        """`slots`: executions at once, 0 means one a processor. `packages`: installed modules that are imported beforehand.

        Raises SandboxUnavailable at once or from the first run, ValueError for wrong arguments.
        """
        slots = slots or min(os.cpu_count() or 1, UIDS_PER_PROCESS // 2)
        if not 1 <= slots <= UIDS_PER_PROCESS // 2:
            raise ValueError(f"sandbox.slots is {slots}; it must be from 1 to {UIDS_PER_PROCESS // 2}")
        self._plan = JailPlan.make(preload=tuple(packages), packages=package_paths(packages))
        self._runs = asyncio.Semaphore(slots)
        self._boxes = asyncio.Semaphore(UIDS_PER_PROCESS)
        self._idle: list[_Place] = []
        self._free_numbers = list(range(UIDS_PER_PROCESS))
        self._sessions: set[ForkServerSession] = set()

    async def run(
        self, source: bytes, *, stdin: bytes = b"", files: Mapping[str, bytes] | None = None, limits: Limits | None = None
    ) -> Execution:
        """See Sandbox.run. A zygote that dies is replaced, and the program runs again."""
        check_files(files or {}, limits or Limits())
        async with self._runs:
            for attempt in range(1, _ATTEMPTS + 1):
                session = await self.open(source, files=files, limits=limits)
                try:
                    return await session.finish(stdin=stdin)
                except ZygoteLost as error:
                    if attempt == _ATTEMPTS:
                        raise SandboxError(f"{_ATTEMPTS} zygotes died while they ran this program: {error}") from error
        raise AssertionError("unreachable")

    async def open(self, source: bytes, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> "ForkServerSession":
        """See Sandbox.open. A session does not count against `slots`: it is idle most of its life."""
        limits = limits or Limits()
        check_files(files or {}, limits)
        await self._boxes.acquire()
        program = Program(source, files or {})
        try:
            place, box = await self._launch(program, limits)
        except BaseException:
            self._boxes.release()
            raise
        finally:
            program.close()
        session = ForkServerSession(server=self, place=place, box=box)
        self._sessions.add(session)
        return session

    async def guards(self) -> tuple[Guard, ...]:
        """See Sandbox.guards. Raises SandboxUnavailable when a first program does not run."""
        execution = await self.run(b"print(6 * 7)", limits=Limits(wall_seconds=60.0))
        if execution.stdout != b"42\n":
            raise SandboxUnavailable(f"a first program gave no output: {execution.stderr.decode(errors='replace')[-300:]}")
        controllers = self._plan.controllers
        memory_guard, pids_guard = (
            Guard(
                name=name,
                state="on" if place is not None else "unavailable",
                found=controllers.found,
                fix="" if place is not None else f"run where control groups can be made; until then limits {instead}",
            )
            for name, place, instead in (
                ("memory of the whole box (cgroup)", controllers.memory, "hold for each process, not for their sum"),
                ("processes of the box (cgroup)", controllers.pids, "on processes rest on RLIMIT_NPROC"),
            )
        )
        uid = "one a box, from a range of this process" if os.geteuid() == 0 else "this user's, alone in a user namespace"
        return (
            Guard(name="namespaces", state="on", found="user, pid, mount, net, ipc, uts"),
            Guard(name="own root", state="on", found="interpreter and system libraries, read-only; no /proc, no home, no checkout"),
            Guard(name="own uid", state="on", found=uid),
            Guard(name="system-call filter", state="on", found=f"{len(self._plan.seccomp) // 8} instructions"),
            Guard(name="resource limits", state="on", found="address space, processor time, processes, files, core dumps"),
            Guard(name="tmpfs with size and inode limits", state="on", found="/tmp and /work"),
            memory_guard,
            pids_guard,
        )

    async def close(self) -> None:
        """See Sandbox.close."""
        for session in tuple(self._sessions):
            await session.close()
        places, self._idle = self._idle, []
        for place in places:
            await place.zygote.close()

    async def _launch(self, program: Program, limits: Limits) -> "tuple[_Place, Box]":
        """Start a box in an idle zygote, or in a new one; a zygote that fails is thrown away."""
        for attempt in range(1, _ATTEMPTS + 1):
            place = await self._take()
            try:
                return place, await place.zygote.launch(program, limits=limits)
            except BaseException as error:
                await place.zygote.close()
                await self._give_back(place)
                if attempt == _ATTEMPTS or not isinstance(error, ZygoteLost):
                    raise
        raise AssertionError("unreachable")

    async def _take(self) -> "_Place":
        while self._idle:
            place = self._idle.pop()
            if not place.zygote.dead:
                return place
            await place.zygote.close()
            self._free_numbers.append(place.number)
        number = self._free_numbers.pop(0)
        try:
            return _Place(number=number, zygote=await Zygote.start(self._plan, number=number))
        except BaseException:
            self._free_numbers.append(number)
            raise

    async def _give_back(self, place: "_Place") -> None:
        if not place.zygote.dead:
            self._idle.append(place)
            return
        await place.zygote.close()
        self._free_numbers.append(place.number)

    async def _release(self, session: "ForkServerSession", place: "_Place") -> None:
        if session in self._sessions:
            self._sessions.remove(session)
            await self._give_back(place)
            self._boxes.release()


class ForkServerSession:
    """One box and the zygote that runs it."""

    def __init__(self, *, server: ForkServer, place: "_Place", box: Box) -> None:
        self._server, self._place, self._box = server, place, box

    async def finish(self, *, stdin: bytes) -> Execution:
        """Send all of stdin and wait for the end."""
        try:
            return await self._box.finish(stdin=stdin)
        finally:
            await self._server._release(self, self._place)

    async def ask(self, line: bytes, *, seconds: float) -> bytes:
        """See Session.ask."""
        return await self._box.ask(line, seconds=seconds)

    async def close(self) -> Execution:
        """See Session.close."""
        try:
            return await self._box.close()
        finally:
            await self._server._release(self, self._place)


class _Place:
    """A zygote and its number, which gives it its uid."""

    def __init__(self, *, number: int, zygote: Zygote) -> None:
        self.number, self.zygote = number, zygote
