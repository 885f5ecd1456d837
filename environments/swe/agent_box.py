"""The container of one episode, seen from outside: it starts at the first call, and its driver (`inside/driver.py`) answers calls.

Whatever the agent does in it ends in `BoxEnded`; what the engine does not do in a ContainerError.
"""

import asyncio
import contextlib
import json
import marshal
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from environments.containers.base import Container, ContainerError, Containers, ContainerSpec, Exit
from environments.records import Json
from environments.swe.changes import check_path
from environments.swe.inside.modes import FILE, LINK, PROGRAM
from environments.swe.records import TreeChange
from environments.swe.staging import File, boot_command, program_frame, stage

_MODULES = ("droppings", "modes", "json_text", "driver_files", "driver_changes", "driver")
_RUN = "gc.enable(); module.main()"
_GRACE_SECONDS = 30.0
"""Over a call's own deadline."""
_END_SECONDS = 10.0
"""For the engine to say how a main process ended whose outputs are closed."""
_CHANGES_SECONDS = 120.0
_LEAVE_SECONDS = 1.0
"""For a driver to end by itself."""
_LARGEST_HEADER, _LARGEST_LISTING = 1 << 16, 1 << 25
_MOST_ENTRIES = 200_000
"""Of a listing. A driver that somebody took over could send as many as make the host run out of memory."""
_CODES = range(256)
_MARSHAL = 4
"""Version of the format that Python 3.8 reads, too."""
_KILLED = 137


class BoxEnded(Exception):
    """The container or its driver is gone, by the agent's doing; the text says how. All in it is lost."""


class CallRefused(Exception):
    """The driver could not do it; one line for the agent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What a bash command came to."""

    head: bytes
    tail: bytes
    dropped: int
    """Bytes between the two."""
    ended: str
    """`done`, `timeout`, or `shell`: the shell itself ended."""
    code: int | None
    """Exit code of the command, or of the shell."""


