"""Graders of repository tasks: the patch that the environment handed over must make the hidden tests pass in a fresh container.

How a patch becomes a verdict is `environments/swe/grading.py`. The reference of a problem names the task's folder.
"""

import asyncio
import difflib
import io
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from environments.containers.base import ImageMissing
from environments.containers.make import SharedContainers
from environments.records import Episode, Problem
from environments.swe.base_tree import BaseTree
from environments.swe.folder import read_task
from environments.swe.grading import PatchGrader, PatchVerdict
from environments.swe.records import Patch, PatchError, RepoTask, TreeChange
from rewards.score import Score, ScorePart, ScoreStatus
from rewards.swe_log import verdict_log

PASS_REWARD, FAIL_REWARD = 1.0, -1.0
SCALE = 2.0
"""CWM's: a pass gives -1 + scale."""
THRESHOLD = 0.5
"""Similarity from which a patch that fails gets -1 + threshold * scale. CWM does not publish its own."""
_MOST_CHARACTERS = 4000
"""Of the change of one file; larger ones are compared by lines."""
_MOST_TIMES, _MOST_MORE = 4, 1 << 16
"""A file that is so many times as large as it was or is to be, and so many bytes larger, is like nothing: to tell takes too long."""
_UNSEEN = frozenset((tokenize.COMMENT, tokenize.NL, tokenize.ENCODING))


class SweGrader:
    """+1 when every test that must pass does, else -1. The same patch of the same task is graded once and remembered.

    A missing engine or a failing one is `infra`; a task folder or image that is missing or broken is `ungradable`.
    """

    def __init__(self) -> None:
        self._shared: SharedContainers | None = None
        self._patches: PatchGrader | None = None

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        folder = problem.reference.get("folder")
        if not isinstance(folder, str):
            return _ungradable(problem, "its reference has no field 'folder' that names the task's folder")
        try:
            task = await asyncio.to_thread(read_task, Path(folder))
        except ValueError as error:
            return _ungradable(problem, str(error))
        try:
            patch = Patch.from_json(episode.outcome)
        except ValueError as error:
            return _failed(f"the patch is damaged: {error}")
        if patch is None:
            return _failed(f"not submitted (the episode ended with {episode.stop_reason.value})")
        try:
            verdict = await self._grader().grade(task, patch)
            ungradable = verdict.status == "ungradable"
            score = _ungradable(problem, verdict.reason) if ungradable else await self.score(task, patch, verdict)
            return replace(score, log=verdict_log(verdict))
        except ImageMissing as error:
            return _ungradable(problem, str(error))

    async def score(self, task: RepoTask, patch: Patch, verdict: PatchVerdict) -> Score:
        """What a verdict is worth; `grade` adds the log."""
        passed = verdict.status == "passed"
        return Score(
            reward=PASS_REWARD if passed else FAIL_REWARD,
            status=ScoreStatus.OK if passed else ScoreStatus.POLICY_FAIL,
            parts=_shares(verdict),
            reason=verdict.reason,
        )

    async def close(self) -> None:
        if self._patches is not None:
            await self._patches.close()
        if self._shared is not None:
            await self._shared.release()
        self._patches = self._shared = None

    def _containers(self) -> SharedContainers:
        if self._shared is None:
            self._shared = SharedContainers.take()
        return self._shared

    def _grader(self) -> PatchGrader:
        if self._patches is None:
            self._patches = PatchGrader(self._containers().containers)
        return self._patches


