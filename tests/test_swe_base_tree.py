"""The base of a task: what an agent is given, what its tree comes to as a patch, and patches of any kind and intent."""

import asyncio
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from environments.swe import base_tree
from environments.swe.agent_box import read_changes
from environments.swe.base_tree import BaseTree
from environments.swe.inside.driver_changes import Changes
from environments.swe.inside.stage import fill
from environments.swe.records import Patch, PatchError, RepoTask, TreeChange

T = TypeVar("T")
IMAGE_FILES = {
    b"lib/calc.py": b"def add(a, b):\n    return a + b\n",
    b"lib/__init__.py": b"",
    b"README": b"Sums.\n",
    b"run": b"#!/bin/sh\n",
}
OVERLAY = (TreeChange(path=b"lib/calc.py", mode=0o100644, data=b"def add(a, b):\n    return a - b\n"),)
TASK = RepoTask(
    id="t", image="calc", instruction="", overlay=OVERLAY, gold=Patch(data=b""), fail_to_pass=("tests/test_calc.py::test",), pass_to_pass=()
)
ODD = b'a b/\xff\n"\t\\.bin'


def tar_of(files: Mapping[bytes, bytes], *, links: Mapping[bytes, bytes] | None = None, programs: tuple[bytes, ...] = ()) -> bytes:
    """As an engine archives the work folder."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo("testbed/" + path.decode("utf-8", "surrogateescape"))
            entry.size, entry.mode = len(data), 0o755 if path in programs else 0o644
            tar.addfile(entry, io.BytesIO(data))
        for path, target in (links or {}).items():
            entry = tarfile.TarInfo("testbed/" + path.decode("utf-8", "surrogateescape"))
            entry.type, entry.linkname = tarfile.SYMTYPE, target.decode("utf-8", "surrogateescape")
            tar.addfile(entry)
        fifo = tarfile.TarInfo("testbed/fifo")
        fifo.type = tarfile.FIFOTYPE
        tar.addfile(fifo)
    return packed.getvalue()


async def handed_in(base: BaseTree, files: Mapping[bytes, bytes], *, links: Mapping[bytes, bytes], programs: tuple[bytes, ...]) -> Patch:
    """The patch of a work folder with these files, as the driver tells it."""
    with tempfile.TemporaryDirectory() as name:
        folder = os.fsencode(name)
        listed = [(path, 0o100755 if path in programs else 0o100644, None, data) for path, data in files.items()]
        fill(folder, [], [*listed, *((path, 0o120000, None, target) for path, target in links.items())])
        os.mkfifo(os.path.join(folder, b"fifo"))
        found = Changes(folder, await base.listing(), most=1 << 30)
        return await base.diff(read_changes(b"".join(found.data())))


class OneImage:
    """Stands for an engine that has one image; counts how often its tree was fetched."""

    def __init__(self) -> None:
        self.fetched = 0

    async def image_id(self, image: str) -> str:
        return f"sha256:{image}"

    async def image_tree(self, image: str, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        self.fetched += 1
        await asyncio.sleep(0)
        return tar_of(IMAGE_FILES, links={b"link": b"README"}, programs=(b"run",))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def on_base(work: Callable[[BaseTree], Awaitable[T]], *, engine: Any = None) -> T:
    async def run() -> T:
        return await work(await BaseTree.of(TASK, engine or OneImage()))

    return asyncio.run(run())


def applied(data: bytes) -> tuple[TreeChange, ...]:
    return on_base(lambda base: base.apply(Patch(data=data)))


def new_file(path: str, text: str = "x", *, mode: str = "100644") -> bytes:
    head = f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{text}\n"
    return (head + "\\ No newline at end of file\n").encode()


def refused(*parts: bytes) -> str:
    with pytest.raises(PatchError) as caught:
        applied(b"".join(parts))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_changed_comes_back_from_the_patch() -> None:
    """Any bytes in names and contents, CRLF, links, modes, deletions, a file in a folder's place."""
    after = {b"lib/calc.py": b"def add(a, b):\r\n    return a + b\r\n", ODD: bytes(range(256)), b"README": b"no end", b"new/deep/x": b""}
    files = {**after, b"lib": b"", b"run": b"#!/bin/sh\n"}
    del files[b"lib/calc.py"]

    async def work(base: BaseTree) -> tuple[Patch, tuple[TreeChange, ...]]:
        patch = await handed_in(base, files, links={b"link": b"lib/calc.py", b"dead": b"nowhere"}, programs=())
        return patch, await base.apply(patch)

    patch, changes = on_base(work)
    found = {change.path: (change.mode, change.data) for change in changes}
    assert b"GIT binary patch" in patch.data
    assert found.pop(ODD) == (0o100644, bytes(range(256)))
    assert found.pop(b"link") == (0o120000, b"lib/calc.py")
    assert found.pop(b"dead") == (0o120000, b"nowhere")
    assert found.pop(b"README") == (0o100644, b"no end")
    assert found.pop(b"run") == (0o100644, b"#!/bin/sh\n")
    assert found.pop(b"new/deep/x") == (0o100644, b"")
    assert found.pop(b"lib") == (0o100644, b"")
    assert found == {b"lib/calc.py": (None, b""), b"lib/__init__.py": (None, b"")}


