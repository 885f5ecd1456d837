"""Makes a repository's image: from a source and its wheels on a base image, or from an image that already holds the repository.

Everything that executes code of a package runs in a container without network: metadata in a hardened one that is thrown away, the
installation in a build container whose root becomes the image. The reference names a digest of all inputs, so equal inputs give no second
image.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from environments.containers.base import Container, ContainerError, ContainerLimits, Containers, ContainerSpec, ImageMissing
from environments.swe.changes import to_tar
from environments.swe.images.kept_modules import SOURCE as KEPT_MODULES
from environments.swe.images.kept_modules import keeping_modules
from environments.swe.images.record import LABEL, RUNS_LABEL
from environments.swe.images.requirements import Metadata, build_requirements, find_needs, has_build
from environments.swe.images.source import Source
from environments.swe.images.tree import digest_of
from environments.swe.images.wheels import TargetPython, digest_of_wheels, download_what_is_there, download_wheels, wheel_files
from environments.swe.inside.modes import FILE
from environments.swe.records import WORK_DIR, TreeChange

_SCRIPT = Path(__file__).parent.parent / "inside" / "repository.py"
_FOLDER = "codeworld-build"
_MTIME = 1_577_836_800
"""Of all source files: the same in each build."""
_PROBE_SECONDS, _METADATA_SECONDS, _BUILD_SECONDS = 60.0, 300.0, 1200.0
_PROBE_LIMITS = ContainerLimits(memory_mb=2048, disk_mb=512)
_WAIT = "import sys; sys.stdin.read()"
_NO_SUCH_PROGRAM = ("no such file or directory", "not found in $PATH", "executable file")
"""What engines' runtimes say when the image lacks the command."""
_OLDEST_PIP = Version("22.2")
"""The first that reports what it would install."""
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """An image that was made, or was there already."""

    image: str
    image_id: str
    base_commit: str
    fresh: bool
    """It was made now."""
    left_out: tuple[str, ...] = ()
    """Requirements of the tests of which no wheel could be had."""


async def build_image(
    containers: Containers, source: Source, *, base: str, own_python: bool, requirements: Sequence[str] = (), tell: Tell
) -> Built:
    """The image of a source. `own_python`: the base has this host's Python (`rootfs.py`); `requirements`: further ones, which the
    image must have.

    Raises ValueError when the base is unfit, wheels are missing, or the build fails; and the engine's errors.
    """
    base_id = await containers.image_id(base)
    python = _target(base, await _probe(containers, base), own_python=own_python)
    variables = {"SETUPTOOLS_SCM_PRETEND_VERSION": "0.0.0"} if source.is_git else {}
    with tempfile.TemporaryDirectory(prefix="codeworld-rl-wheels-") as name:
        folder = Path(name)
        build = build_requirements(source.tree, python=python.markers)
        await _required(build, "is built with", python=python, folder=folder, source=source)
        metadata = await _metadata(containers, source, base=base, build=build, variables=variables, wheels=folder)
        needs = find_needs(source.tree, metadata, python=python.markers)
        runtime = (*needs.runtime, *requirements)
        await _required(runtime, "needs", python=python, folder=folder, source=source)
        tell(f"dependencies: {', '.join(runtime) or 'none'}; for the tests: {', '.join(needs.tests) or 'none'}")
        tests = await download_what_is_there(needs.tests, with_runtime=runtime, python=python, folder=folder)
        wheels = wheel_files(folder)
    plan = {
        "folder": f"/{_FOLDER}",
        "tree": f"/{_FOLDER}/tree",
        "wheels": f"/{_FOLDER}/wheels",
        "work_dir": WORK_DIR,
        "name": source.name,
        "requirements": [*runtime, *tests],
        "build": list(build),
        "is_distribution": metadata is not None,
        "variables": variables,
    }
    inputs = (
        base_id,
        source.origin,
        source.base_commit,
        digest_of(source.tree),
        digest_of_wheels(wheels),
        plan,
        _SCRIPT.read_text(),
        KEPT_MODULES,
    )
    image = f"codeworld-rl/{_reference_part(source.name)}:{hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]}"
    left_out = tuple(one for one in needs.tests if one not in tests)
    with contextlib.suppress(ImageMissing):
        image_id = await containers.image_id(image)
        return Built(image=image, image_id=image_id, base_commit=source.base_commit, fresh=False, left_out=left_out)
    files = _pack(source.tree, plan=plan, wheels=wheels)
    command = ("python3", "-I", f"/{_FOLDER}/repository.py", "install", f"/{_FOLDER}/plan.json")
    await _build(containers, base=base, image=image, command=command, files=files, what=source.origin)
    return Built(image=image, image_id=await containers.image_id(image), base_commit=source.base_commit, fresh=True, left_out=left_out)


