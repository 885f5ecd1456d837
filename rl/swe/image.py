"""`rl swe image`: from a repository to an image with its tests on record."""

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from environments.containers.base import Containers
from environments.containers.make import make_containers
from environments.swe.images.build import Built, adopt_image, build_image
from environments.swe.images.measure import measure, recorded
from environments.swe.images.record import write_image
from environments.swe.images.requirements import read_requirement_lines
from environments.swe.images.rootfs import ensure_python_image
from environments.swe.images.source import read_source, task_name
from environments.swe.records import RepoImage


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """What the command line asks for."""

    source: str
    name: str | None
    base: str | None
    out: Path
    runs: int
    requirements: tuple[str, ...] = ()


def image_command(
    source: str, *, name: str | None, base: str | None, requirements: Path | None, out: Path, runs: int, as_json: bool
) -> int:
    """Make the image, run its tests, write `NAME.json`. Progress goes to stderr. Raises ValueError and the engine's errors."""
    if runs < 1:
        raise ValueError(f"--runs is {runs}; it must be at least 1")
    try:
        further = read_requirement_lines(requirements.read_text()) if requirements is not None else ()
    except OSError as error:
        raise ValueError(f"--requirements: {requirements} cannot be read: {error.strerror}") from error
    request = ImageRequest(source=source, name=name, base=base, out=out, runs=runs, requirements=further)
    started = time.monotonic()
    record, size, path = asyncio.run(_make(request))
    seconds = time.monotonic() - started
    print(
        json.dumps(_summary(record, size=size, path=path, seconds=seconds))
        if as_json
        else _text(record, size=size, path=path, seconds=seconds)
    )
    return 0


async def _make(request: ImageRequest) -> tuple[RepoImage, int, Path]:
    containers = make_containers()
    try:
        built, name, origin = await _built(containers, request)
        _tell(f"image {built.image}: {'made' if built.fresh else 'it is there already'}")
        if built.left_out:
            _tell(f"no wheels were found of {', '.join(built.left_out)}: tests that import them will fail; see --requirements")
        record = await recorded(containers, built, runs=request.runs)
        if record is None:
            record = await measure(containers, built, name=name, source=origin, runs=request.runs, tell=_tell)
        else:
            _tell("its tests are on record already")
        path = request.out / f"{record.name}.json"
        write_image(record, path)
        return record, await containers.image_bytes(record.image), path
    finally:
        await containers.close()


async def _built(containers: Containers, request: ImageRequest) -> tuple[Built, str, str]:
    """The image, the repository's name, and where it came from."""
    if request.source.startswith("image:"):
        image = request.source.removeprefix("image:")
        if request.base is not None or request.requirements:
            raise ValueError("source is an image that has the repository; --base and --requirements are for other sources")
        name = task_name(request.name or re.sub(r"[:@].*", "", image.rpartition("/")[2]))
        return await adopt_image(containers, image, name=name), name, request.source
    base = request.base or await ensure_python_image(containers)
    source = await asyncio.to_thread(read_source, request.source, name=request.name)
    _tell(f"{source.origin}: {len(source.tree)} files, {source.base_commit}")
    own = request.base is None
    built = await build_image(containers, source, base=base, own_python=own, requirements=request.requirements, tell=_tell)
    return built, source.name, source.origin


def _summary(record: RepoImage, *, size: int, path: Path, seconds: float) -> dict[str, object]:
    return {
        "record": str(path),
        "image": record.image,
        "image_id": record.image_id,
        "name": record.name,
        "source": record.source,
        "base_commit": record.base_commit,
        "tests": len(record.tests),
        "flaky": list(record.flaky),
        "failing": list(record.failing),
        "covered_functions": len(record.covered),
        "suite_seconds": record.suite_seconds,
        "image_bytes": size,
        "seconds": round(seconds, 2),
    }


def _text(record: RepoImage, *, size: int, path: Path, seconds: float) -> str:
    lines = [
        f"image     {record.image}  {size / 1e6:.0f} MB",
        f"source    {record.source}  {record.base_commit}",
        f"tests     {len(record.tests)} kept, {len(record.flaky)} flaky, {len(record.failing)} failing; {record.suite_seconds:.1f} s a run",
        f"functions {len(record.covered)} entered by tests",
        f"record    {path}  ({seconds:.1f} s in all)",
    ]
    for kind, tests in (("flaky", record.flaky), ("failing", record.failing)):
        lines += [f"{kind}: {test}" for test in tests[:10]] + ([f"{kind}: {len(tests) - 10} more"] if len(tests) > 10 else [])
    return "\n".join(lines)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
