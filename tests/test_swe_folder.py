"""Task folders: what is written is read again exactly, whatever its names; what is damaged or hostile is refused by name."""

import io
import os
import random
import subprocess
import tarfile
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from environments.swe.changes import check_changes
from environments.swe.folder import read_task, set_metadata, task_folders, write_task
from environments.swe.inside.modes import FILE, LINK, PROGRAM
from environments.swe.records import Patch, RepoTask, TreeChange

ODD_NAMES = (
    b"a b",
    b"new\nline",
    b"\xff\xfe",
    "naïve".encode(),
    b"-rf",
    b"'\"$(x)`",
    b"tab\t",
    b" ",
    b"\\n",
    b"x" * 255,
    b"a:b",
    b"%s{}",
    b"...",
)
PARTS = (
    "task.toml",
    "instruction.md",
    "environment/overlay.tar",
    "environment/overlay.deleted",
    "tests/tests.json",
    "tests/files.tar",
    "tests/files.deleted",
    "solution/gold.patch",
)
"""What a task cannot be read without; the rest is for other harnesses."""


def make_task(**fields: object) -> RepoTask:
    task = RepoTask(
        id="toolz-1",
        image="codeworld/toolz:1",
        instruction="Repair it.\r\n\n  Ünicode \x7f 😀\t",
        overlay=(TreeChange(path=b"src/a.py", mode=FILE, data=b"x = 1\n"),),
        gold=Patch(data=b"diff --git a/src/a.py b/src/a.py\n\xff\n"),
        fail_to_pass=("tests/test_a.py::test_one[a b\n\ud800]",),
        pass_to_pass=("tests/test_a.py::test_two",),
        base_commit="0" * 40,
        test_seconds=12.5,
        metadata={"kind": "mutate", "lines": 3, "solve_rate": 0.25, "odd key": ["a", {"b": True}], "text": 'quote " \\ \x00 \x7f 😀\n'},
    )
    return replace(task, **fields)  # type: ignore[arg-type]


def random_changes(rng: random.Random) -> tuple[TreeChange, ...]:
    """Files of any bytes, programs, links and deletions below folders with odd names; none lies below another."""
    changes = {}
    for n in range(rng.randint(0, 12)):
        names = [rng.choice(ODD_NAMES) for _ in range(rng.randint(0, 5))]
        path = b"/".join([*(name[:200] + b"." for name in names), b"%d " % n + bytes(rng.choices(range(1, 47), k=5)) + b"\x80"])
        mode = rng.choice([FILE, PROGRAM, LINK, None])
        data = b"" if mode is None else rng.randbytes(rng.choice([0, 1, 511, 512, 513, 5000]))
        if mode == LINK:
            data = b"../" * rng.randint(0, len(names)) + rng.choice(ODD_NAMES)
        changes[path] = TreeChange(path=path, mode=mode, data=data)
    return tuple(changes[path] for path in sorted(changes))


