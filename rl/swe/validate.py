"""`rl swe validate`: whether task folders are sound, by running them.

Sound: with the task's own solution all its tests pass; with nothing done none of fail_to_pass passes and all of pass_to_pass do; a patch
that only empties the tests fails; and all of that again in every repeat. A function that computes nothing must not pass either.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from environments.containers.base import Containers, ImageMissing
from environments.containers.make import SharedContainers
from environments.swe.base_tree import BaseTree
from environments.swe.factory.stubs import task_stubs
from environments.swe.folder import read_task
from environments.swe.grading import PatchVerdict, grade_patch, merged
from environments.swe.inside.modes import FILE
from environments.swe.records import Outcome, RepoTask, SuiteRequest, SuiteResult, TreeChange
from environments.swe.suite import run_suite
from rl.log.text import visible

_AT_ONCE = 4
"""Tasks; their containers wait for their turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What running a task showed."""

    task: str
    folder: str
    sound: bool
    reason: str
    """One line: what is wrong, or what was seen."""
    fail_to_pass: int
    """Tests."""
    pass_to_pass: int
    seconds: float


def validate_command(folders: Sequence[Path], *, repeat: int, as_json: bool) -> int:
    """Validate and print each task; 0 when all are sound, 1 when one is not. Raises ValueError, ContainerError, EngineUnavailable."""
    if repeat < 1:
        raise ValueError(f"--repeat is {repeat}; it must be at least 1")
    return asyncio.run(_validate_all(folders, repeat=repeat, as_json=as_json))


async def _validate_all(folders: Sequence[Path], *, repeat: int, as_json: bool) -> int:
    shared = SharedContainers.take()
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(folder: Path) -> Validation:
        async with turns:
            return await validate(shared.containers, folder, repeat=repeat)

    waiting = [asyncio.create_task(one(folder)) for folder in folders]
    sound = True
    try:
        for task in waiting:
            found = await task
            sound &= found.sound
            print(json.dumps(asdict(found)) if as_json else _line(found), flush=True)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await shared.release()
    return 0 if sound else 1


async def validate(containers: Containers, folder: Path, *, repeat: int) -> Validation:
    """Run one task. Raises ContainerError and EngineUnavailable; everything else is a reason."""
    started = time.monotonic()
    try:
        task = read_task(folder)
    except ValueError as error:
        return Validation(task=folder.name, folder=str(folder), sound=False, reason=str(error), fail_to_pass=0, pass_to_pass=0, seconds=0.0)
    try:
        fault = await _fault(containers, task, repeat=repeat)
    except ImageMissing as error:
        fault = str(error)
    n_pass = len(task.pass_to_pass)
    return Validation(
        task=task.id,
        folder=str(folder),
        sound=not fault,
        reason=fault or f"the solution passes, doing nothing fails, {repeat} times",
        fail_to_pass=len(task.fail_to_pass),
        pass_to_pass=n_pass,
        seconds=round(time.monotonic() - started, 3),
    )


async def _fault(containers: Containers, task: RepoTask, *, repeat: int) -> str:
    """What is wrong with a task; empty when it is sound."""
    if task.gold.empty:
        return "the task has no solution (solution/gold.patch is empty)"
    base = await BaseTree.of(task, containers)
    files = {test.partition("::")[0].encode("utf-8", "surrogateescape") for test in task.fail_to_pass}
    emptied = await base.patch_of([TreeChange(path=path, mode=FILE, data=_emptied(task, path)) for path in sorted(files)])
    verdict = await grade_patch(containers, task, emptied)
    if verdict.status != "failed":
        return f"a patch that only changes tests is {verdict.status}: {verdict.reason}"
    tests = tuple(dict.fromkeys((*task.fail_to_pass, *task.pass_to_pass)))
    request = SuiteRequest(changes=merged(task.overlay, task.test_changes), tests=tests, seconds=task.test_seconds)
    for turn in range(repeat):
        gold: PatchVerdict = await grade_patch(containers, task, task.gold)
        if gold.status != "passed":
            return f"run {turn + 1} of the solution: {gold.reason}"
        noop = await run_suite(containers, image=task.image, work_dir=task.work_dir, request=request)
        if found := _noop_fault(task, noop):
            return f"run {turn + 1} without a patch: {found}"
    return await _stub_fault(containers, task, base)


async def _stub_fault(containers: Containers, task: RepoTask, base: BaseTree) -> str:
    """Says when the broken function may compute nothing at all."""
    for value, change in task_stubs(task):
        verdict = await grade_patch(containers, task, await base.patch_of([change]))
        if verdict.status == "passed":
            return f"all tests pass when the broken function does nothing but return {value}"
    return ""


def _noop_fault(task: RepoTask, result: SuiteResult) -> str:
    outcomes = {test.id: test.outcome for test in result.tests}
    if already := [test for test in task.fail_to_pass if outcomes.get(test) is Outcome.PASSED]:
        return f"fail_to_pass test {already[0]} passes already"
    if result.ended == "finished" and (lost := [test for test in task.pass_to_pass if outcomes.get(test) is not Outcome.PASSED]):
        return f"pass_to_pass test {lost[0]} does not pass"
    return ""


def _emptied(task: RepoTask, path: bytes) -> bytes:
    """A test file in which every test of a task that stands at the module's top passes."""
    names = [test.split("::") for test in task.fail_to_pass if test.encode("utf-8", "surrogateescape").startswith(path + b"::")]
    functions = sorted({parts[1].partition("[")[0] for parts in names if len(parts) == 2})
    return "".join(f"def {name}(): pass\n" for name in functions).encode("utf-8", "surrogateescape")


def _line(found: Validation) -> str:
    state = "sound  " if found.sound else "unsound"
    return f"{state}  {visible(found.task, one_line=True):<40} {found.seconds:6.1f} s  {visible(found.reason, one_line=True)}"