def test_an_unchanged_tree_is_an_empty_patch() -> None:
    files = {**IMAGE_FILES, OVERLAY[0].path: OVERLAY[0].data}
    patch = on_base(lambda base: handed_in(base, files, links={b"link": b"README"}, programs=(b"run",)))
    assert patch.data == b""


def test_git_byte_code_and_droppings_are_left_out_but_ignored_files_are_not() -> None:
    files = {**IMAGE_FILES, OVERLAY[0].path: OVERLAY[0].data, b".gitignore": b"build\n", b"build/kept.py": b"1\n"}
    for path in (b".git/config", b"sub/.git/HEAD", b"lib/__pycache__/calc.cpython-311.pyc", b".pytest_cache/x", b"a.swp"):
        files[path] = b"x"

    async def work(base: BaseTree) -> tuple[TreeChange, ...]:
        return await base.apply(await handed_in(base, files, links={b"link": b"README"}, programs=(b"run",)))

    assert [change.path for change in on_base(work)] == [b".gitignore", b"build/kept.py"]


def test_patches_of_git_itself_apply() -> None:
    """A rename, a change of mode, and CRLF."""
    rename = b"diff --git a/README b/docs/READ ME\nsimilarity index 100%\nrename from README\nrename to docs/READ ME\n"
    mode = b"diff --git a/run b/run\nold mode 100755\nnew mode 100644\n"
    crlf = b"diff --git a/c b/c\nnew file mode 100644\n--- /dev/null\n+++ b/c\n@@ -0,0 +1,2 @@\n+a\r\n+b\r\n"
    found = {change.path: (change.mode, change.data) for change in applied(rename + mode + crlf)}
    assert found == {
        b"README": (None, b""),
        b"docs/READ ME": (0o100644, b"Sums.\n"),
        b"run": (0o100644, b"#!/bin/sh\n"),
        b"c": (0o100644, b"a\r\nb\r\n"),
    }


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ".git/hooks/pre-commit", "a/.GIT/config"])
def test_a_path_outside_of_the_tree_is_refused(path: str) -> None:
    assert "x" in refused(new_file(path)) or "git" in refused(new_file(path)).lower()


@pytest.mark.parametrize(
    "files",
    [
        [("l", "/etc/passwd")],
        [("l", "../x")],
        [("lib/l", "../../x")],
        [("l", "m/.."), ("m", ".")],
        [("l", "lib/m/x"), ("lib/m", "../..")],
        [("lib/link2", "../link/../../x")],
        [("deep", "lib/up/../.."), ("lib/up", "..")],
    ],
)
def test_a_link_out_of_the_tree_is_refused_by_whatever_way(files: list[tuple[str, str]]) -> None:
    assert "leads out of the tree" in refused(*(new_file(path, target, mode="120000") for path, target in files))


def test_links_inside_the_tree_and_in_circles_are_taken() -> None:
    links = {"lib/up": "../README", "round": "round", "one": "two", "two": "one"}
    changes = applied(b"".join(new_file(path, target, mode="120000") for path, target in links.items()))
    assert {change.path.decode(): change.data.decode() for change in changes} == links


def test_a_submodule_is_refused() -> None:
    head = b"diff --git a/s b/s\nnew file mode 160000\n--- /dev/null\n+++ b/s\n@@ -0,0 +1 @@\n+Subproject commit " + b"1" * 40 + b"\n"
    assert "submodule" in refused(head)


def test_damaged_and_foreign_patches_are_refused() -> None:
    assert refused(b"rubbish") == "the patch does not apply: No valid patches in input"
    assert "does not apply" in refused(b"diff --git a/README b/README\n--- a/README\n+++ b/README\n@@ -1 +1 @@\n-other\n+more\n")
    assert "does not apply" in refused(b"diff --git a/x b/x\nnew file mode 100644\nGIT binary patch\nliteral 3\nzzzz\n\n")


def test_what_is_too_large_is_refused_by_the_name_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_tree, "MOST_PATCH_FILES", 3)
    assert "4 files; the limit is 3" in refused(*(new_file(f"f{number}") for number in range(4)))
    with pytest.raises(PatchError, match="files are changed; the limit is 3"):
        on_base(lambda base: base.diff([TreeChange(path=b"%d" % number, mode=0o100644) for number in range(9)]))
    monkeypatch.setattr(base_tree, "MOST_PATCH_BYTES", 2000)
    assert "the limit is 2000" in refused(new_file("x", "y" * 3000))
    monkeypatch.setattr(base_tree, "MOST_FILE_BYTES", 1 << 20)
    with pytest.raises(PatchError, match="larger than 1 MiB"):
        on_base(lambda base: base.diff([TreeChange(path=b"big", mode=0o100644, data=bytes(2 << 20))]))


