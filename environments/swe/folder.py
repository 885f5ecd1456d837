"""Task folders: a repository task as a folder in Harbor's layout, which Harbor's own harness can run too.

| file | what is in it |
|---|---|
| `task.toml` | id, image, deadline of the tests, metadata |
| `instruction.md` | the text for the agent |
| `environment/Dockerfile` | the image with the overlay in it, for other harnesses |
| `environment/overlay.tar`, `overlay.deleted` | how the agent's tree differs from the image |
| `tests/tests.json` | fail_to_pass and pass_to_pass |
| `tests/files.tar`, `files.deleted` | test files that are put in place before the tests run |
| `tests/test.sh` | runs the tests, for other harnesses: the project's own graders do not use it |
| `solution/gold.patch`, `solve.sh` | a patch that solves the task |

Files of a tree lie in a tar because their names may be any bytes; deleted paths end with NUL. A folder is written whole or not at all,
and is hostile when it is read: no link is followed, and every size has a cap. Format: https://harborframework.com/docs/tasks.
"""

import json
import math
import os
import re
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from environments.records import Json
from environments.swe.changes import check_changes, from_list, from_tar, to_list, to_tar
from environments.swe.harbor import dockerfile, solve_script, verifier_script
from environments.swe.records import Patch, RepoTask, TreeChange
from environments.swe.toml_text import toml_table

AGENT_SECONDS = 7200.0
"""What other harnesses give the agent; CWM's own limit of a session. The project's is `rollout.max_seconds`."""
BUILD_SECONDS = 600.0
_MIB = 1 << 20
_LARGEST = {"task.toml": _MIB, "instruction.md": _MIB, "tests/tests.json": 32 * _MIB, "solution/gold.patch": 64 * _MIB}
_LARGEST_TREE = 256 * _MIB
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_WORK_DIR = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
_SWE_KEYS = {"id", "image", "work_dir", "base_commit"}
T = TypeVar("T")


def task_folders(root: Path) -> tuple[Path, ...]:
    """The task folders in `root`, sorted by name; hidden ones are left out. Raises ValueError when there is none, and for a folder that
    is no task."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder of task folders; make tasks with rl swe mutate or rl swe import")
    if (root / "task.toml").exists():
        raise ValueError(f"{root} is a task folder itself; name the folder that it is in, {root.parent}")
    folders = sorted(path for path in root.iterdir() if not path.name.startswith(".") and (path.is_dir() or path.is_symlink()))
    for folder in folders:
        if folder.is_symlink():
            raise ValueError(f"{folder} is a link; put the task folder itself there")
        if not (folder / "task.toml").exists():
            raise ValueError(f"{folder} has no task.toml, so it is no task folder: remove it, or make the task again")
    if not folders:
        raise ValueError(f"{root} has no task folders; make tasks with rl swe mutate or rl swe import")
    return tuple(folders)


def write_task(task: RepoTask, folder: Path) -> None:
    """Write a task folder, durably and in one step: it is complete or not there. Changes are written in the order of their paths.

    Raises ValueError for a task that cannot be one, and when the folder is already there.
    """
    files = _files(task)
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder} is already there: remove it, or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", dir=folder.parent))
    try:
        work.chmod(0o755)
        for name, data in files.items():
            path = work / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o755 if name.endswith(".sh") else 0o644)
            _sync(path)
        for below in ("environment", "tests", "solution", "."):
            _sync(work / below)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    _sync(folder.parent)


def read_task(folder: Path) -> RepoTask:
    """The task of a folder. Raises ValueError that names the file that is missing, damaged, a link or too large, and for a Harbor task
    that only its own script can grade."""
    table = _parse(folder, "task.toml", lambda data: tomllib.loads(data.decode()))
    tests_folder = folder / "tests"
    if "swe" not in table and (tests_folder / "test.sh").exists() and not (tests_folder / "tests.json").exists():
        raise ValueError(
            f"{folder} is a Harbor task whose verifier is its own tests/test.sh, and such scripts are not run: what runs in the agent's "
            "container can be fooled. Tasks need [swe] in task.toml and test ids in tests/tests.json, which rl swe mutate and rl swe "
            "import write"
        )
    swe = _part(folder, "swe", table)
    if unknown := sorted(swe.keys() - _SWE_KEYS):
        raise ValueError(f"{folder}/task.toml: [swe] has unknown keys {unknown}; it takes {sorted(_SWE_KEYS)}")
    tests = _parse(folder, "tests/tests.json", _test_lists)
    seconds = _part(folder, "verifier", table).get("timeout_sec", 600.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError(f"{folder}/task.toml: verifier.timeout_sec is {seconds!r}; it must be a number of seconds")
    task = RepoTask(
        id=_word(folder, swe, "id"),
        image=_word(folder, swe, "image"),
        work_dir=_word(folder, swe, "work_dir"),
        base_commit=_word(folder, swe, "base_commit"),
        instruction=_parse(folder, "instruction.md", bytes.decode),
        overlay=_read_changes(folder, "environment/overlay"),
        gold=Patch(data=_read(folder, "solution/gold.patch")),
        fail_to_pass=tests[0],
        pass_to_pass=tests[1],
        test_changes=_read_changes(folder, "tests/files"),
        test_seconds=float(seconds),
        metadata=_part(folder, "metadata", table, needed=False),
    )
    try:
        return _checked(task)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def set_metadata(folder: Path, **values: Json) -> None:
    """Change values of a task's metadata; None takes one away. The file is replaced in one step."""
    task = read_task(folder)
    kept = {key: value for key, value in {**task.metadata, **values}.items() if value is not None}
    work = folder / ".task.toml.tmp"
    work.write_bytes(_task_toml(replace(task, metadata=kept)))
    _sync(work)
    work.replace(folder / "task.toml")
    _sync(folder)


