"""Runs tests of a repository in a fresh container: `run_suite`.

What a run is made of: the image's work folder, the changes over it as files of root, a process of the user `tester` that cannot write
them (`inside/suite_worker.py`), and a conversation in which this side says which test comes next (`suite_session.py`). The container is
gone before the result is there.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from environments.containers.base import Container, ContainerError, Containers, ContainerSpec
from environments.swe.changes import to_tar
from environments.swe.records import SuiteRequest, SuiteResult, TreeChange
from environments.swe.suite_session import Flag, SuiteSession

_PACKAGE = "environments.swe.inside"
_MODULES = ("suite_worker_paths", "suite_worker_decoys", "suite_worker_guard", "suite_worker_watch", "suite_worker")
_STAGE_SECONDS = 60.0
_MAKE_WAY = """
import os, shutil, sys
gone, put = ([path for path in part.split(b"\\0") if path] for part in sys.stdin.buffer.read().split(b"\\0\\0"))
for path in gone:
    if os.path.lexists(path):
        os.unlink(path)
    folder = os.path.dirname(path)
    while folder and os.path.isdir(folder) and not os.path.islink(folder) and not os.listdir(folder):
        os.rmdir(folder)
        folder = os.path.dirname(folder)
for path in put:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
"""
"""Run as the owner of the work folder, which root without capabilities is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardedRun:
    """A run of tests and what was seen beside them."""

    result: SuiteResult
    flags: tuple[Flag, ...]
    """Who of the tree's code, tests aside, looked into the process."""


async def run_suite(containers: Containers, *, image: str, work_dir: str, request: SuiteRequest) -> SuiteResult:
    """Run tests on an image with changes. Whatever the code under test does is in the result.

    Raises ContainerError when the engine fails, ImageMissing and EngineUnavailable.
    """
    return (await run_guarded(containers, image=image, work_dir=work_dir, request=request)).result


async def run_guarded(
    containers: Containers, *, image: str, work_dir: str, request: SuiteRequest, new_names: Collection[str] = ()
) -> GuardedRun:
    """As `run_suite`. `new_names`: paths that the base does not have; one that hides an installed module makes the run `tampered`."""
    started = time.monotonic()
    spec = ContainerSpec(
        image=image, command=("python3", "-I", "-c", worker_program(coverage=request.coverage)), user="tester", work_dir=work_dir
    )
    container = await containers.start(spec)
    session = SuiteSession(container, request, new_names=new_names)
    try:
        await _stage(container, request.changes, work_dir=work_dir)
        await session.run()
    finally:
        await asyncio.shield(container.remove())
    return GuardedRun(result=replace(session.result(), seconds=time.monotonic() - started), flags=session.flags)


@cache
def worker_program(*, coverage: bool = False) -> str:
    """Source of a container's main process: the modules of `inside` that it needs, put together."""
    folder = Path(__file__).parent / "inside"
    names = (*_MODULES, "coverage") if coverage else _MODULES
    sources = {f"{_PACKAGE}.{name}": (folder / f"{name}.py").read_text() for name in names}
    lines = [
        "import sys, types",
        f"for name, source in {sources!r}.items():",
        "    module = sys.modules[name] = types.ModuleType(name)",
        "    exec(compile(source, f'<{name.rpartition(\".\")[2]}>', 'exec'), module.__dict__)",
        f"worker = sys.modules[{_PACKAGE + '.suite_worker'!r}]",
        *([f"worker.RECORDER = sys.modules[{_PACKAGE + '.coverage'!r}].FunctionRecorder"] if coverage else []),
        "del name, source, module",
        "worker.main()",
    ]
    return "\n".join(lines)


async def _stage(container: Container, changes: Sequence[TreeChange], *, work_dir: str) -> None:
    """Bring the changes into the work folder."""
    gone = [change.path for change in changes if change.mode is None]
    if gone:
        put = [change.path for change in changes if change.mode is not None]
        data = b"\0".join(gone) + b"\0\0" + b"\0".join(put)
        done = await container.exec(["python3", "-I", "-c", _MAKE_WAY], stdin=data, seconds=_STAGE_SECONDS, user="agent")
        if done.exit_code != 0:
            raise ContainerError(f"files could not be removed before the tests: {done.errors.decode(errors='replace')[-300:]}")
    if len(gone) < len(changes):
        await container.put(work_dir, to_tar(changes, uid=0, folders=True))
