"""Patches and drivers that aim at the host: at its time, its memory, its retries. Each comes to a verdict or a refusal, never to a failure
of the infrastructure."""

import asyncio
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from environments.containers.base import Containers
from environments.swe import base_tree
from environments.swe.agent_box import read_changes
from environments.swe.base_tree import BaseTree
from environments.swe.git import GitError, git, make_repository
from environments.swe.grading import PatchVerdict, grade_patch, split_changes
from environments.swe.inside.modes import LINK
from environments.swe.links import check_links
from environments.swe.patch_scan import scan_changes
from environments.swe.records import Patch, PatchError, RepoTask, SuiteRequest, SuiteResult, TreeChange
from environments.swe.suite import run_suite
from rewards.swe_log import notes_of, verdict_log
from tests.containers_host import engine  # noqa: F401
from tests.repo_image import Talk, talk, task_folder
from tests.swe_repository import LIBRARY, change, make_image, make_task
from tests.test_swe_grading import with_containers

__all__ = ["task_folder"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


SWAPS: dict[str, tuple[TreeChange, ...]] = {
    "a folder for the settings": (change("pyproject.toml", None), change("pyproject.toml/x", "1")),
    "a folder for a test": (change("tests/test_calc.py", None), change("tests/test_calc.py/x.py", "1")),
    "a link for the tests": (change("tests/test_calc.py", None), change("tests/conftest.py", None), change("tests", "helpers", mode=LINK)),
    "a file for the tests": (change("tests/test_calc.py", None), change("tests/conftest.py", None), change("tests", "1")),
}


def test_what_stands_in_the_way_of_a_test_is_put_back(engine: str) -> None:  # noqa: F811
    async def work(containers: Containers) -> list[PatchVerdict]:
        await make_image(containers)
        base = await BaseTree.of(make_task(gold=Patch(data=b"")), containers)
        task = make_task(gold=await base.patch_of([change("calc.py", LIBRARY)]))
        patches = [await base.patch_of([change("calc.py", LIBRARY), *changes]) for changes in SWAPS.values()]
        return list(await asyncio.gather(*(grade_patch(containers, task, patch) for patch in patches)))

    for name, verdict in zip(SWAPS, with_containers(work), strict=True):
        assert verdict.status == "passed", (name, verdict.reason)
        assert {one.path.decode() for one in SWAPS[name]} <= set(verdict.overruled)


def test_a_folder_of_tests_with_other_names_cannot_be_replaced() -> None:
    task = RepoTask(
        id="t", image="i", instruction="", overlay=(), gold=Patch(data=b""), fail_to_pass=("spec/calc.py::test_x",), pass_to_pass=()
    )
    changes = (change("spec/calc.py", None), change("spec", "evil", mode=LINK), change("evil/calc.py", "def test_x(): pass"))
    kept, overruled = split_changes(changes, task=task, known={b"spec/calc.py"})
    assert [one.path for one in overruled] == [b"spec/calc.py", b"spec"]
    assert [one.path for one in kept] == [b"evil/calc.py"]


def test_changes_that_do_not_fit_fail_the_run_and_not_the_machine(engine: str) -> None:  # noqa: F811
    async def work(containers: Containers) -> SuiteResult:
        await make_image(containers)
        data = bytes(30 << 20)
        changes = tuple(TreeChange(path=b"z%d" % number, mode=0o100644, data=data) for number in range(9))
        request = SuiteRequest(changes=changes, tests=("tests/test_calc.py::test_add",))
        return await run_suite(containers, image=make_task(gold=Patch(data=b"")).image, work_dir="/testbed", request=request)

    result = with_containers(work)
    assert result.ended == "crashed"
    assert result.reason.endswith("the changes cannot be put there: No space left on device")


@pytest.mark.parametrize("target", [b"./" * 60_000, b"", b"a\0b", b"a" * 4096])
def test_a_link_that_linux_would_not_make_is_refused(target: bytes) -> None:
    with pytest.raises(PatchError, match="leads to no path"):
        check_links([TreeChange(path=b"l", mode=LINK, data=target)], links={b"l": target})


def test_links_that_multiply_are_followed_as_often_as_linux_does_and_not_for_ever() -> None:
    def check(count: int) -> None:
        links = {b"l%d" % number: b"/".join([b"l%d/.." % (number - 1)] * 500 + [b"x"]) for number in range(1, count)}
        check_links([TreeChange(path=path, mode=LINK, data=target) for path, target in links.items()], links=links)

    check(4)
    with pytest.raises(PatchError, match="too many ways"):
        check(60)


_DIGITS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"


def _binary_file(size: int) -> bytes:
    """A patch that adds a file of zeros, as git writes it; its own size is a thousandth."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
    lines = []
    for start in range(0, len(packed), 52):
        part = packed[start : start + 52]
        digits = bytearray()
        for at in range(0, len(part), 4):
            number = int.from_bytes(part[at : at + 4].ljust(4, b"\0"), "big")
            digits += bytes(_DIGITS[number // 85**place % 85] for place in (4, 3, 2, 1, 0))
        lines.append(bytes([len(part) + 64 if len(part) <= 26 else len(part) + 70]) + bytes(digits))
    head = b"diff --git a/z b/z\nnew file mode 100644\nindex %s..%s\nGIT binary patch\nliteral %d\n" % (b"0" * 40, b"1" * 40, size)
    return head + b"\n".join(lines) + b"\n\nliteral 0\nHcmV?d00001\n\n"


def test_a_binary_patch_that_unpacks_to_gigabytes_is_refused_before_the_memory_is_taken(tmp_path: Path) -> None:
    make_repository(tmp_path / "bare")
    patch = _binary_file(96 << 20)
    assert len(patch) < 200_000

    async def apply(memory: int | None) -> bytes:
        return await git(tmp_path / "bare", "apply", "--cached", "-", stdin=patch, memory_bytes=memory)

    with pytest.raises(GitError, match=r"(?i)out of memory|exit|malloc"):
        asyncio.run(apply(64 << 20))


def test_what_was_put_back_and_found_is_told_with_the_score() -> None:
    verdict = PatchVerdict(
        status="failed", reason="no", overruled=("tests/a.py", "tests/b.py"), told=("calc.py: atexit",), output="to look at: me"
    )
    put_back = "put back, because they are tests or settle how tests run"
    told = [f"{put_back}:", "  tests/a.py", "  tests/b.py", "to look at: calc.py: atexit"]
    assert notes_of(verdict_log(verdict)).splitlines() == told


@pytest.mark.parametrize("entry", ["[]", "{}", '["a",null,0]'])
def test_a_listing_that_would_fill_the_hosts_memory_is_not_read(entry: str) -> None:
    text = f"[{','.join([entry] * 250_000)}]".encode()
    json.loads(text)
    with pytest.raises(ValueError, match="too long"):
        read_changes(len(text).to_bytes(8, "big") + text)


def test_exit_codes_are_those_of_a_process(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        said = await one.step("bash", """trap 'builtin printf "9999999999999999999999\\0" >&8' DEBUG; echo""")
        assert said.messages[0].exit_code is None

    talk(task_folder, act)


_DEEP = """
import os
for _ in range(1200):
    os.mkdir("a")
    os.chdir("a")
open("file", "w").write("x")
"""


def test_folders_in_folders_do_not_end_the_driver(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        await one.bash(f"python3 -c '{_DEEP}'")
        assert "a/a/a" in str((await one.step("submit")).outcome)

    talk(task_folder, act)


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("here = sys.modules[__name__]", False),
        ("count = function.__code__.co_argcount", False),
        ("names = function.__code__.co_varnames[:2]", False),
        ("run = sys.modules['x']", False),
        ("sys.modules[__name__] = Lazy()", False),
        ("sys.modules['x'] = fake", True),
        ("sys.modules[__name__ + 'x'] = fake", True),
        ("del sys.modules['x']", True),
        ("sys.modules.pop('x')", True),
        ("function.__code__ = other", True),
        ("constants = function.__code__.co_consts", True),
        ("code = function.__code__.replace()", True),
    ],
)
def test_what_a_module_asks_of_itself_is_not_refused(line: str, refused: bool) -> None:
    scan = scan_changes([change("calc.py", f"{line}\n")], base={})
    assert bool(scan.refused) is refused, scan.refused


def test_what_is_kept_of_single_commits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_tree, "_MOST_KEPT", 2)
    for number in range(4):
        for kind in ("agent", "index"):
            (tmp_path / f"{kind}-{number}").write_bytes(b"")
            os.utime(tmp_path / f"{kind}-{number}", (number, number))
    (tmp_path / "index-young").write_bytes(b"")
    base_tree._prune_kept(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"index-young", "index-3"}
