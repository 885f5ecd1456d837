"""One running container of a Docker engine."""

import asyncio
import contextlib
import posixpath
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from environments.containers.base import ContainerError, ExecResult, Exit, User
from environments.containers.engine import Engine
from environments.containers.hardening import START_LINE, UIDS
from environments.containers.stream import Stream
from environments.containers.waiting import to_its_end
from environments.containers.work_folder import WorkFolder

T = TypeVar("T")
_POLL_SECONDS = (0.002, 0.25)
"""Between looks at a container whose outputs are at their end: the first, and the longest."""


class Threads(Protocol):
    """Runs the engine's blocking calls."""

    async def __call__(self, call: Callable[[], T]) -> T: ...


class DockerContainer:
    """See Container.

    Its work folder is filled, and its main process let go, by the first call that could tell the difference. When that is a `put`
    into the work folder, its files go with the fill in one call: each such call costs the engine about as much as starting a container.
    """

    def __init__(
        self,
        *,
        id: str,
        engine: Engine,
        stream: Stream,
        work_dir: str,
        folder: WorkFolder | None,
        in_thread: Threads,
    ) -> None:
        """`folder`: what `work_dir` is to be filled with; None: its main process does that."""
        self._id, self._engine, self._stream, self._in_thread = id, engine, stream, in_thread
        self.removed: Callable[[DockerContainer], None] = lambda _: None
        """Called once, when nothing of the container is left."""
        self._work_dir, self._folder = work_dir, folder
        self._filling: asyncio.Task[None] | None = None
        self._removal: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self._id

    async def write(self, data: bytes) -> None:
        """See Container.write."""
        await self._filled()
        await self._stream.write(data)

    async def read(self, size: int) -> bytes:
        """See Container.read."""
        await self._filled()
        return await self._stream.read(size)

    async def close_stdin(self) -> None:
        """See Container.close_stdin."""
        await self._filled()
        await self._stream.close_stdin()

    def errors(self) -> bytes:
        """See Container.errors."""
        return self._stream.errors()

    async def exec(
        self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float, output_bytes: int = 1 << 20, user: User = "agent"
    ) -> ExecResult:
        """See Container.exec."""
        await self._filled()
        uid = f"{UIDS[user]}:{UIDS[user]}"
        started = self._in_thread(lambda: self._engine.exec_start(self._id, argv, user=uid))
        command, connection, head = await to_its_end(started, undo=_hang_up)
        stream = await Stream.open(connection, head=head, errors_kept=output_bytes, first=True)
        feeding = asyncio.ensure_future(_feed(stream, stdin))
        try:
            return await take_result(
                stream,
                seconds=seconds,
                output_bytes=output_bytes,
                exit_code=lambda: self._in_thread(lambda: self._engine.exec_exit(command)),
            )
        finally:
            feeding.cancel()
            await stream.close()

    async def archive(self, path: str, *, max_bytes: int) -> bytes:
        """See Container.archive."""
        await self._filled()
        return await self._in_thread(lambda: self._engine.archive(self._id, path, max_bytes=max_bytes))

    async def put(self, folder: str, tar: bytes) -> None:
        """See Container.put."""
        if self._folder is None:
            raise ContainerError("the engine cannot put files into a container that fills its work folder itself")
        if self._filling is None and posixpath.normpath(folder) == posixpath.normpath(self._work_dir):
            await self._filled(tar)
            return
        await self._filled()
        await self._in_thread(lambda: self._engine.put(self._id, folder, tar))

    async def wait(self) -> Exit:
        """See Container.wait."""
        await self._filled()
        await self._stream.wait_end()
        return await final_state(self._engine, self._id, in_thread=self._in_thread)

    async def remove(self) -> None:
        """See Container.remove."""
        if self._removal is None:
            self._removal = asyncio.ensure_future(self._remove())
        await to_its_end(_joined(self._removal))

    @property
    def alive(self) -> bool:
        """Its main process may still be spoken to."""
        return not self._stream.ended

    async def _filled(self, more: bytes = b"") -> None:
        if self._folder is None:
            return
        if self._filling is None:
            self._filling = asyncio.ensure_future(self._fill(self._folder.with_more(more)))
        await asyncio.shield(self._filling)

    async def _fill(self, tar: bytes) -> None:
        if tar:
            await self._in_thread(lambda: self._engine.put(self._id, self._work_dir, tar))
        await self._stream.write(START_LINE)

    async def _remove(self) -> None:
        if self._filling is not None:
            await asyncio.wait([self._filling])
        self._stream.drop_output()
        try:
            await self._in_thread(lambda: self._engine.remove(self._id))
        finally:
            await self._stream.close()
            self.removed(self)


async def take_result(stream: Stream, *, seconds: float, output_bytes: int, exit_code: Callable[[], Awaitable[int | None]]) -> ExecResult:
    """The outputs of a command up to its end or deadline; what is over the cap is read and dropped, so it never waits for us."""
    output, truncated, code = bytearray(), False, None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while data := await stream.read(1 << 16):
                room = output_bytes - len(output)
                truncated = truncated or len(data) > room
                output += data[:room]
            pause, longest = _POLL_SECONDS
            while (code := await exit_code()) is None:  # it has closed its outputs and goes on
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
    return ExecResult(output=bytes(output), errors=stream.errors(), exit_code=code, truncated=truncated or stream.errors_dropped)


async def final_state(engine: Engine, container: str, *, in_thread: Threads) -> Exit:
    """How a container ended whose outputs are at their end."""
    pause, longest = _POLL_SECONDS
    while (state := await in_thread(lambda: engine.state(container)))["Running"]:
        await asyncio.sleep(pause)
        pause = min(2 * pause, longest)
    return Exit(code=int(state["ExitCode"]), out_of_memory=bool(state["OOMKilled"]))


async def _feed(stream: Stream, stdin: bytes) -> None:
    with contextlib.suppress(ContainerError):  # a command need not read its input
        if stdin:
            await stream.write(stdin)
    await stream.close_stdin()


async def _hang_up(started: "tuple[str, object, bytes]") -> None:
    started[1].close()  # type: ignore[attr-defined]


async def _joined(task: "asyncio.Task[None]") -> None:
    await asyncio.shield(task)