class CwmSweGrader(SweGrader):
    """CWM's hybrid: -1 + scale for a pass; -1 + threshold * scale for a patch that fails but is similar to the task's solution; else -1.

    Similar: the mean over the files that the solution changes of difflib's ratio between the two changes of the file: the lines that go
    and the lines that come. What stands around them is not compared, nor are whole files: they are alike before anything is done. A file
    that the patch leaves alone counts 0, and so does one in which nothing changes but comments and white space.
    """

    def __init__(self, *, scale: float = SCALE, threshold: float = THRESHOLD) -> None:
        super().__init__()
        self._scale, self._threshold = scale, threshold

    async def score(self, task: RepoTask, patch: Patch, verdict: PatchVerdict) -> Score:
        if verdict.status == "passed":
            return Score(reward=FAIL_REWARD + self._scale, status=ScoreStatus.OK, parts=_shares(verdict), reason=verdict.reason)
        similarity, told = await self._similarity(task, patch)
        near = similarity >= self._threshold
        return Score(
            reward=FAIL_REWARD + self._threshold * self._scale if near else FAIL_REWARD,
            status=ScoreStatus.POLICY_FAIL,
            parts={**_shares(verdict), "similarity": ScorePart(value=similarity, reason=told)},
            reason=verdict.reason,
        )

    async def _similarity(self, task: RepoTask, patch: Patch) -> tuple[float, str]:
        if task.gold.empty:
            return 0.0, "the task has no solution to compare with"
        if patch.empty:
            return 0.0, "the patch is empty"
        base = await BaseTree.of(task, self._containers().containers)
        gold = await base.apply(task.gold)
        try:
            changes = await base.apply(patch)
        except PatchError as error:
            return 0.0, str(error)
        before = await base.contents([change.path for change in gold])
        found = await asyncio.to_thread(similarity, changes, gold, before=before)
        return found, f"to the solution, in {len(gold)} files"


def similarity(changes: Sequence[TreeChange], gold: Sequence[TreeChange], *, before: Mapping[bytes, bytes]) -> float:
    """Mean likeness, from 0 to 1, of two sets of changes in the files of `gold`. `before`: contents in the base."""
    made = {change.path: change for change in changes}
    ratios = [_ratio(made.get(one.path), one, before=before.get(one.path, b"")) for one in gold]
    return sum(ratios) / len(ratios) if ratios else 0.0


def _ratio(change: TreeChange | None, gold: TreeChange, *, before: bytes) -> float:
    if change is None:
        return 0.0
    largest = _MOST_TIMES * max(len(before), len(gold.data)) + _MOST_MORE
    if change != gold and (len(change.data) > largest or _does_nothing(change, gold, before=before)):
        return 0.0
    made, wanted = _change_text(change, before=before), _change_text(gold, before=before)
    if not made or not wanted:
        return float(change == gold)
    if max(len(made), len(wanted)) <= _MOST_CHARACTERS:
        return difflib.SequenceMatcher(None, made, wanted, autojunk=False).ratio()
    return difflib.SequenceMatcher(None, made.splitlines(), wanted.splitlines()).ratio()


def _does_nothing(change: TreeChange, gold: TreeChange, *, before: bytes) -> bool:
    """Whether a change leaves the program as it was, and the solution does not."""
    if change.mode is None or not change.path.endswith(b".py"):
        return False
    return _program(change.data) == _program(before) != _program(gold.data)


def _program(data: bytes) -> list[tuple[int, str]] | bytes:
    """A Python file without its comments, blank lines and spaces; its bytes where it is none."""
    try:
        found = list(tokenize.tokenize(io.BytesIO(data).readline))
    except (tokenize.TokenError, SyntaxError, ValueError):
        return data
    space = (tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE)
    return [(one.type, "" if one.type in space else one.string) for one in found if one.type not in _UNSEEN]


def _change_text(change: TreeChange, *, before: bytes) -> str:
    """The lines that go and the lines that come, as in a unified diff; empty when nothing but the mode changed."""
    old, new = (data.decode(errors="replace").splitlines() for data in (before, change.data))
    lines = list(difflib.unified_diff(old, new, n=0, lineterm=""))[2:]
    return "\n".join(line for line in lines if not line.startswith("@@ "))


def _shares(verdict: PatchVerdict) -> dict[str, ScorePart]:
    if not verdict.tests:
        return {}
    return {
        "fail_to_pass": ScorePart(value=verdict.fail_to_pass, reason="share of the tests that must come to pass"),
        "pass_to_pass": ScorePart(value=verdict.pass_to_pass, reason="share of the tests that must still pass"),
    }


def _failed(reason: str) -> Score:
    return Score(reward=FAIL_REWARD, status=ScoreStatus.POLICY_FAIL, reason=reason)


def _ungradable(problem: Problem, why: str) -> Score:
    return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason=f"problem {problem.task.id}: {why}")
