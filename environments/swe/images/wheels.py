"""Wheels from the host's pip for an image's Python: fetched, never built, so that no package's code runs on the host."""

import asyncio
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 900


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetPython:
    """The interpreter of an image."""

    version: str
    """`3.11`"""
    markers: Mapping[str, str]
    """PEP 508's variables in the image."""
    platforms: tuple[str, ...]
    """For `pip download --platform`, best first; empty when it is this host's own Python."""


async def download_wheels(requirements: Sequence[str], *, python: TargetPython, folder: Path) -> str:
    """Put the wheels of these requirements and of all that they need into `folder`. Why that failed; empty when it did not."""
    if not requirements:
        return ""
    if addresses := [one for one in requirements if "@" in one]:
        return f"{addresses[0]!r} names an address: only what the index has as a wheel is taken"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--no-input", "--dest", str(folder)]
    if python.platforms:
        command += ["--implementation", "cp", "--python-version", python.version]
        command += [word for platform in python.platforms for word in ("--platform", platform)]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    process = await asyncio.create_subprocess_exec(
        *command,
        *requirements,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        return f"pip did not finish within {_SECONDS} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return ""
    lines = [line for line in output.decode(errors="replace").splitlines() if line.startswith("ERROR")]
    return lines[-1].removeprefix("ERROR: ") if lines else output.decode(errors="replace").strip()[-300:]


async def download_what_is_there(
    requirements: Sequence[str], *, with_runtime: Sequence[str], python: TargetPython, folder: Path
) -> tuple[str, ...]:
    """Wheels of those requirements that can be had together with `with_runtime`; which ones these are."""
    if not await download_wheels([*with_runtime, *requirements], python=python, folder=folder):
        return tuple(requirements)
    kept: list[str] = []
    for one in requirements:
        if not await download_wheels([*with_runtime, *kept, one], python=python, folder=folder):
            kept.append(one)
    return tuple(kept)


def wheel_files(folder: Path) -> dict[str, bytes]:
    """Name and content, sorted."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.whl"))}


def digest_of_wheels(wheels: Mapping[str, bytes]) -> str:
    return hashlib.sha256(repr([(name, hashlib.sha256(data).hexdigest()) for name, data in wheels.items()]).encode()).hexdigest()
