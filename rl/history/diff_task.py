"""One task across policy versions: pass rate, length, and where what the policy says first parts from the version before.

Two versions part where no rollout of the one follows one of the other any further: the pair with the longest common beginning is shown.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rl.history.diff_pair import parting_json, parting_lines
from rl.log.nearest import nearest
from rl.log.text import visible
from rl.view.groups import Comparison, compare
from rl.view.open_run import OpenRun, Row
from rl.view.tasks import Chapter, biography
from rl.view.tokens import TokenTexts, first_difference, sampled_start


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A task at one policy version."""

    chapter: Chapter
    parting: Comparison | None
    """From the version before, whose rollout is on the left; None for the first one."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        chapter = self.chapter
        return {
            "version": chapter.version,
            "rollouts": len(chapter.rollouts),
            "passed": chapter.won,
            "graded": chapter.graded,
            "pass_rate": chapter.won / chapter.graded if chapter.graded else None,
            "interval_95": [chapter.low, chapter.high],
            "reward": chapter.reward,
            "sampled_tokens": chapter.tokens,
            "first_difference": parting_json(self.parting) if self.parting is not None else None,
        }

    def lines(self) -> list[str]:
        """For a person."""
        chapter = self.chapter
        rate = f"{chapter.won}/{chapter.graded} passed [{chapter.low:.3f}, {chapter.high:.3f}]" if chapter.graded else "none graded"
        reward = "" if chapter.reward is None else f", mean reward {chapter.reward:.4g}"
        lines = [f"version {chapter.version}: {rate}{reward}, {chapter.tokens:.1f} tokens"]
        if self.parting is not None:
            rows = (self.parting.left.row, self.parting.right.row)
            letters = [f"v{row['dispatch_version']}" for row in rows]
            lines.append(f"  {rows[0]['rollout_id']} and {rows[1]['rollout_id']} are closest to the version before")
            lines += [f"  {line}" for line in parting_lines(self.parting, letters=letters)]
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskDiff:
    """One task through training."""

    task_id: str
    versions: tuple[Version, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"task_id": self.task_id, "versions": [version.to_json() for version in self.versions]}

    def text(self) -> str:
        """For a person."""
        n, lines = len(self.versions), [line for version in self.versions for line in version.lines()]
        return "\n".join([f"task {visible(self.task_id, one_line=True)}, {n} policy version{'' if n == 1 else 's'}", *lines])


def diff_task(run: OpenRun, task_id: str) -> TaskDiff:
    """Raises ValueError with the nearest ids for a task that no rollout was played on, QueryError."""
    chapters = biography(run, task_id)
    if not chapters:
        raise ValueError(f"no rollout of this run was played on a task {task_id!r}{nearest(run.log(), 'task_id', task_id)}")
    texts = TokenTexts()
    partings = [compare(run, _closest(run, before, after), texts) for before, after in pairwise(chapters)]
    versions = zip(chapters, [None, *partings], strict=True)
    return TaskDiff(task_id=task_id, versions=tuple(Version(chapter=chapter, parting=parting) for chapter, parting in versions))


def _closest(run: OpenRun, before: Chapter, after: Chapter) -> tuple[Row, Row]:
    """The rollouts of two versions with the longest common beginning; the first ones where the log has no tokens."""
    said = sorted([*_said(run, before, side=0), *_said(run, after, side=1)], key=lambda one: one[0])
    best, pair = -1, (before.rollouts[0], after.rollouts[0])
    # Among sorted sequences the longest common beginning of two from different sides is that of two neighbours.
    for (tokens, side, row), (next_tokens, next_side, next_row) in pairwise(said):
        if side != next_side and (common := first_difference(tokens, next_tokens)) > best:
            best, pair = common, (row, next_row) if side == 0 else (next_row, row)
    return pair


def _said(run: OpenRun, chapter: Chapter, *, side: int) -> list[tuple[list[int], int, Row]]:
    """(tokens from the first sampled one on, side, row) of the rollouts whose tokens the log has."""
    by_id = {row["rollout_id"]: row for row in chapter.rollouts}
    sql = f"SELECT rollout_id, token_ids, segments FROM tokens WHERE dispatch_version = ? AND rollout_id IN ({', '.join('?' * len(by_id))})"
    found = run.rows(sql, (chapter.version, *by_id), limit=len(by_id))
    return [(row["token_ids"][sampled_start(row) :], side, by_id[row["rollout_id"]]) for row in found]