async def adopt_image(containers: Containers, base: str, *, name: str) -> Built:
    """An image that has the repository at /testbed with its dependencies, without the history. Raises ValueError."""
    base_id = await containers.image_id(base)
    await _probe(containers, base)
    async with _started(containers, base) as container:
        told = await container.exec(["git", "-c", "safe.directory=*", "rev-parse", "HEAD"], seconds=_PROBE_SECONDS)
    commit = told.output.decode().strip() if told.exit_code == 0 else base_id
    digest = hashlib.sha256(f"{base_id} {_SCRIPT.read_text()} {KEPT_MODULES}".encode()).hexdigest()[:12]
    image = f"codeworld-rl/{_reference_part(name)}:{digest}"
    with contextlib.suppress(ImageMissing):
        return Built(image=image, image_id=await containers.image_id(image), base_commit=commit, fresh=False)
    command = ("python3", "-I", "-c", _SCRIPT.read_text(), "strip", WORK_DIR)
    await _build(containers, base=base, image=image, command=command, files=None, what=base)
    return Built(image=image, image_id=await containers.image_id(image), base_commit=commit, fresh=True)


@contextlib.asynccontextmanager
async def _started(containers: Containers, image: str) -> AsyncIterator[Container]:
    """A container to ask things of, gone at the end."""
    spec = ContainerSpec(image=image, command=("python3", "-I", "-c", _WAIT), work_dir=WORK_DIR, limits=_PROBE_LIMITS)
    container = await containers.start(spec)
    try:
        yield container
    finally:
        await container.remove()


async def _probe(containers: Containers, base: str) -> dict[str, Any]:
    """What `inside/repository.py` says of the image. Raises ValueError for one that cannot be used."""
    problem = f"image {base} has no python3 that works, which an image to build on must hold, with pip, and bash"
    try:
        about = await _ask(containers, base, ["about"], seconds=_PROBE_SECONDS, problem=problem)
    except ContainerError as error:
        if not any(sign in str(error) for sign in _NO_SUCH_PROGRAM):
            raise
        raise ValueError(f"{problem}: {error}") from error
    if not about["bash"]:
        raise ValueError(f"image {base} has no bash; an image to build on must hold it, and python3 with pip")
    return about


def _target(base: str, about: Mapping[str, Any], *, own_python: bool) -> TargetPython:
    """The image's Python, for pip. Raises ValueError when its pip is not fit for the build."""
    if not about["pip"] or Version(about["pip"]) < _OLDEST_PIP:
        raise ValueError(f"image {base} has {about['pip'] or 'no'} pip for its python3; it must be {_OLDEST_PIP} or newer")
    markers = about["markers"]
    platforms = () if own_python else _platforms(about["libc"], about["libc_version"], markers["platform_machine"])
    return TargetPython(version=markers["python_version"], markers=markers, platforms=platforms)


def _platforms(libc: str, version: str, machine: str) -> tuple[str, ...]:
    """Platform tags of wheels that run there, newest first."""
    if libc != "glibc":
        return tuple(f"musllinux_1_{minor}_{machine}" for minor in (2, 1, 0))
    minor = int(version.split(".")[1])
    return (
        *(f"manylinux_2_{one}_{machine}" for one in range(minor, 4, -1)),
        *(f"manylinux{old}_{machine}" for old in ("2014", "2010", "1")),
    )