def _files(task: RepoTask) -> dict[str, bytes]:
    """Everything that a task's folder holds. Raises ValueError for what cannot be written."""
    task = _checked(task)
    try:
        instruction = task.instruction.encode()
    except UnicodeEncodeError:
        raise ValueError(f"instruction of {task.id} is not valid Unicode") from None
    tests = {"fail_to_pass": list(task.fail_to_pass), "pass_to_pass": list(task.pass_to_pass)}
    files = {
        "task.toml": _task_toml(task),
        "instruction.md": instruction,
        "environment/Dockerfile": dockerfile(image=task.image, work_dir=task.work_dir),
        "environment/overlay.tar": to_tar(task.overlay),
        "environment/overlay.deleted": to_list(task.overlay),
        "tests/tests.json": (json.dumps(tests, indent=1) + "\n").encode(),
        "tests/files.tar": to_tar(task.test_changes),
        "tests/files.deleted": to_list(task.test_changes),
        "tests/test.sh": verifier_script(work_dir=task.work_dir),
        "solution/gold.patch": task.gold.data,
        "solution/solve.sh": solve_script(work_dir=task.work_dir),
    }
    for name, data in files.items():
        if len(data) > _cap(name):
            raise ValueError(f"{name} of {task.id} would have {len(data)} bytes; at most {_cap(name)} are taken")
    return files


def _task_toml(task: RepoTask) -> bytes:
    swe = {"id": task.id, "image": task.image, "work_dir": task.work_dir, "base_commit": task.base_commit}
    tables = (
        toml_table("", {"version": "1.0"}),
        toml_table("metadata", task.metadata),
        toml_table("verifier", {"timeout_sec": task.test_seconds}),
        toml_table("agent", {"timeout_sec": AGENT_SECONDS}),
        toml_table("environment", {"build_timeout_sec": BUILD_SECONDS, "allow_internet": False}),
        toml_table("swe", swe),
    )
    return "\n".join(tables).encode()


