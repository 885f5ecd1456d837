"""`rl swe mutate`: mutate-fix tasks of one prepared image."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from environments.containers.base import ContainerError, Containers
from environments.containers.make import SharedContainers
from environments.records import Json
from environments.swe.factory.issue import STYLES
from environments.swe.factory.make import Order, Summary, make_tasks
from environments.swe.factory.mutations import Mutant, check_kinds
from environments.swe.factory.report import read_reports
from environments.swe.factory.repository import read_files
from environments.swe.images.record import read_image
from environments.swe.records import RepoImage, SuiteRequest, SuiteResult, TreeChange
from environments.swe.suite import run_suite
from rl.log.text import visible

T = TypeVar("T")
_TRIES = 3
"""Of one run of tests, when the engine fails."""


def mutate_command(path: Path, *, out: Path, n_tasks: int, seed: int, kinds: tuple[str, ...], style: str, as_json: bool) -> int:
    """Make tasks and say what became of every candidate; 1 when there is no new task. Raises ValueError for bad arguments or files, and
    SandboxUnavailable without an engine or the image."""
    if n_tasks < 1:
        raise ValueError(f"--tasks is {n_tasks}; it must be at least 1")
    if style not in STYLES:
        raise ValueError(f"--style is {style!r}; it must be one of {', '.join(STYLES)}")
    if not path.is_file():
        raise ValueError(f"there is no record of an image {path}; rl swe image makes the image and writes it")
    image = read_image(path)
    order = Order(n_tasks=n_tasks, seed=seed, kinds=check_kinds(kinds), style=style, out=out)

    def show(result: str, mutant: Mutant) -> None:
        where = f"{mutant.source.path}:{mutant.line} {mutant.function}"
        print(f"{mutant.kind:<18} {visible(where, one_line=True)}: {result}", file=sys.stderr if as_json else sys.stdout, flush=True)

    async def make() -> Summary:
        shared = SharedContainers.take()
        try:
            await _check_image(image, path, shared.containers)
            runs = _Runs(shared.containers, image)
            files = read_files(await shared.containers.image_tree(image.image, image.work_dir))
            return await make_tasks(image, files, order=order, run=runs.run, reports=runs.reports, on_result=show)
        finally:
            await shared.release()

    summary = asyncio.run(make())
    print(json.dumps(_to_json(summary)) if as_json else _text(summary, order))
    return 0 if summary.kept else 1


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of the tests of one image; a failure of the engine is tried again."""

    containers: Containers
    image: RepoImage

    async def run(self, request: SuiteRequest) -> SuiteResult:
        return await _tried(lambda: run_suite(self.containers, image=self.image.image, work_dir=self.image.work_dir, request=request))

    async def reports(self, change: TreeChange, tests: Sequence[str]) -> dict[str, str]:
        return await _tried(lambda: read_reports(self.containers, self.image, change, tests))


async def _tried(call: Callable[[], Awaitable[T]]) -> T:
    for _ in range(_TRIES - 1):
        with contextlib.suppress(ContainerError):
            return await call()
    return await call()


async def _check_image(image: RepoImage, path: Path, containers: Containers) -> None:
    found = await containers.image_id(image.image)
    if found != image.image_id:
        raise ValueError(
            f"{path} describes image {image.image} as {image.image_id[:19]}, but the engine has {found[:19]}: run rl swe image again"
        )
    if not image.covered or not image.tests:
        raise ValueError(f"{path} names no {'functions that tests enter' if image.tests else 'tests that pass'}: run rl swe image again")


def _to_json(summary: Summary) -> dict[str, Json]:
    return {
        "candidates": summary.candidates,
        "possible": summary.possible,
        "functions": summary.functions,
        "functions_left_out": dict(summary.skipped),
        "kept": [str(folder) for folder in summary.kept],
        "kept_by_kind": dict(summary.kinds),
        "fell": {reason.name.lower(): count for reason, count in summary.fell.most_common()},
        "seconds": round(summary.seconds, 3),
        "seconds_a_candidate": round(summary.seconds / max(1, summary.candidates), 3),
    }


def _text(summary: Summary, order: Order) -> str:
    each = summary.seconds / max(1, summary.candidates)
    lines = [
        f"{summary.candidates} candidates of {summary.possible} possible ones in {summary.functions} functions: "
        f"{len(summary.kept)} kept, {summary.fell.total()} fell, {each:.2f} s each",
        *(f"{count:>6}  {reason.value}" for reason, count in summary.fell.most_common()),
        *(f"{count:>6} functions left out: {reason}" for reason, count in summary.skipped.most_common() if count),
    ]
    if summary.kept:
        lines += [
            "kept by kind: " + ", ".join(f"{kind} {count}" for kind, count in summary.kinds.most_common()),
            f"tasks are in {order.out}",
        ]
    if len(summary.kept) < order.n_tasks:
        lines.append(f"no candidates are left: {len(summary.kept)} of {order.n_tasks} tasks")
    return "\n".join(lines)
