"""`rl swe import`: issue-fix tasks from rows in SWE-bench's format.

A row has `instance_id`, `repo`, `base_commit`, `problem_statement` (or `prompt`), `patch`, `test_patch`, and `FAIL_TO_PASS` and
`PASS_TO_PASS` as lists or as JSON texts of lists. Its image, which must hold the repository at that commit, is named by a template over
the row's fields.
"""

import asyncio
import json
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from environments.containers.base import Containers, ImageMissing
from environments.containers.make import SharedContainers
from environments.records import Json
from environments.sources.jsonl import read_rows
from environments.swe.base_tree import BaseTree
from environments.swe.factory.gold import patch_lines
from environments.swe.folder import write_task
from environments.swe.images.record import LABEL, from_label
from environments.swe.inside.suite_worker_paths import is_test_path
from environments.swe.records import Patch, PatchError, RepoImage, RepoTask

_TEXTS = ("instance_id", "repo", "base_commit", "patch", "test_patch")
_STATEMENTS = ("problem_statement", "prompt")
_KEPT = {"version": "version", "created_at": "created_at", "licence": "license", "source": "source"}
"""Metadata and the fields that they come from."""
_LONGEST_TESTS = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row, read."""

    where: str
    """File and line."""
    values: Mapping[str, Json]
    statement: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    image: str


def import_command(path: Path, *, image: str, out: Path, as_json: bool) -> int:
    """Write a task folder for each row. All rows are read first; a row that cannot become a task is told and left out, and the status is 1.

    Raises ValueError for a file or template that is wrong, and SandboxUnavailable without an engine.
    """
    rows = [read_row(values, where=f"{path}:{line}", template=image) for line, values in read_rows(path, field="ROWS.jsonl")]
    if not rows:
        raise ValueError(f"{path} has no rows")
    written: list[str] = []
    problems: dict[str, str] = {}

    async def make() -> None:
        shared = SharedContainers.take()
        try:
            for row in rows:
                name = str(row.values["instance_id"])
                try:
                    task = await make_task(row, shared.containers)
                    write_task(task, out / task.id)
                    written.append(str(out / task.id))
                except (ValueError, ImageMissing) as error:
                    problems[name] = " ".join(str(error).split())
                    print(f"{name}: {problems[name]}", file=sys.stderr, flush=True)
        finally:
            await shared.release()

    asyncio.run(make())
    if as_json:
        print(json.dumps({"tasks": written, "left_out": problems}))
    else:
        print("\n".join([*written, f"{len(written)} tasks of {len(rows)} rows"]))
    return 1 if problems else 0


def read_row(values: Mapping[str, Json], *, where: str, template: str) -> Row:
    """Raises ValueError that names file, line and field."""
    for name in _TEXTS:
        if not isinstance(values.get(name), str):
            raise ValueError(f"{where}: {name} is {values.get(name)!r}; it must be a text, as in SWE-bench")
    statement = next((values[name] for name in _STATEMENTS if isinstance(values.get(name), str)), None)
    if statement is None:
        raise ValueError(f"{where}: it has no problem_statement")
    failing, passing = (_tests(values.get(name), name=name, where=where) for name in ("FAIL_TO_PASS", "PASS_TO_PASS"))
    if not failing:
        raise ValueError(f"{where}: FAIL_TO_PASS is empty: nothing would tell a fix from none")
    return Row(
        where=where,
        values=values,
        statement=statement,
        fail_to_pass=failing,
        pass_to_pass=tuple(test for test in passing if test not in set(failing)),
        image=_image(values, template=template, where=where),
    )


async def make_task(row: Row, containers: Containers) -> RepoTask:
    """The task of a row. Raises ImageMissing and ValueError for an image or patches that do not fit."""
    record = await _prepared(row, containers)
    values = row.values
    task = RepoTask(
        id=str(values["instance_id"]),
        image=row.image,
        work_dir=record.work_dir,
        base_commit=str(values["base_commit"]),
        instruction=row.statement,
        overlay=(),
        gold=Patch(data=str(values["patch"]).encode()),
        fail_to_pass=row.fail_to_pass,
        pass_to_pass=row.pass_to_pass,
        test_seconds=min(_LONGEST_TESTS, max(60.0, round(10.0 * record.suite_seconds))),
    )
    base = await BaseTree.of(task, containers)
    try:
        tests = await base.apply(Patch(data=str(values["test_patch"]).encode()))
    except PatchError as error:
        raise ValueError(f"{row.where}: test_patch: {error}; is {row.image} the repository at {task.base_commit[:12]}?") from error
    if code := [change.path for change in tests if not is_test_path(change.path.decode(errors="replace"))]:
        print(f"{row.where}: test_patch also changes {code[0]!r}, which is put in place with the tests", file=sys.stderr)
    try:
        gold = await base.apply(task.gold)
    except PatchError as error:
        raise ValueError(f"{row.where}: patch: {error}; is {row.image} the repository at {task.base_commit[:12]}?") from error
    if not gold:
        raise ValueError(f"{row.where}: patch changes nothing")
    metadata = {
        "kind": "issue",
        "repository": values["repo"],
        "size": {
            "patch_bytes": len(task.gold.data),
            "patch_lines": patch_lines(task.gold),
            "files": len(gold),
            "tests_failing": len(row.fail_to_pass),
        },
        **{name: values[field] for name, field in _KEPT.items() if isinstance(values.get(field), str)},
    }
    return replace(task, test_changes=tests, metadata=metadata)


async def _prepared(row: Row, containers: Containers) -> RepoImage:
    """The record in the label of the row's image."""
    how = f"make it with `rl swe image image:{row.image}`, and give its name by --image"
    try:
        image_id = await containers.image_id(row.image)
    except ImageMissing as error:
        raise ImageMissing(f"{row.where}: the engine has no image {row.image}: load it, then {how}") from error
    label = await containers.image_label(row.image, LABEL)
    if label is None:
        raise ValueError(f"{row.where}: image {row.image} is not prepared, so it may hold the fix in its history: {how}")
    return from_label(label, image_id=image_id)


def _image(values: Mapping[str, Json], *, template: str, where: str) -> str:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"--image {template!r} is no template: {error}") from error
    for name in names:
        if not name.isidentifier() or not isinstance(values.get(name), str):
            raise ValueError(f"{where}: --image {template!r} needs the field {name!r}, which the row does not have as a text")
    return template.format_map(values)


def _tests(value: Json, *, name: str, where: str) -> tuple[str, ...]:
    """A list of node ids, or its JSON text; each once."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{where}: {name} is a text that is no JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(test, str) and test for test in value):
        raise ValueError(f"{where}: {name} must be a list of node ids, or a JSON text of one")
    return tuple(dict.fromkeys(value))
