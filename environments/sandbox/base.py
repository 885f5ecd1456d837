"""What every kind of sandbox promises: the `Sandbox` protocol and its records.

A sandbox runs Python source in a box of its own: no network, no sight of the host or of other boxes, an own uid, an empty
environment, a fresh working directory, limits on time, memory, processes, disk and output. It never runs a program with less
than it promises: what is missing is a `SandboxUnavailable` that says what to install.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, Protocol

KilledBy = Literal["wall", "cpu", "memory", "output", "kernel"]
GuardState = Literal["on", "off", "unavailable"]


class SandboxError(RuntimeError):
    """The sandbox failed, not the program in it: an infrastructure failure."""


class SandboxUnavailable(SandboxError):
    """The sandbox cannot work on this machine; the message says what is missing and how to get it."""


class SessionEnded(Exception):
    """The program of a session ended, was killed or took too long; `Session.close` says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one run may use."""

    wall_seconds: float = 10.0
    """From the start of the sandbox to the end of the program; for a session, its whole life."""
    cpu_seconds: int = 5
    """Processor time of each process."""
    memory_mb: int = 512
    """Address space of each process (the fork-server's interpreter and preloaded modules are not counted), MiB. Where control groups can
    be used the whole box is limited too: to this, its two tmpfs and 16 MiB more."""
    output_bytes: int = 1 << 20
    """stdout and stderr together; a program that writes more is killed."""
    processes: int = 16
    """Processes and threads alive at once, the program itself included."""
    disk_mb: int = 16
    """Size of /tmp and of /work, and of the largest file, MiB."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            if getattr(self, spec.name) <= 0:
                raise ValueError(f"limits.{spec.name} is {getattr(self, spec.name)}; it must be > 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What became of one program."""

    stdout: bytes
    """Cut off at the output cap; any bytes."""
    stderr: bytes
    exit_code: int
    """The program's exit code, or 128 + signal."""
    wall_seconds: float
    """Sandbox start included."""
    cpu_seconds: float | None
    """Processor time of the box; None where this kind cannot measure it."""
    peak_memory_mb: float | None
    """Largest resident memory; None where this kind cannot measure it."""
    killed_by: KilledBy | None
    """The limit that ended it. `kernel`: SIGKILL for a reason that could not be told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """One protection of a sandbox, for `rl doctor`."""

    name: str
    state: GuardState
    """on: works here. off: could work, is not in use. unavailable: this machine cannot."""
    found: str
    fix: str = ""
    """What to install or allow; empty when on."""


class Session(Protocol):
    """A program that stays alive between questions: lines go to its stdin, lines come from its stdout."""

    async def ask(self, line: bytes, *, seconds: float) -> bytes:
        """Write `line` (a newline is added) and return the next line of stdout, without its newline.

        Raises SessionEnded when the program ended, exceeded a limit of its box, or gave no whole line within `seconds`; the
        box is then dead.
        """
        ...

    async def close(self) -> Execution:
        """Kill the box if it still runs and say what became of it. Safe to call twice."""
        ...


class Sandbox(Protocol):
    """Runs programs, several at a time. One instance serves one event loop."""

    async def run(
        self, source: bytes, *, stdin: bytes = b"", files: Mapping[str, bytes] | None = None, limits: Limits | None = None
    ) -> Execution:
        """Run `source` as the main module of a fresh interpreter.

        The working directory /work holds `files` (relative path: content, read-only). Whatever the program does, bytes that
        are no Python included, is an Execution; SandboxError means that the sandbox itself failed. Raises ValueError for files
        that do not fit, and for names that are no relative paths or have `..` in them.
        """
        ...

    async def open(self, source: bytes, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> Session:
        """Start `source` and leave it running for questions."""
        ...

    async def guards(self) -> tuple[Guard, ...]:
        """What protects here, for `rl doctor`."""
        ...

    async def close(self) -> None:
        """End all boxes and servers."""
        ...