async def _metadata(
    containers: Containers, source: Source, *, base: str, build: Sequence[str], variables: dict[str, str], wheels: Path
) -> Metadata | None:
    """What the repository's build backend says of it; None for one that is no distribution. Raises ValueError."""
    if not has_build(source.tree):
        return None
    files = _pack(source.tree, plan={}, wheels=wheel_files(wheels))
    words = [
        "metadata",
        f"{WORK_DIR}/{_FOLDER}/tree",
        f"{WORK_DIR}/{_FOLDER}/wheels",
        json.dumps({"build": list(build), "variables": variables}),
    ]
    problem = f"the metadata of {source.origin} cannot be made"
    found = await _ask(containers, base, words, files=files, seconds=_METADATA_SECONDS, problem=problem)
    return Metadata(name=str(found["name"]), requires=tuple(map(str, found["requires"])))


async def _ask(
    containers: Containers, image: str, words: Sequence[str], *, files: bytes | None = None, seconds: float, problem: str
) -> dict[str, Any]:
    """The answer of `inside/repository.py` in a container without network. Raises ValueError that begins with `problem`."""
    async with _started(containers, image) as container:
        if files is not None:
            await container.put(WORK_DIR, files)
        result = await container.exec(["python3", "-I", "-c", _SCRIPT.read_text(), *words], seconds=seconds, output_bytes=1 << 24)
    if result.exit_code is None:
        raise ValueError(f"{problem}: no end after {seconds:g} s")
    if result.exit_code != 0:
        raise ValueError(f"{problem}: {_tail(result.errors) or _tail(result.output)}")
    answer = json.loads(result.output.decode(errors="replace").splitlines()[-1])
    if not isinstance(answer, dict):
        raise ValueError(f"{problem}: it answered {answer!r}")
    return answer


async def _required(requirements: Sequence[str], verb: str, *, python: TargetPython, folder: Path, source: Source) -> None:
    if reason := await download_wheels(requirements, python=python, folder=folder):
        raise ValueError(f"{source.origin} {verb} {', '.join(requirements)}, of which not all can be had as wheels: {reason}")


async def _build(containers: Containers, *, base: str, image: str, command: Sequence[str], files: bytes | None, what: str) -> None:
    labels = {LABEL: "", RUNS_LABEL: ""}  # a record of what it is built on is not its own
    result = await containers.build_step(
        base=base, image=image, command=keeping_modules(command), files=files, labels=labels, seconds=_BUILD_SECONDS
    )
    if result.exit_code is None:
        raise ValueError(f"the build of {what} did not end within {_BUILD_SECONDS:g} s")
    if result.exit_code != 0:
        raise ValueError(f"the build of {what} failed: {_tail(result.errors) or _tail(result.output)}")


def _pack(tree: Sequence[TreeChange], *, plan: dict[str, Any], wheels: dict[str, bytes]) -> bytes:
    """One tar with the source, the wheels, the script and its plan below one folder."""
    entries = [TreeChange(path=b"tree/" + change.path, mode=change.mode, data=change.data) for change in tree]
    entries += [TreeChange(path=f"wheels/{name}".encode(), mode=FILE, data=data) for name, data in wheels.items()]
    entries += [TreeChange(path=b"plan.json", mode=FILE, data=json.dumps(plan).encode())]
    entries += [TreeChange(path=b"repository.py", mode=FILE, data=_SCRIPT.read_bytes())]
    return to_tar(entries, folder=_FOLDER, mtime=_MTIME, folders=True)


def _reference_part(name: str) -> str:
    """Of an image's reference: small letters, digits, single separators."""
    part = "-".join(filter(None, "".join(letter if letter.isalnum() else "-" for letter in name.lower()).split("-")))
    return f"repo-{part}"


def _tail(output: bytes) -> str:
    return output.decode(errors="replace").strip()[-1500:]
