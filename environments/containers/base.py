"""What a container engine promises: the `Containers` and `Container` protocols and their records.

A container is started from an image that the engine has. It has no network, no capabilities, a read-only root and size-capped
writable places; its main process is an unprivileged user's. The engine's own failures are `ContainerError`, whatever happens inside is a
result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

from environments.sandbox.base import SandboxError, SandboxUnavailable

AGENT_UID, TESTER_UID = 1000, 1001
"""Who owns an image's work folder and acts as agent; who runs tests on a tree that it cannot change."""
User = Literal["agent", "tester", "root"]


class ContainerError(SandboxError):
    """The engine failed, not the program in the container: an infrastructure failure."""


class EngineUnavailable(SandboxUnavailable):
    """No engine answers; the message says how to start one."""


class ImageMissing(SandboxUnavailable):
    """The engine has no such image; the message says how to make or get it."""


class ArchiveTooLarge(Exception):
    """What is under a path is larger than the caller takes: the doing of whoever wrote it there, no failure of the engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerLimits:
    """What one container may use."""

    memory_mb: int = 1024
    """Everything in it together, its tmpfs included, MiB."""
    processes: int = 256
    cpus: float = 1.0
    disk_mb: int = 256
    """Size of the work folder, of /tmp and of the home folder, each, MiB."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            if getattr(self, spec.name) <= 0:
                raise ValueError(f"limits.{spec.name} is {getattr(self, spec.name)}; it must be > 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerSpec:
    """A container to start."""

    image: str
    """Reference or id."""
    command: tuple[str, ...]
    """Main process; the container ends with it."""
    user: User = "agent"
    """Whose the main process is."""
    work_dir: str = "/testbed"
    """Its content in the image, with owners and modes, is copied into a fresh volume of `limits.disk_mb`; also the working directory."""
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: ContainerLimits = field(default_factory=ContainerLimits)
    fills: bool = False
    """The work folder is an empty tmpfs, which the main process fills with what it reads; the engine neither puts files there nor takes
    any out. The agent's is the agent's. The tester's is root's, and so is its main process, with the capabilities to become the tester
    and no others: it must do that before it runs anything of the folder."""
    held: bool = False
    """An episode keeps it between its turns: it is not counted among the containers alive at a time and never waits for one of them to
    end. In lockstep that end may come only after the turns of all other episodes. Whoever holds it bounds the work done in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecResult:
    """What became of one command run beside the main process."""

    output: bytes
    """stdout, cut off at the cap."""
    errors: bytes
    """stderr, cut off at the cap."""
    exit_code: int | None
    """None when it was still running at its deadline."""
    truncated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """How a container's main process ended."""

    code: int
    out_of_memory: bool


class Container(Protocol):
    """A running container. Methods may be called from the event loop that started it only."""

    @property
    def id(self) -> str: ...

    async def write(self, data: bytes) -> None:
        """To the main process's stdin. Raises ContainerError when it is gone."""
        ...

    async def read(self, size: int) -> bytes:
        """At most `size` bytes of the main process's stdout; empty at its end. The caller sets deadlines."""
        ...

    async def close_stdin(self) -> None:
        """End of the main process's input."""
        ...

    def errors(self) -> bytes:
        """The last 64 KiB of the main process's stderr so far."""
        ...

    async def exec(
        self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float, output_bytes: int = 1 << 20, user: User = "agent"
    ) -> ExecResult:
        """Run a command in the work folder. What it leaves running at its deadline is ended with the container at the latest."""
        ...

    async def archive(self, path: str, *, max_bytes: int) -> bytes:
        """A tar of a file or folder, taken by the engine, not by the container. Raises FileNotFoundError, ArchiveTooLarge."""
        ...

    async def put(self, folder: str, tar: bytes) -> None:
        """Unpack a tar below the work folder, by the engine, with the owners and modes that it states. Also before the main process has
        been sent anything. Not of a container that `fills` its folder."""
        ...

    async def wait(self) -> Exit:
        """The end of the main process. The caller sets deadlines."""
        ...

    async def remove(self) -> None:
        """End everything in it and remove it with its volumes. Safe to call twice; never raises for one that is gone."""
        ...


class Containers(Protocol):
    """A connection to an engine. One instance serves one event loop."""

    async def start(self, spec: ContainerSpec) -> Container:
        """A fresh container, from the warm pool when one is ready. Raises EngineUnavailable, ImageMissing, ContainerError."""
        ...

    async def image_id(self, image: str) -> str:
        """`sha256:...` of an image; of an id itself, which is not looked up. Raises ImageMissing."""
        ...

    async def image_bytes(self, image: str) -> int:
        """Size of an image and all that it is built on. Raises ImageMissing."""
        ...

    async def image_tree(self, image: str, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        """A tar of a folder of an image, without starting anything in it."""
        ...

    async def image_label(self, image: str, label: str) -> str | None:
        """The text of a label of an image; None when it has none of that name."""
        ...

    async def import_image(
        self, tar_path: str, *, image: str, environment: Mapping[str, str], work_dir: str, labels: Mapping[str, str]
    ) -> str:
        """Make an image of one layer from a root file system as a tar file; its id."""
        ...

    async def build_step(
        self, *, base: str, image: str, command: Sequence[str], files: bytes | None, labels: Mapping[str, str], seconds: float
    ) -> ExecResult:
        """Make `image` from `base` by unpacking the tar `files` at its root and running `command` as root in it, without network, with
        a writable root. Exit code not 0: no image is made, and the result says why."""
        ...

    async def close(self) -> None:
        """Remove all containers of this connection and end it."""
        ...
