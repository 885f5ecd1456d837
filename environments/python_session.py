"""A stateful Python session in a sandbox: cells go in, what they print comes out; a dead session is replaced by a fresh one."""

import asyncio
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from environments.protocol import Sandboxed
from environments.records import SandboxInfo
from environments.sandbox.base import Execution, KilledBy, Limits, Sandbox, SandboxError, Session, SessionEnded
from environments.sandbox.shared import SharedSandbox

CELL_SECONDS = 10.0
MAX_OPEN = 16
"""Boxes of one process at a time: a node has uids for some dozens."""
_START_SECONDS = 60.0
_LIMITS = Limits(wall_seconds=7200.0, cpu_seconds=60, memory_mb=512)
"""The wall clock covers the policy's thinking between two cells."""
_DRIVER = Path(__file__).with_name("python_driver.py")
_WHY: dict[KilledBy | None, str] = {
    "cpu": "it used too much processor time",
    "memory": "it used too much memory",
    "output": "it wrote too much to a descriptor",
    "kernel": "it used too much memory or processor time",
}


class SpoiledAnswer(SessionEnded):
    """What came is not the driver's answer: the session cannot be trusted any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellResult:
    """What became of a cell."""

    text: str
    """What to show of it, cut to a limit."""
    exit_code: int
    """0 when it went well, 1 when it raised; when the session ended with it, that of its process."""


class PythonSession:
    """The session of one episode. Its box opens at the first cell, and may be closed while the policy thinks: the next cell then
    opens another one and runs the earlier cells again."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._shared: SharedSessions | None = None
        self._cells: list[str] = []
        """What the present state is made of."""
        self.info = SandboxInfo()
        """Where the boxes were, of a sandbox that tells."""
        self.busy = False
        """Running a cell."""

    async def run(self, code: str) -> CellResult:
        """Execute a cell. Raises SandboxError when no box can be had."""
        self._shared = self._shared or SharedSessions.take()
        async with self._shared.turns:
            self.busy = True
            try:
                await self._shared.make_room(self)
                return await self._run(code, self._session or await self._open(self._shared.sandbox))
            finally:
                self.busy = False

    async def suspend(self) -> None:
        """End the box; the next cell restores its state."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def close(self) -> None:
        """End the box for good."""
        shared, self._shared = self._shared, None
        try:
            await self.suspend()
        finally:
            if shared is not None:
                shared.forget(self)
                await shared.release()

    async def _run(self, code: str, session: Session) -> CellResult:
        try:
            result = await _ask(session, code, seconds=CELL_SECONDS)
        except SessionEnded as error:
            self._session = None
            self._cells.clear()
            execution = await session.close()
            why = str(error) if isinstance(error, SpoiledAnswer) else _why(execution)
            text = f"[the session ended: {why}. Its variables are lost; the next call starts a fresh session.]"
            return CellResult(text=text, exit_code=execution.exit_code)
        self._cells.append(code)
        return result

    async def _open(self, sandbox: Sandbox) -> Session:
        self._session = session = await sandbox.open(_DRIVER.read_bytes(), limits=_LIMITS)
        if isinstance(session, Sandboxed):
            info = session.sandbox_info()
            self.info = SandboxInfo(image_digest=info.image_digest, refs=(*self.info.refs, *info.refs))
        try:
            await _ask(session, "", seconds=_START_SECONDS)
            for cell in self._cells:
                await _ask(session, cell, seconds=2 * CELL_SECONDS)
        except SessionEnded:
            self._session = None
            execution = await session.close()
            detail = execution.stderr.decode(errors="replace").strip()[-300:]
            raise SandboxError(f"a Python session did not start or could not be restored: {_why(execution)} {detail}") from None
        return session


class SharedSessions(SharedSandbox):
    """The sandbox that the sessions of one event loop share.

    At most MAX_OPEN of them have a box at a time: a session that waited for another episode's end could wait for ever, since in
    lockstep that episode's next turn waits for all others. So the box that was idle longest makes room.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turns = asyncio.Semaphore(MAX_OPEN)
        """Held while a cell runs, so that of more than MAX_OPEN boxes one is idle."""
        self._open: dict[PythonSession, None] = {}
        """Sessions with a box, the one that was idle longest first."""

    async def make_room(self, session: PythonSession) -> None:
        """Count `session` among those with a box, and close that of another one where they are too many."""
        self._open.pop(session, None)
        self._open[session] = None
        while len(self._open) > MAX_OPEN:
            idle = next(other for other in self._open if not other.busy)
            del self._open[idle]
            await idle.suspend()

    def forget(self, session: PythonSession) -> None:
        """Its box is gone."""
        self._open.pop(session, None)


async def _ask(session: Session, code: str, *, seconds: float) -> CellResult:
    """Run a cell in a session that is open. Raises SessionEnded."""
    nonce = secrets.token_hex(16)
    answer = await session.ask(json.dumps({"nonce": nonce, "code": code}).encode(), seconds=seconds)
    try:
        message = json.loads(answer)
        if message["nonce"] != nonce or not isinstance(message["output"], str) or not isinstance(message["failed"], bool):
            raise ValueError("another answer was expected")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SpoiledAnswer("the code wrote something else than its results to the driver's channel") from None
    return CellResult(text=_storable(message["output"]), exit_code=int(message["failed"]))


def _storable(text: str) -> str:
    """Text that can be tokenized and written as UTF-8: no lone surrogates, no NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _why(execution: Execution) -> str:
    if execution.killed_by == "wall":
        return f"it took longer than {CELL_SECONDS:.0f} s"
    return _WHY.get(execution.killed_by) or f"its process ended with exit code {execution.exit_code}"
