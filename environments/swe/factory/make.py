"""Makes mutate-fix tasks of a repository until there are as many as asked for, or no candidates are left."""

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from environments.records import Json
from environments.swe.factory.failure import read_failure
from environments.swe.factory.gold import patch_lines
from environments.swe.factory.issue import file_text, issue_text
from environments.swe.factory.mutations import Mutant, changes_meaning, parses
from environments.swe.factory.pool import Pool
from environments.swe.factory.report import ReadReports
from environments.swe.factory.repository import Target, find_targets, licence_of
from environments.swe.factory.similar import Kept, features
from environments.swe.factory.trial import Fell, Noticed, RunSuite, Trials
from environments.swe.folder import read_task, task_folders, write_task
from environments.swe.records import Patch, RepoImage, RepoTask, TreeChange

IN_FLIGHT = 8
"""Candidates on trial at a time; the same on every machine, as the draws depend on it. The engine's client bounds the containers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to make."""

    n_tasks: int
    seed: int
    kinds: tuple[str, ...]
    style: str
    """One of issue.STYLES."""
    out: Path
    """Where the task folders go; tasks of the same repository that are there already count for what is too much alike."""


@dataclass(kw_only=True)
class Summary:
    """What came of it."""

    possible: int = 0
    """Mutants that could be tried."""
    functions: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Functions that could not be broken, by reason."""
    fell: Counter[Fell] = field(default_factory=Counter)
    kept: list[Path] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    """Of the tasks that were kept."""
    seconds: float = 0.0

    @property
    def candidates(self) -> int:
        """Mutants that were tried."""
        return self.fell.total() + len(self.kept)


async def make_tasks(
    image: RepoImage,
    files: Mapping[str, TreeChange],
    *,
    order: Order,
    run: RunSuite,
    reports: ReadReports,
    on_result: Callable[[str, Mutant], None],
) -> Summary:
    """Try candidates, several at a time, and write those that are sound. `files`: of the image's work folder, by path; `on_result` is
    told the id of a new task, or why a candidate fell.

    Candidates are judged in the order in which they were drawn, and each draw sees the verdicts up to a fixed number of candidates before
    it, so the same runs give the same tasks. Raises ValueError for a folder with a damaged task, and what `run` and `reports` raise.
    """
    started = time.monotonic()
    targets, skipped = find_targets(image, files)
    pool = Pool(targets, kinds=order.kinds, seed=order.seed)
    summary = Summary(possible=pool.size, functions=len(targets), skipped=skipped)
    kept = _read_kept(order.out, image)
    licence = licence_of(files)
    trials = await Trials.of(image, run=run, at_once=IN_FLIGHT)
    tried: set[tuple[str, bytes]] = set()
    waiting: deque[tuple[Mutant, asyncio.Task[Noticed | Fell]]] = deque()
    try:
        while len(summary.kept) < order.n_tasks:
            while len(waiting) < IN_FLIGHT and (drawn := pool.take()):
                looking = asyncio.create_task(_look(*drawn, trials=trials, kept=kept, tried=tried))
                waiting.append((drawn[1], looking))
            if not waiting:
                break
            mutant, first = waiting[0][0], await waiting[0][1]
            waiting.popleft()
            result: Path | Fell
            if isinstance(first, Noticed):
                result = await _keep(first, files=files, order=order, trials=trials, reports=reports, kept=kept, licence=licence)
            else:
                result = first
            if isinstance(result, Fell):
                pool.fell(mutant)
                summary.fell[result] += 1
                on_result(result.value, mutant)
            else:
                summary.kept.append(result)
                summary.kinds[mutant.kind] += 1
                on_result(result.name, mutant)
    finally:
        for _, looking in waiting:
            looking.cancel()
        await asyncio.gather(*(looking for _, looking in waiting), return_exceptions=True)
        summary.seconds = time.monotonic() - started
    return summary


async def _look(target: Target, mutant: Mutant, *, trials: Trials, kept: Kept, tried: set[tuple[str, bytes]]) -> Noticed | Fell:
    text = (mutant.source.path, mutant.data)
    if text in tried or kept.has_text(*text):
        return Fell.SAME_TEXT
    tried.add(text)
    if not parses(mutant):
        return Fell.NO_PARSE
    if not changes_meaning(mutant):
        return Fell.EQUIVALENT
    return await trials.first_look(target, mutant)


async def _keep(
    noticed: Noticed, *, files: Mapping[str, TreeChange], order: Order, trials: Trials, reports: ReadReports, kept: Kept, licence: str
) -> Path | Fell:
    mutant = noticed.mutant
    found = features(
        file=mutant.source.path,
        function=mutant.function,
        kind=mutant.kind,
        failing=[test.id for test in noticed.failing],
        before=mutant.before,
        after=mutant.after,
    )
    if kept.has_like(found):
        return Fell.SIMILAR
    gold = await trials.confirm(noticed)
    if isinstance(gold, Fell):
        return gold
    said = await reports(noticed.overlay, [test.id for test in noticed.failing])
    failing = tuple(replace(test, detail=said.get(test.id, test.detail)) for test in noticed.failing)
    task = _task(replace(noticed, failing=failing), gold, image=trials.image, files=files, style=order.style, licence=licence)
    folder = order.out / task.id
    write_task(task, folder)
    kept.add(found, path=mutant.source.path, data=mutant.data)
    return folder


def _task(noticed: Noticed, gold: Patch, *, image: RepoImage, files: Mapping[str, TreeChange], style: str, licence: str) -> RepoTask:
    mutant, path = noticed.mutant, noticed.mutant.source.path
    failures = [read_failure(outcome, files) for outcome in noticed.failing]
    if style == "file":
        instruction = file_text(failures, path=path, source=mutant.data.decode())
    else:
        instruction = issue_text(failures, repository=image.name, work_dir=image.work_dir)
    failing = {test.id for test in noticed.failing}
    digest = hashlib.sha256(path.encode() + b"\0" + mutant.data).hexdigest()
    return RepoTask(
        id=f"{image.name}-{mutant.kind}-{digest[:10]}",
        image=image.image,
        work_dir=image.work_dir,
        base_commit=image.base_commit,
        instruction=instruction,
        overlay=(noticed.overlay,),
        gold=gold,
        fail_to_pass=tuple(test for test in image.tests if test in failing),
        pass_to_pass=tuple(test for test in image.tests if test not in failing),
        test_seconds=min(600.0, max(60.0, round(10.0 * image.suite_seconds))),
        metadata=_metadata(noticed, gold, image=image, style=style, licence=licence),
    )


def _metadata(noticed: Noticed, gold: Patch, *, image: RepoImage, style: str, licence: str) -> dict[str, Json]:
    """`solve_rate` is not there until it has been measured (rl swe rates)."""
    mutant, function = noticed.mutant, noticed.target.function
    metadata: dict[str, Json] = {
        "kind": "mutate",
        "repository": image.name,
        "source": image.source,
        "style": style,
        "mutation": {
            "kind": mutant.kind,
            "file": mutant.source.path,
            "function": mutant.function,
            "line": mutant.line,
            "before": mutant.before,
            "after": mutant.after,
        },
        "size": {
            "patch_lines": patch_lines(gold),
            "patch_bytes": len(gold.data),
            "function_lines": (function.end_lineno or function.lineno) - function.lineno + 1,
            "file_lines": mutant.source.data.count(b"\n"),
            "tests_failing": len(noticed.failing),
        },
    }
    return metadata | ({"licence": licence} if licence else {})


def _read_kept(out: Path, image: RepoImage) -> Kept:
    """The mutate-fix tasks of the repository that a folder has already."""
    kept = Kept()
    for folder in task_folders(out) if out.is_dir() and any(out.iterdir()) else ():
        task = read_task(folder)
        mutation = task.metadata.get("mutation")
        if task.metadata.get("repository") != image.name or not isinstance(mutation, Mapping):
            continue
        found = features(
            file=str(mutation.get("file", "")),
            function=str(mutation.get("function", "")),
            kind=str(mutation.get("kind", "")),
            failing=task.fail_to_pass,
            before=str(mutation.get("before", "")),
            after=str(mutation.get("after", "")),
        )
        for change in task.overlay:
            kept.add(found, path=change.path.decode(errors="surrogateescape"), data=change.data)
    return kept
