"""Runs tests of a repository in a fresh container: `run_suite`.

What a run is made of: the image's work folder, the changes over it as files of root, a process of the user `tester` that cannot write
them (`inside/suite_worker.py`), and a conversation in which this side says which test comes next (`suite_session.py`). The container is
gone before the result is there.
"""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from environments.containers.base import Containers, ContainerSpec
from environments.swe.records import SuiteRequest, SuiteResult
from environments.swe.staging import ChangesUnfit, as_files, boot_command, program_frame, stage
from environments.swe.suite_session import Flag, SuiteSession

_MODULES = (
    "runner_modules",
    "json_text",
    *(
        f"suite_worker{part}"
        for part in ("_paths", "_decoys", "_asserts", "_guard", "_watch", "_quick", "_shadows", "_signals", "_channel", "")
    ),
)
_RUN = "import site; site.main(); sys.modules['environments.swe.inside.suite_worker'].main()"
_RUN_COVERED = f"sys.modules['environments.swe.inside.suite_worker'].RECORDER = module.FunctionRecorder; {_RUN}"


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
    spec = ContainerSpec(image=image, command=boot_command(), user="tester", work_dir=work_dir, fills=True)
    container = await containers.start(spec)
    session = SuiteSession(container, request, new_names=new_names)
    try:
        await stage(
            containers,
            container,
            image=image,
            work_dir=work_dir,
            program=_program(coverage=request.coverage),
            changes=as_files(request.changes),
        )
        await session.run()
    except ChangesUnfit as error:
        session.refuse(str(error))
    finally:
        await asyncio.shield(container.remove())
    return GuardedRun(result=replace(session.result(), seconds=time.monotonic() - started), flags=session.flags)


def _program(*, coverage: bool) -> bytes:
    """What a container's main process runs."""
    if coverage:
        return program_frame((*_MODULES, "coverage"), after=_RUN_COVERED)
    return program_frame(_MODULES, after=_RUN)