class AgentBox:
    """A running container with its driver."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self._calls = 0
        self._idle = True
        """The driver waits for a call."""

    @classmethod
    async def start(cls, containers: Containers, spec: ContainerSpec, files: Sequence[File]) -> "AgentBox":
        """Start a container whose work folder is the image's and the files over it. Raises ContainerError, EngineUnavailable,
        ImageMissing."""
        container = await containers.start(spec)
        try:
            program = program_frame(_MODULES, after=_RUN)
            await stage(containers, container, image=spec.image, work_dir=spec.work_dir, program=program, changes=files)
        except BaseException:
            await container.remove()
            raise
        return cls(container)

    async def bash(self, command: str, *, seconds: float, keep: int) -> Shown:
        """Run a command; at most `keep` bytes of its output are kept."""
        if "\0" in command:
            raise CallRefused("a command cannot hold a NUL character")
        header, data = await self._ask(
            "bash", command.encode(), seconds=seconds + _GRACE_SECONDS, most=keep, keep=keep, command_seconds=seconds
        )
        head, dropped = header.get("head"), header.get("dropped")
        ended, code = header.get("ended"), header.get("code")
        if not isinstance(head, int) or not isinstance(dropped, int) or ended not in ("done", "timeout", "shell"):
            raise await self._lost("it did not answer as it must")
        return Shown(
            head=data[: max(head, 0)],
            tail=data[max(head, 0) :],
            dropped=max(dropped, 0),
            ended=str(ended),
            code=code if type(code) is int and code in _CODES else None,
        )

    async def edit(self, path: str, *, search: str, replace: str, around: int) -> bytes:
        """Replace a text that stands once in a file. Raises CallRefused."""
        cut = search.encode()
        _, data = await self._ask(
            "edit", cut + replace.encode(), seconds=_GRACE_SECONDS, most=1 << 26, path=path, search=len(cut), around=around
        )
        return data

    async def create(self, path: str, content: str) -> bytes:
        """Write a new file. Raises CallRefused."""
        _, data = await self._ask("create", content.encode(), seconds=_GRACE_SECONDS, most=1 << 16, path=path)
        return data

    async def read(self, path: str, *, most: int) -> bytes:
        """A file of at most `most` bytes. Raises CallRefused."""
        _, data = await self._ask("read", b"", seconds=_GRACE_SECONDS, most=most, path=path, size=most)
        return data

    async def changes(self, listing: bytes, *, most: int) -> tuple[TreeChange, ...]:
        """End all that runs in it but the driver; then how the work folder differs from the base, in at most `most` bytes.

        `listing`: as git's ls-tree gives the base. Droppings of tools are left out. Raises CallRefused when it is too much.
        """
        _, data = await self._ask("changes", listing, seconds=_CHANGES_SECONDS, most=most + _LARGEST_LISTING, limit=most)
        try:
            return read_changes(data)
        except (ValueError, RecursionError):
            raise await self._lost("it did not answer as it must") from None

    async def close(self) -> None:
        """Remove the container. An idle driver ends by itself first: then the engine need not start its runtime for a kill."""
        if self._idle:
            with contextlib.suppress(TimeoutError, ContainerError):
                async with asyncio.timeout(_LEAVE_SECONDS):
                    await self.container.close_stdin()
                    while await self.container.read(1 << 16):
                        pass
        await self.container.remove()

    async def _ask(self, op: str, data: bytes, *, seconds: float, most: int, **fields: Json) -> tuple[Mapping[str, Json], bytes]:
        """The driver's answer, whose data is at most `most` bytes. Raises BoxEnded, CallRefused, ContainerError."""
        self._calls, self._idle = self._calls + 1, False
        request = marshal.dumps({"op": op, "id": self._calls, **fields}, _MARSHAL)
        try:
            async with asyncio.timeout(seconds):
                try:
                    await self.container.write(struct.pack(">II", len(request), len(data)) + request + data)
                    header, answer = await self._answer(most)
                except ContainerError:
                    raise _Gone from None
        except TimeoutError:
            raise await self._lost("it did not answer in time") from None
        except _Gone:
            raise await self._lost("its main process does not answer") from None
        if header.get("id") != self._calls:
            raise await self._lost("it did not answer as it must")
        self._idle = True
        if "error" in header:
            raise CallRefused(" ".join(str(header["error"])[:2000].split("\n")))
        return header, answer

    async def _answer(self, most: int) -> tuple[Mapping[str, Json], bytes]:
        size, data_size = struct.unpack(">II", await self._exactly(8))
        if size > _LARGEST_HEADER or data_size > most:
            raise _Gone
        try:
            header = json.loads(await self._exactly(size))
        except (ValueError, RecursionError):
            raise _Gone from None
        if not isinstance(header, dict):
            raise _Gone
        return header, await self._exactly(data_size)

    async def _exactly(self, size: int) -> bytes:
        parts = []
        while size > 0:
            part = await self.container.read(min(size, 1 << 20))
            if not part:
                raise _Gone
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    async def _lost(self, what: str) -> BoxEnded:
        """The reason, by what the engine says of the main process; removes the container. Raises ContainerError when the engine is at
        fault."""
        ended: Exit | None = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    ended = await self.container.wait()
        finally:
            await self.container.remove()
        if ended is None:
            return BoxEnded(what)
        if ended.code != _KILLED:
            last = self.container.errors().decode(errors="replace").strip().rpartition("\n")[2][:200]
            return BoxEnded(f"its main process ended with exit code {ended.code}" + (f" ({last})" if last else ""))
        if not ended.out_of_memory:
            # Nothing in a container can kill its init but the kernel when memory runs out: somebody outside did.
            raise ContainerError("the agent's container was killed from outside")
        return BoxEnded("out of memory")


class _Gone(Exception):
    """No answer is to come, or none that can be read."""


def read_changes(data: bytes) -> tuple[TreeChange, ...]:
    """What the driver says of the work folder. Raises ValueError for what cannot be true."""
    at = 8 + int.from_bytes(data[:8], "big")
    if at - 8 > _LARGEST_LISTING or data.count(b"[", 8, at) + data.count(b"{", 8, at) > _MOST_ENTRIES:
        raise ValueError("too long a listing")
    listed = json.loads(data[8:at])
    found: dict[bytes, TreeChange] = {}
    if not isinstance(listed, list):
        raise ValueError("no listing")
    for one in listed:
        path, mode, size = one if isinstance(one, list) and len(one) == 3 else (None, None, None)
        if type(path) is not str or type(mode) not in (int, type(None)) or type(size) is not int:
            raise ValueError("no entry of a listing")
        change = TreeChange(path=path.encode("latin-1"), mode=mode, data=data[at : at + size])
        check_path(change.path)
        if mode not in (FILE, PROGRAM, LINK, None) or size != len(change.data) or change.path in found:
            raise ValueError(f"{change.path!r} cannot be")
        found[change.path] = change
        at += size
    if at != len(data):
        raise ValueError("more than was said")
    return tuple(found.values())


def driver_command(work_dir: str) -> tuple[str, ...]:
    """Main process of an agent's container."""
    return boot_command(work_dir)