@pytest.mark.parametrize("seed", range(40))
def test_any_task_is_read_as_it_was_written(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    gold = Patch(data=rng.randbytes(rng.choice([0, 3000])))
    task = make_task(overlay=random_changes(rng), test_changes=random_changes(rng), gold=gold, test_seconds=rng.random() * 1e-4 + 1e-9)
    write_task(task, tmp_path / "tasks" / "one")
    assert read_task(tmp_path / "tasks" / "one") == task
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["one"], "nothing else is left"


def test_names_longer_than_a_tar_header_are_kept(tmp_path: Path) -> None:
    names = [b"/".join([b"d" * size] * 3 + [b"\xe9" * size]) for size in (24, 25, 33, 200)]
    task = make_task(overlay=tuple(TreeChange(path=name, mode=LINK, data=b"e" * len(name)) for name in names))
    write_task(task, tmp_path / "one")
    assert read_task(tmp_path / "one") == task


def test_the_same_task_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    changes = random_changes(random.Random(7))
    assert len(changes) > 3
    for name, ordered in (("one", changes), ("two", changes[::-1])):
        write_task(make_task(overlay=ordered), tmp_path / name)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 11


def test_the_layout_is_harbors(tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    table = tomllib.loads((tmp_path / "one/task.toml").read_text())
    assert table["version"] == "1.0"
    assert table["verifier"]["timeout_sec"] == 12.5
    assert {"metadata", "verifier", "agent", "environment"} <= table.keys()
    assert (tmp_path / "one/environment/Dockerfile").read_text().startswith("FROM codeworld/toolz:1\n")
    for script in ("tests/test.sh", "solution/solve.sh"):
        assert os.access(tmp_path / "one" / script, os.X_OK)
        assert subprocess.run(["bash", "-n", tmp_path / "one" / script]).returncode == 0
    assert not [path for path in (tmp_path / "one").rglob("*") if path.is_file() and str(tmp_path).encode() in path.read_bytes()]


def test_a_task_that_only_its_own_script_grades_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "hello"
    for name, text in {
        "task.toml": 'version = "1.0"\n[verifier]\ntimeout_sec = 120.0\n[agent]\ntimeout_sec = 120.0\n[environment]\ncpus = 1\n',
        "instruction.md": "Create hello.txt.",
        "environment/Dockerfile": "FROM ubuntu:24.04\nWORKDIR /app\n",
        "tests/test.sh": "#!/bin/bash\n[ -f hello.txt ] && echo 1 > /logs/verifier/reward.txt\n",
        "solution/solve.sh": "#!/bin/bash\ntouch hello.txt\n",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.raises(ValueError, match=r"hello is a Harbor task whose verifier is its own tests/test\.sh, .* rl swe import write"):
        read_task(folder)
    (folder / "tests/test.sh").unlink()
    with pytest.raises(ValueError, match=r"task\.toml has no section \[swe\]|tests\.json"):
        read_task(folder)


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part_is_named(name: str, tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    (tmp_path / "one" / name).unlink()
    with pytest.raises(ValueError, match=rf"has no {name}: make the task again"):
        read_task(tmp_path / "one")


@pytest.mark.parametrize("name", PARTS)
def test_a_link_is_not_followed(name: str, tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    path = tmp_path / "one" / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        read_task(tmp_path / "one")


def test_a_linked_folder_and_a_pipe_are_not_read(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_task(make_task(), tmp_path / name)
    (tmp_path / "one/tests").rename(tmp_path / "tests")
    (tmp_path / "one/tests").symlink_to(tmp_path / "tests")
    with pytest.raises(ValueError, match=r"tests/tests\.json cannot be read"):
        read_task(tmp_path / "one")
    (tmp_path / "two/instruction.md").unlink()
    os.mkfifo(tmp_path / "two/instruction.md")
    with pytest.raises(ValueError, match=r"instruction\.md is not a regular file"):
        read_task(tmp_path / "two")


@pytest.mark.parametrize("name", ["task.toml", "tests/tests.json", "environment/overlay.tar", "tests/files.tar"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_part_is_named(name: str, damage: str, tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    path = tmp_path / "one" / name
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2 - 100], "noise": b"\xff" * len(data), "empty": b""}[damage])
    with pytest.raises(ValueError, match=name):
        read_task(tmp_path / "one")


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    path = tmp_path / "one/environment/overlay.tar"
    data = path.read_bytes()
    content = data.rstrip(b"\0")
    for size in range(0, len(content) + 512, 64):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"overlay\.tar"):
            read_task(tmp_path / "one")


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("task.toml", 'id = "toolz-1"', 'id = "../up"', "id is '../up'"),
        ("task.toml", 'id = "toolz-1"', "id = 3", "swe.id is 3"),
        ("task.toml", "[swe]", "[other]", r"no section \[swe\]"),
        ("task.toml", "base_commit", "base", r"unknown keys \['base'\]"),
        ("task.toml", 'image = "codeworld/toolz:1"', 'image = "a\\nRUN x"', "image is"),
        ("task.toml", 'work_dir = "/testbed"', 'work_dir = "/testbed/../etc"', "work_dir is"),
        ("task.toml", "timeout_sec = 12.5", "timeout_sec = -1", "above 0"),
        ("task.toml", "timeout_sec = 12.5", 'timeout_sec = "soon"', "must be a number"),
        ("task.toml", "lines = 3", "lines = 2020-01-01", "metadata.lines is .* which TOML cannot hold"),
        ("tests/tests.json", "fail_to_pass", "failing", "lists fail_to_pass and pass_to_pass"),
        ("tests/tests.json", "tests/test_a.py::test_two", "", "must be a list of node ids"),
        ("environment/overlay.deleted", "", "src/b.py", "no NUL behind it"),
        ("environment/overlay.deleted", "", "../b\0", "path b'../b' must be relative"),
        ("environment/overlay.deleted", "", "src/a.py\0", "is there twice"),
        ("environment/overlay.deleted", "", "src/.GIT/config\0", r"in a \.git folder"),
    ],
)
def test_what_a_task_cannot_be_is_refused(name: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    path = tmp_path / "one" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=said):
        read_task(tmp_path / "one")


def hostile_tar(**fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("name")
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(b"") if member.isreg() else None)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "/etc/passwd"},
        {"name": "../up"},
        {"name": "a/./b"},
        {"name": ".git/hooks/post-checkout"},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.SYMTYPE, "linkname": "a/../../up"},
        {"type": tarfile.SYMTYPE, "linkname": ""},
        {"type": tarfile.LNKTYPE, "linkname": "other"},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.GNUTYPE_SPARSE},
    ],
    ids=str,
)
def test_a_hostile_tar_is_refused(fields: dict[str, object], tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    (tmp_path / "one/tests/files.tar").write_bytes(hostile_tar(**fields))
    with pytest.raises(ValueError, match=r"tests/files\.tar"):
        read_task(tmp_path / "one")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    for name, size in (("instruction.md", 1 << 30), ("tests/files.tar", 1 << 40)):
        os.truncate(tmp_path / "one" / name, size)
        with pytest.raises(ValueError, match=f"{name} has {size} bytes"):
            read_task(tmp_path / "one")
        os.truncate(tmp_path / "one" / name, 10)


def test_changes_that_do_not_fit_together_are_refused() -> None:
    file = TreeChange(path=b"a", mode=FILE)
    with pytest.raises(ValueError, match="lies below b'a', which is no folder"):
        check_changes([TreeChange(path=b"a/b", mode=FILE), TreeChange(path=b"a!", mode=FILE), file])
    with pytest.raises(ValueError, match="mode of"):
        check_changes([replace(file, mode=0o100600)])
    with pytest.raises(ValueError, match="yet it has content"):
        check_changes([replace(file, mode=None, data=b"x")])
    replaced = (TreeChange(path=b"a", mode=None), TreeChange(path=b"a/b", mode=FILE))
    assert check_changes(replaced[::-1]) == replaced, "a file may give way to a folder"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"fail_to_pass": ()}, "fail_to_pass is empty"),
        ({"pass_to_pass": ("tests/test_a.py::test_one[a b\n\ud800]",)}, "is twice"),
        ({"metadata": {"solve_rate": None}}, r"metadata\.solve_rate is None"),
        ({"metadata": {"x": [float("nan")]}}, r"metadata\.x\[0\] is nan"),
        ({"metadata": {"x": "\ud800"}}, "not valid Unicode"),
        ({"instruction": "\ud800"}, "not valid Unicode"),
        ({"instruction": "x" * (1 << 21)}, "at most"),
        ({"image": "a b"}, "image is"),
    ],
)
def test_what_cannot_be_read_is_not_written(fields: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        write_task(make_task(**fields), tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_bytes, []

    def full(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 7:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_task(make_task(), tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_a_task_is_never_written_over(tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    with pytest.raises(ValueError, match="already there"):
        write_task(make_task(instruction="other"), tmp_path / "one")
    assert read_task(tmp_path / "one") == make_task()


def test_metadata_can_change_and_nothing_else(tmp_path: Path) -> None:
    write_task(make_task(), tmp_path / "one")
    set_metadata(tmp_path / "one", solve_rate=0.5, lines=None, new=[1])
    task = read_task(tmp_path / "one")
    assert task.metadata == {"kind": "mutate", "solve_rate": 0.5, "new": [1]} | {k: make_task().metadata[k] for k in ("odd key", "text")}
    assert replace(task, metadata=make_task().metadata) == make_task()


def test_task_folders_are_sorted_and_whole(tmp_path: Path) -> None:
    root = tmp_path / "tasks"
    with pytest.raises(ValueError, match="is not a folder of task folders"):
        task_folders(root)
    for name in ("b", "a", "c"):
        write_task(make_task(), root / name)
    (root / ".hidden").mkdir()
    (root / "notes.md").touch()
    assert task_folders(root) == (root / "a", root / "b", root / "c")
    with pytest.raises(ValueError, match=r"tasks is a folder of task folders; name one of them, or all: .*/tasks/\*$"):
        read_task(root)
    with pytest.raises(ValueError, match=r"a is a task folder itself; name the folder that it is in, .*/tasks$"):
        task_folders(root / "a")
    (root / "d").symlink_to(root / "a")
    with pytest.raises(ValueError, match="d is a link"):
        task_folders(root)
    (root / "d").unlink()
    (root / "c/task.toml").unlink()
    with pytest.raises(ValueError, match=r"c has no task\.toml"):
        task_folders(root)
    with pytest.raises(ValueError, match="has no task folders"):
        task_folders(root / ".hidden")
    with pytest.raises(ValueError, match="there is no task folder"):
        read_task(root / "nowhere")
