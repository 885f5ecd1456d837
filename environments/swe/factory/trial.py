"""Tries a mutant on the repository's own tests: does a test notice it, always the same ones, and does the gold patch undo it?"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import Enum

from environments.swe.factory.gold import patched, restoring_patch
from environments.swe.factory.mutations import Mutant
from environments.swe.factory.repository import Target
from environments.swe.factory.stubs import stubs
from environments.swe.records import Outcome, Patch, PatchError, RepoImage, SuiteRequest, SuiteResult, TestOutcome, TreeChange

RunSuite = Callable[[SuiteRequest], Awaitable[SuiteResult]]
"""`run_suite` of one image."""
RUNS = 3
"""Of the broken and of the repaired code, which must agree."""
_LEAST_SECONDS, _TIMES = 20.0, 4.0
MOST_FAILING = 0.5
"""A mutant that fails more of the tests than this broke the repository, not a behaviour."""


class Fell(Enum):
    """Why a candidate became no task."""

    SAME_TEXT = "the same text as another candidate"
    NO_PARSE = "does not parse"
    EQUIVALENT = "the same program as before"
    NO_FAILURE = "no test fails"
    MANY_FAILURES = "more than half of the tests fail"
    TIMEOUT = "a run did not end in time"
    CRASH = "a run did not reach its end"
    SIMILAR = "too much like another task"
    HOLLOW = "a function that computes nothing passes its tests"
    UNSTABLE = "runs differ"
    GOLD_FAILS = "the gold patch does not repair it"


@dataclass(frozen=True, kw_only=True)
class Noticed:
    """A mutant that tests notice."""

    target: Target
    mutant: Mutant
    failing: tuple[TestOutcome, ...]
    """Stable tests that do not pass, in the image's order."""

    @property
    def overlay(self) -> TreeChange:
        """The broken file."""
        return TreeChange(path=self.mutant.source.path.encode(), mode=self.target.mode, data=self.mutant.data)


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Trials of mutants of one image."""

    image: RepoImage
    run: RunSuite
    seconds: float
    """Deadline of one run."""

    @staticmethod
    async def of(image: RepoImage, *, run: RunSuite, at_once: int) -> "Trials":
        """Runs the unbroken tests `at_once` times together, which gives the deadline: a few times what the slowest of them took on this
        machine under this load. Raises ValueError when they do not all pass."""
        results = await asyncio.gather(*(run(SuiteRequest(tests=tuple(image.tests), seconds=600.0)) for _ in range(at_once)))
        for result in results:
            failing = _failing(result, image)
            if result.ended != "finished" or failing:
                problem = (
                    f"{len(failing)} of {len(image.tests)} tests do not pass, for example {failing[0].id}" if failing else result.reason
                )
                raise ValueError(f"the tests of {image.image} do not pass as they are ({problem}): run rl swe image again")
        return Trials(image=image, run=run, seconds=_LEAST_SECONDS + _TIMES * max(result.seconds for result in results))

    async def first_look(self, target: Target, mutant: Mutant) -> Noticed | Fell:
        """The tests that enter the function, and if one of them fails, all tests once."""
        changes = (TreeChange(path=mutant.source.path.encode(), mode=target.mode, data=mutant.data),)
        covering = await self._run(changes, target.tests)
        if fell := _ended_badly(covering):
            return fell
        if covering.passed() >= set(target.tests):
            return Fell.NO_FAILURE
        whole = await self._run(changes, tuple(self.image.tests))
        if fell := _ended_badly(whole):
            return fell
        failing = _failing(whole, self.image)
        if not failing:
            return Fell.UNSTABLE
        if len(failing) > max(1, MOST_FAILING * len(self.image.tests)):
            return Fell.MANY_FAILURES
        return Noticed(target=target, mutant=mutant, failing=failing)

    async def confirm(self, noticed: Noticed) -> Patch | Fell:
        """The gold patch, when its tests want more than a constant and all further runs agree: the same tests fail with the mutant, and
        none with the patch."""
        if await self._hollow(noticed):
            return Fell.HOLLOW
        fixed = TreeChange(path=noticed.overlay.path, mode=noticed.overlay.mode, data=noticed.mutant.source.data)
        patch = restoring_patch(broken=noticed.overlay, fixed=fixed)
        try:
            repaired = patched(noticed.overlay, patch)
        except PatchError:
            return Fell.GOLD_FAILS
        every = tuple(self.image.tests)
        changes = [noticed.overlay] * (RUNS - 1) + [repaired] * RUNS
        results = await asyncio.gather(*(self._run((change,), every) for change in changes))
        if fell := next((fell for result in results if (fell := _ended_badly(result))), None):
            return fell
        names = [test.id for test in noticed.failing]
        if any([test.id for test in _failing(result, self.image)] != names for result in results[: RUNS - 1]):
            return Fell.UNSTABLE
        return Fell.GOLD_FAILS if any(_failing(result, self.image) for result in results[RUNS - 1 :]) else patch

    async def _hollow(self, noticed: Noticed) -> bool:
        """Whether a stand-in for the function passes the tests that notice the mutant, and then all tests that enter the function."""
        target, noticing = noticed.target, tuple(test.id for test in noticed.failing)
        changes = [replace(noticed.overlay, data=stub.data) for stub in stubs(target.source, target.function)]
        for tests in (noticing, target.tests):
            results = await asyncio.gather(*(self._run((change,), tests) for change in changes))
            changes = [change for change, result in zip(changes, results, strict=True) if result.passed() >= set(tests)]
        return bool(changes)

    async def _run(self, changes: tuple[TreeChange, ...], tests: tuple[str, ...]) -> SuiteResult:
        return await self.run(SuiteRequest(changes=changes, tests=tests, seconds=self.seconds))


def _ended_badly(result: SuiteResult) -> Fell | None:
    if result.ended == "finished":
        return None
    return Fell.TIMEOUT if result.ended == "timeout" else Fell.CRASH


def _failing(result: SuiteResult, image: RepoImage) -> tuple[TestOutcome, ...]:
    """The stable tests that did not pass, those without a verdict too, in the image's order."""
    by_id = {test.id: test for test in result.tests}
    outcomes = (by_id.get(test, TestOutcome(id=test, outcome=Outcome.MISSING)) for test in image.tests)
    return tuple(outcome for outcome in outcomes if outcome.outcome is not Outcome.PASSED)
