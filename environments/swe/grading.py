"""How a patch becomes a verdict: `grade_patch`, and `PatchGrader`, which remembers.

The patch is applied to the base on the host; what it does to tests and to their settings is put back; what is left is read; then the
tests run in a fresh container, and every test that must pass has to have passed in a run that came to its end.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from environments.containers.base import Containers
from environments.swe.base_tree import BaseTree
from environments.swe.changes import parents
from environments.swe.inside.droppings import is_dropping
from environments.swe.inside.suite_worker_paths import is_setting_path, is_test_path
from environments.swe.patch_scan import judge_flags, scan_changes
from environments.swe.records import Outcome, Patch, PatchError, RepoTask, SuiteRequest, TestOutcome, TreeChange
from environments.swe.suite import run_guarded
from environments.swe.tree_tar import shown

_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchVerdict:
    """What a patch is worth."""

    status: Literal["passed", "failed", "ungradable"]
    """ungradable: the task itself is broken."""
    reason: str
    """One line."""
    tests: tuple[TestOutcome, ...] = ()
    """All tests that must pass; empty when none was run."""
    fail_to_pass: float = 0.0
    """Share of these tests that passed, of a run that finished."""
    pass_to_pass: float = 0.0
    overruled: tuple[str, ...] = ()
    """Paths that the patch changes and that were put back: tests, and what settles how they run."""
    told: tuple[str, ...] = ()
    """What a person may want to look at."""
    output: str = ""
    """The last lines that the run printed."""
    seconds: float = field(default=0.0, compare=False)


async def grade_patch(containers: Containers, task: RepoTask, patch: Patch) -> PatchVerdict:
    """Grade one patch. Whatever is in it is a verdict. Raises ContainerError when the engine fails, ImageMissing, EngineUnavailable."""
    verdict = await _grade(containers, task, patch)
    return _blamed(verdict, await _grade(containers, task, task.gold)) if _may_be_the_tasks_fault(verdict, task, patch) else verdict


class PatchGrader:
    """Grades patches on one connection to an engine; the same patch of the same task is graded once and remembered."""

    def __init__(self, containers: Containers, *, cache_size: int = 4096) -> None:
        self._containers, self._cache_size = containers, cache_size
        self._cache: OrderedDict[str, asyncio.Task[PatchVerdict]] = OrderedDict()

    async def grade(self, task: RepoTask, patch: Patch) -> PatchVerdict:
        """As `grade_patch`; joins a grading of the same that is under way. Failures of the engine are not remembered."""
        key = hashlib.sha256(repr((task, patch)).encode("utf-8", "surrogateescape")).hexdigest()
        running = self._cache.get(key)
        if running is None:
            running = self._cache[key] = asyncio.create_task(self._grade(task, patch))
        self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        try:
            return await asyncio.shield(running)
        finally:
            if running.done() and (running.cancelled() or running.exception() is not None) and self._cache.get(key) is running:
                del self._cache[key]

    async def _grade(self, task: RepoTask, patch: Patch) -> PatchVerdict:
        verdict = await _grade(self._containers, task, patch)
        return _blamed(verdict, await self.grade(task, task.gold)) if _may_be_the_tasks_fault(verdict, task, patch) else verdict

    async def close(self) -> None:
        """End what is under way."""
        for task in self._cache.values():
            task.cancel()
        await asyncio.gather(*self._cache.values(), return_exceptions=True)
        self._cache.clear()


async def _grade(containers: Containers, task: RepoTask, patch: Patch) -> PatchVerdict:
    if not task.fail_to_pass:
        return PatchVerdict(status="ungradable", reason="the task names no test that the patch must make pass")
    if patch.empty:
        return PatchVerdict(status="failed", reason="the patch is empty")
    base = await BaseTree.of(task, containers)
    try:
        changes = await base.apply(patch)
    except PatchError as error:
        return PatchVerdict(status="failed", reason=str(error))
    kept, overruled = split_changes(changes, task=task, known=await base.paths())
    names = tuple(shown(change.path) for change in overruled)
    if not kept:
        what = f"changes nothing but tests or their settings ({_some(names)})" if overruled else "changes nothing"
        return PatchVerdict(status="failed", reason=f"the patch {what}", overruled=names)
    scan = scan_changes(kept, base=await base.contents([change.path for change in kept]))
    if scan.refused:
        return PatchVerdict(status="failed", reason=f"refused: {scan.refused}", overruled=names)
    tests = tuple(dict.fromkeys((*task.fail_to_pass, *task.pass_to_pass)))
    run = await run_guarded(
        containers,
        image=base.image_id,
        work_dir=task.work_dir,
        request=SuiteRequest(changes=merged(task.overlay, kept, task.test_changes), tests=tests, seconds=task.test_seconds),
        new_names=await base.new_names(kept),
    )
    result = run.result
    passed = result.passed()
    explained = await base.contents([flag.path.encode("utf-8", "surrogateescape") for flag in run.flags])
    refusal = judge_flags(run.flags, base=explained)
    if result.ended != "finished":
        reason = f"the tests did not finish ({result.ended}): {result.reason}"
    elif refusal:
        passed, reason = frozenset(), f"refused: {refusal}"
    else:
        reason = _told(task, passed=passed, tests=result.tests)
    return PatchVerdict(
        status="passed" if not reason else "failed",
        reason=reason or f"all {len(tests)} tests passed",
        tests=result.tests,
        fail_to_pass=_share(task.fail_to_pass, passed),
        pass_to_pass=_share(task.pass_to_pass, passed),
        overruled=names,
        told=scan.told,
        output=result.output,
        seconds=result.seconds,
    )


def split_changes(
    changes: Sequence[TreeChange], *, task: RepoTask, known: Collection[bytes] = ()
) -> tuple[tuple[TreeChange, ...], tuple[TreeChange, ...]]:
    """What a patch changes: what counts, and what is put back because it is a test or settles how tests run.

    What tools leave behind is put back too where the base does not have it (`known`: its paths): the image may have it all the same. So
    is what stands in the way of a file that is put back: a file or link in place of a folder above it, or a path below it.
    """
    asked = {test.partition("::")[0].encode("utf-8", "surrogateescape") for test in (*task.fail_to_pass, *task.pass_to_pass)}
    put = asked | {change.path for change in task.test_changes}

    def is_put_back(path: bytes) -> bool:
        text = path.decode("utf-8", "surrogateescape")
        return path in put or is_test_path(text) or is_setting_path(text)

    protected = put | {path for path in known if is_put_back(path)}
    above = {parent for path in protected for parent in parents(path)}
    kept: list[TreeChange] = []
    overruled: list[TreeChange] = []
    for change in changes:
        is_test = is_put_back(change.path) or change.path in above or any(parent in protected for parent in parents(change.path))
        is_test = is_test or (change.path not in known and is_dropping(change.path + b"/x"))
        (overruled if is_test else kept).append(change)
    return tuple(kept), tuple(overruled)


def merged(*layers: Sequence[TreeChange]) -> tuple[TreeChange, ...]:
    """Changes over changes; the last word on a path counts, and a file that takes a folder's place, or the other way round, its whole."""
    found: dict[bytes, TreeChange] = {}
    for layer in layers:
        for change in layer:
            if change.mode is not None:
                for path in [path for path in found if path.startswith(change.path + b"/") or change.path.startswith(path + b"/")]:
                    if found[path].mode is not None:
                        found[path] = TreeChange(path=path, mode=None)
            found[change.path] = change
    return tuple(found.values())