def _checked(task: RepoTask) -> RepoTask:
    """The task with its changes in order. Raises ValueError for a field that a task cannot have."""
    for name, value, pattern in (("id", task.id, _ID), ("image", task.image, _IMAGE), ("work_dir", task.work_dir, _WORK_DIR)):
        if not pattern.fullmatch(value):
            raise ValueError(f"{name} is {value!r}; it must match {pattern.pattern}")
    if not math.isfinite(task.test_seconds) or task.test_seconds <= 0:
        raise ValueError(f"test_seconds is {task.test_seconds}; it must be above 0")
    if not task.fail_to_pass:
        raise ValueError("fail_to_pass is empty: a task needs a test that fails before and passes after")
    tests = (*task.fail_to_pass, *task.pass_to_pass)
    if len(set(tests)) < len(tests):
        twice = next(test for test in tests if tests.count(test) > 1)
        raise ValueError(f"test {twice!r} is twice in fail_to_pass and pass_to_pass")
    toml_table("metadata", task.metadata)  # raises for what cannot be written, such as a date
    return replace(task, overlay=check_changes(task.overlay), test_changes=check_changes(task.test_changes))


def _test_lists(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    value = json.loads(data)
    if not isinstance(value, dict) or value.keys() != {"fail_to_pass", "pass_to_pass"}:
        raise ValueError("it must be an object with the lists fail_to_pass and pass_to_pass")
    for name, tests in value.items():
        if not isinstance(tests, list) or not all(isinstance(test, str) and test for test in tests):
            raise ValueError(f"{name} must be a list of node ids")
    return tuple(value["fail_to_pass"]), tuple(value["pass_to_pass"])


def _read_changes(folder: Path, name: str) -> tuple[TreeChange, ...]:
    changes = _parse(folder, f"{name}.tar", from_tar) + _parse(folder, f"{name}.deleted", from_list)
    try:
        return check_changes(changes)
    except ValueError as error:
        raise ValueError(f"{folder}/{name}.tar: {error}") from error


def _part(folder: Path, name: str, table: Mapping[str, Json], *, needed: bool = True) -> dict[str, Json]:
    part = table.get(name, None if needed else {})
    if not isinstance(part, dict):
        raise ValueError(f"{folder}/task.toml has no section [{name}]; rl swe mutate and rl swe import write it")
    return part


def _word(folder: Path, part: Mapping[str, Json], name: str) -> str:
    value = part.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{folder}/task.toml: swe.{name} is {value!r}; it must be a text")
    return value


def _parse(folder: Path, name: str, parse: Callable[[bytes], T]) -> T:
    data = _read(folder, name)
    try:
        return parse(data)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError, JSONDecodeError, TOMLDecodeError
        raise ValueError(f"{folder}/{name} is damaged: {error}; make the task again, or put the file back") from error


def _read(folder: Path, name: str) -> bytes:
    """A file of a task folder; neither it nor its folder may be a link."""
    above, _, last = name.rpartition("/")
    try:
        with (
            _opened(folder, os.O_DIRECTORY) as top,
            _opened(above or ".", os.O_DIRECTORY | os.O_NOFOLLOW, at=top) as inner,
            _opened(last, os.O_NOFOLLOW | os.O_NONBLOCK, at=inner) as handle,
        ):
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                raise ValueError(f"{folder}/{name} is not a regular file")
            if state.st_size > _cap(name):
                raise ValueError(f"{folder}/{name} has {state.st_size} bytes; at most {_cap(name)} are read")
            with open(handle, "rb", closefd=False) as reader:
                return reader.read(_cap(name))
    except FileNotFoundError:
        if name == "task.toml" and any(folder.glob("*/task.toml")):
            raise ValueError(f"{folder} is a folder of task folders; name one of them, or all: {folder}/*") from None
        missing = f"there is no task folder {folder}" if not folder.exists() else f"{folder} has no {name}"
        raise ValueError(f"{missing}: make the task again with rl swe mutate or rl swe import, or put the file back") from None
    except OSError as error:
        raise ValueError(f"{folder}/{name} cannot be read (it must be a regular file and no link): {error.strerror}") from None


@contextmanager
def _opened(path: str | Path, flags: int, *, at: int | None = None) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=at)
    try:
        yield handle
    finally:
        os.close(handle)


def _cap(name: str) -> int:
    return _LARGEST.get(name, _LARGEST_TREE)


def _sync(path: Path) -> None:
    with _opened(path, 0) as handle:
        os.fsync(handle)
