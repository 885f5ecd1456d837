"""A run's pages as files that open without a server: its overview, and its newest rollouts with their groups and tasks."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.view.groups import contrast_groups
from rl.view.links import BundleLinks, Links
from rl.view.listing import Filters, drop_counts, listed
from rl.view.open_run import OpenRun
from rl.view.pages import Pages
from rl.view.render import HERE

_CONTRASTS = 20
"""Groups with winners and losers that go along, besides those of the newest rollouts."""
_DROPPED = 10
"""Newest rollouts of each drop reason that go along."""
_TIMELINES = 20
"""Newest training steps whose timelines go along."""


def export_run(root: Path, *, out: Path, rollouts: int) -> Mapping[str, int]:
    """Write the bundle to `out`, which appears whole or not at all, and count its pages.

    Raises ValueError when `out` exists and holds something, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--export {out}: it is not an empty folder; choose a new one")
    partial = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        shutil.copytree(HERE / "static", partial / "static")
        counts = _write_pages(OpenRun(root.resolve().name, root), partial, rollouts=rollouts)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise ValueError(f"--export {out}: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _write_pages(run: OpenRun, folder: Path, *, rollouts: int) -> Mapping[str, int]:
    newest = listed(run, Filters(), offset=0, limit=rollouts).rows
    contrasts = contrast_groups(run, limit=_CONTRASTS)
    dropped = {reason: listed(run, Filters(drop=reason), offset=0, limit=_DROPPED).rows for reason in drop_counts(run)}
    shown = [*newest, *(row for rows in dropped.values() for row in rows)]
    links = BundleLinks(
        rollouts=_files("rollout", [str(row["rollout_id"]) for row in shown]),
        groups=_files("group", [str(row["group_id"]) for row in (*contrasts, *shown)]),
        tasks=_files("task", [str(row["task_id"]) for row in shown]),
        drops=_files("dropped", list(dropped)),
        timelines=_files("timeline", [str(step.step) for step in reversed(run.metrics().steps[-_TIMELINES:])]),
    )
    pages = Pages()

    def write(files: Mapping[str, str], show: Callable[[OpenRun, Links, Mapping[str, str]], str]) -> None:
        for one, name in files.items():
            (folder / name).write_text(show(run, links, {"id": one}), encoding="utf-8")

    (folder / "index.html").write_text(pages.overview(run, links, {}), encoding="utf-8")
    (folder / "rollouts.html").write_text(pages.newest_rollouts(run, links, newest, drops=list(dropped)), encoding="utf-8")
    for reason, rows in dropped.items():
        html = pages.newest_rollouts(run, links, rows, drops=list(dropped), drop=reason)
        (folder / links.drops[reason]).write_text(html, encoding="utf-8")
    (folder / "contrast.html").write_text(pages.contrast_of(run, links, contrasts), encoding="utf-8")
    (folder / "service.html").write_text(pages.service(run, links, {}), encoding="utf-8")
    write(links.rollouts, pages.rollout)
    write(links.groups, pages.group)
    write(links.tasks, pages.task)
    for step, name in links.timelines.items():
        (folder / name).write_text(pages.timeline(run, links, {"step": step}), encoding="utf-8")
    return {"rollouts": len(links.rollouts), "groups": len(links.groups), "tasks": len(links.tasks)}


def _files(kind: str, names: Sequence[Any]) -> dict[str, str]:
    """A file for each name, numbered: what a name holds never becomes part of a path."""
    return {name: f"{kind}-{number:05d}.html" for number, name in enumerate(dict.fromkeys(names), start=1)}
