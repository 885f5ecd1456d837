"""git as a tool on data that nobody trusts: bare repositories, plumbing only, no settings or hooks of this machine, deadlines.

Owner of the program `git`. No working tree is ever made on the host.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cache
from pathlib import Path

from environments.swe.records import PatchError

SECONDS = 120.0
IDENTITY = "codeworld <codeworld@localhost> 0 +0000"
_CONFIG = """[core]
\trepositoryformatversion = 0
\tbare = true
\tfilemode = true
\tprotectNTFS = false
\tprotectHFS = false
\tquotePath = true
\tautocrlf = false
[gc]
\tauto = 0
[fastimport]
\tunpackLimit = 0
[pack]
\tthreads = 1
"""
"""`protectNTFS` and `protectHFS` would refuse names that are fine on Linux; paths below .git are refused by this project."""


class GitError(RuntimeError):
    """git failed, or took too long; its first line of errors."""


async def git(
    repository: Path,
    *arguments: str | bytes,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    most_bytes: int | None = None,
    memory_bytes: int | None = None,
    seconds: float = SECONDS,
) -> bytes:
    """What a git command prints. Raises GitError, and PatchError when it prints more than `most_bytes`.

    `memory_bytes`: of its address space, and of any file that it writes. It is set before the command gets its input.
    """
    process = await asyncio.create_subprocess_exec(
        _program(os.environ.get("PATH", os.defpath)),
        f"--git-dir={repository}",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=repository,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": "/nonexistent",
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_CONFIG_KEY_1": "core.hooksPath",
            "GIT_CONFIG_VALUE_1": os.devnull,
            **(environment or {}),
        },
    )
    try:
        if memory_bytes is not None:
            with contextlib.suppress(ProcessLookupError):
                for limit in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
                    resource.prlimit(process.pid, limit, (memory_bytes, memory_bytes))
        async with asyncio.timeout(seconds):
            output, errors = await _talk(process, stdin, most_bytes=most_bytes)
    except TimeoutError:
        raise GitError(f"git {_shown(arguments)} took more than {seconds:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            while process.stdout is not None and await process.stdout.read(1 << 18):
                pass  # what is left in a paused pipe would keep `wait` from seeing its end
            await process.wait()
    if process.returncode != 0:
        lines = errors.decode(errors="backslashreplace").strip().splitlines()
        told = next((line for line in lines if line.startswith(("error:", "fatal:"))), lines[0] if lines else f"exit {process.returncode}")
        raise GitError(told.removeprefix("error:").removeprefix("fatal:").strip()[:300])
    return output


async def _talk(process: asyncio.subprocess.Process, stdin: bytes, *, most_bytes: int | None) -> tuple[bytes, bytes]:
    assert process.stdin and process.stdout and process.stderr

    async def feed(stream: asyncio.StreamWriter) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stream.write(stdin)
            await stream.drain()
        stream.close()

    async def take(stream: asyncio.StreamReader) -> bytes:
        data = bytearray()
        while chunk := await stream.read(1 << 18):
            data += chunk
            if most_bytes is not None and len(data) > most_bytes:
                raise PatchError(f"larger than {most_bytes} bytes")
        return bytes(data)

    feeding = asyncio.ensure_future(feed(process.stdin))
    noting = asyncio.ensure_future(process.stderr.read())
    try:
        output = await take(process.stdout)
        errors = await noting
        await process.wait()
    finally:
        for task in (feeding, noting):
            task.cancel()
        await asyncio.gather(feeding, noting, return_exceptions=True)
    return output, errors


def make_repository(folder: Path, *, borrows: Path | None = None) -> None:
    """An empty bare repository; with `borrows`, one that also sees another's objects."""
    for name in ("objects/info", "objects/pack", "refs/heads"):
        (folder / name).mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / "config").write_text(_CONFIG)
    if borrows is not None:
        (folder / "objects" / "info" / "alternates").write_text(f"{borrows.resolve() / 'objects'}\n")


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tree-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def scratch_repository(borrows: Path) -> AsyncIterator[Path]:
    """A bare repository for one operation on another's objects."""
    with scratch_folder() as folder:
        make_repository(folder, borrows=borrows)
        yield folder


@cache
def _program(path: str) -> str:
    """`path`: where to look."""
    found = shutil.which("git", path=path)
    if found is None:
        raise GitError("the program git is missing on this machine: install it (Debian: apt-get install git)")
    return found


def _shown(arguments: tuple[str | bytes, ...]) -> str:
    return os.fsdecode(arguments[0]) if arguments else ""