def test_a_patch_that_unpacks_to_far_more_than_its_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(base: BaseTree) -> tuple[TreeChange, ...]:
        patch = await base.patch_of([TreeChange(path=b"zeros", mode=0o100644, data=bytes(8 << 20))])
        assert len(patch.data) < 1 << 20
        monkeypatch.setattr(base_tree, "MOST_CHANGED_BYTES", 4 << 20)
        return await base.apply(patch)

    with pytest.raises(PatchError, match="the limit is"):
        on_base(work)


def test_the_agents_repository_has_one_commit_and_no_trace_of_the_original(tmp_path: Path) -> None:
    files = [(path, 0o100644, None, data) for path, data in IMAGE_FILES.items() if path != b"run"]
    files = [(b"lib", 0o40755, None, b""), *files, (b"run", 0o100755, None, b"#!/bin/sh\n"), (b"link", 0o120000, None, b"README")]
    (tmp_path / "work").mkdir()
    fill(os.fsencode(tmp_path / "work"), files, on_base(lambda base: base.agent_files()))

    def git(*arguments: str) -> str:
        command = ["git", "-c", "safe.directory=*", *arguments]
        return subprocess.run(command, cwd=tmp_path / "work", check=True, capture_output=True, text=True).stdout

    assert git("status", "--porcelain") == ""
    assert git("rev-list", "--all", "--count") == "1\n"
    assert git("for-each-ref", "--format=%(refname)") == "refs/heads/main\n"
    assert git("remote") == git("reflog", "--all") == git("stash", "list") == git("fsck", "--unreachable", "--no-progress") == ""
    ids = [line.split()[0] for line in git("cat-file", "--batch-all-objects", "--batch-check").splitlines()]
    contents = [git("cat-file", "-p", one).encode() for one in ids if git("cat-file", "-t", one) != "tree\n"]
    assert OVERLAY[0].data in contents
    assert IMAGE_FILES[b"lib/calc.py"] not in contents


def test_an_image_is_fetched_once_whoever_asks(tmp_path: Path) -> None:
    engine = OneImage()

    async def work() -> set[frozenset[bytes]]:
        bases = await asyncio.gather(*(BaseTree.of(TASK, engine) for _ in range(8)))  # type: ignore[arg-type]
        return {await base.paths() for base in bases}

    assert asyncio.run(work()) == asyncio.run(work()) == {frozenset({*IMAGE_FILES, b"link"})}
    assert engine.fetched == 1


def test_settings_of_the_machine_do_not_reach_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text("[diff]\n\tnoprefix = true\n[core]\n\tquotePath = false\n[apply]\n\twhitespace = error\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    changes = applied(new_file("x", "trailing space "))
    assert changes[0].data == b"trailing space "


def test_new_names_are_the_highest_that_the_base_lacks() -> None:
    changes = [TreeChange(path=path, mode=0o100644) for path in (b"lib/new.py", b"lib/calc.py", b"pkg/a/b.py", b"top.py")]
    assert on_base(lambda base: base.new_names(changes)) == ("lib/new.py", "pkg", "top.py")


def test_content_that_a_patch_only_names_is_not_taken_from_what_the_host_has() -> None:
    """The image's file before the overlay is in the host's repository; whoever knows its name would not need to know its text."""
    old, new = (hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for data in (OVERLAY[0].data, IMAGE_FILES[b"lib/calc.py"]))
    head = f"diff --git a/lib/calc.py b/lib/calc.py\nindex {old}..{new} 100644\n"
    for form in ("Binary files a/lib/calc.py and b/lib/calc.py differ\n", "GIT binary patch\nliteral 0\nHcmV?d00001\n\n"):
        assert "names content that is not in the tree" in refused(head.encode() + form.encode())


def test_the_cache_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "codeworld-rl" / "trees"
    asyncio.run(BaseTree.of(TASK, OneImage()))  # type: ignore[arg-type]
    monkeypatch.setattr(base_tree, "_MOST_CACHE_BYTES", 1)
    asyncio.run(BaseTree.of(replace(TASK, image="young"), OneImage()))  # type: ignore[arg-type]
    assert len(list(folder.iterdir())) == 2  # used within the hour
    (folder / "tree-left").mkdir()
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    asyncio.run(BaseTree.of(replace(TASK, image="other"), OneImage()))  # type: ignore[arg-type]
    assert len(list(folder.iterdir())) == 1