def _may_be_the_tasks_fault(verdict: PatchVerdict, task: RepoTask, patch: Patch) -> bool:
    """Tests that are not there can be missing from the task's image; its own solution shows it."""
    missing = any(test.outcome is Outcome.MISSING for test in verdict.tests)
    return verdict.status == "failed" and missing and not task.gold.empty and patch != task.gold


def _blamed(verdict: PatchVerdict, gold: PatchVerdict) -> PatchVerdict:
    """The verdict, unless the task's own solution fails as well."""
    if gold.status == "passed":
        return verdict
    return PatchVerdict(status="ungradable", reason=f"the task's own solution does not pass: {gold.reason}", tests=verdict.tests)


def _told(task: RepoTask, *, passed: frozenset[str], tests: Sequence[TestOutcome]) -> str:
    """Why tests that must pass did not; empty when all did."""
    outcomes = {test.id: test.outcome for test in tests}
    parts = []
    for name, wanted in (("fail_to_pass", task.fail_to_pass), ("pass_to_pass", task.pass_to_pass)):
        missed = [f"{test} {outcomes.get(test, Outcome.MISSING).value}" for test in wanted if test not in passed]
        if missed:
            parts.append(f"{len(missed)} of {len(wanted)} {name} tests did not pass: {_some(missed)}")
    return "; ".join(parts)


def _share(tests: Sequence[str], passed: frozenset[str]) -> float:
    return sum(test in passed for test in tests) / len(tests) if tests else 1.0


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
