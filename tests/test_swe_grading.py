"""Verdicts on patches in real containers: the honest solution passes, doing nothing and every known cheat fail."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from environments.containers.base import Containers
from environments.containers.make import make_containers
from environments.swe.base_tree import BaseTree
from environments.swe.grading import PatchGrader, PatchVerdict, grade_patch
from environments.swe.records import Outcome, Patch, RepoTask, SuiteRequest, SuiteResult
from environments.swe.suite import run_suite
from tests.containers_host import engine  # noqa: F401
from tests.swe_attacks import ATTACKS
from tests.swe_attacks_inside import ATTACKS_INSIDE, HONEST_REPAIR
from tests.swe_repository import BROKEN, LIBRARY, change, make_image, make_task

pytestmark = pytest.mark.timeout(600)
T = TypeVar("T")
HANG_SECONDS = 20.0
REACHED = tuple(sorted({test for one in ATTACKS_INSIDE for test in one.tests}))
"""Tests that the solution passes and that attacks are after."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def with_containers(work: "Any") -> Any:
    """Run `work(containers)`."""

    async def run() -> Any:
        containers = make_containers()
        try:
            return await work(containers)
        finally:
            await containers.close()

    return asyncio.run(run())


async def gold_of(containers: Containers) -> tuple[BaseTree, RepoTask]:
    base = await BaseTree.of(make_task(gold=Patch(data=b"")), containers)
    return base, make_task(gold=await base.patch_of([change("calc.py", LIBRARY)]))


@pytest.fixture(scope="module")
def verdicts(engine: str) -> dict[str, PatchVerdict]:  # noqa: F811
    """Of every attack, of the solution, and of variants of it, graded at the same time."""

    async def work(containers: Containers) -> dict[str, PatchVerdict]:
        await make_image(containers)
        base, task = await gold_of(containers)
        slow = make_task(gold=task.gold, seconds=HANG_SECONDS)
        grader = PatchGrader(containers)

        async def grade(name: str, changes: Any, of: RepoTask = task) -> tuple[str, PatchVerdict]:
            patch = task.gold if changes is None else await base.patch_of(changes)
            return name, await grader.grade(of, patch)

        printing = LIBRARY + "\n\nfor _ in range(100):\n    print('x' * (1 << 20))\n"
        found: list[Coroutine[Any, Any, tuple[str, PatchVerdict]]] = [
            *(grade(one.name, one.changes(), slow if one.name == "hangs" else task) for one in ATTACKS),
            *(grade(one.name, one.changes(), make_task(gold=task.gold, tests=one.tests)) for one in ATTACKS_INSIDE),
            *(grade(f"gold for {test}", None, make_task(gold=task.gold, tests=(test,))) for test in REACHED),
            grade("gold with odd words", [change("calc.py", HONEST_REPAIR)]),
            grade("gold", None),
            grade("gold and deleted tests", [change("calc.py", LIBRARY), change("tests/test_calc.py", None)]),
            grade("gold that prints 100 MB", [change("calc.py", printing)]),
            grade("gold with odd files", [change("calc.py", LIBRARY), change('data/a b\n"c.bin', bytes(range(256)))]),
            grade("gold in CRLF", [change("calc.py", LIBRARY.replace("\n", "\r\n"))]),
            grade("gold as a package", [change("calc.py", None), change("calc/__init__.py", LIBRARY)]),
            grade("half", [change("calc.py", BROKEN.replace("result = 1", "result = 0"))]),
            grade("breaks another", [change("calc.py", LIBRARY.replace("def add(a, b):", "def add(a, b):\n    assert a != 'a'"))]),
        ]
        try:
            return dict(await asyncio.gather(*found))
        finally:
            await grader.close()

    found: dict[str, PatchVerdict] = with_containers(work)
    return found


@pytest.mark.parametrize("attack", (*ATTACKS, *ATTACKS_INSIDE), ids=lambda attack: attack.name)
def test_an_attack_fails(attack: Any, verdicts: dict[str, PatchVerdict]) -> None:
    verdict = verdicts[attack.name]
    assert verdict.status == "failed"
    assert attack.reason in verdict.reason


@pytest.mark.parametrize(
    "name",
    [
        "gold",
        *(
            f"gold {how}"
            for how in ("and deleted tests", "that prints 100 MB", "with odd files", "in CRLF", "as a package", "with odd words")
        ),
    ],
)
def test_a_repair_passes(name: str, verdicts: dict[str, PatchVerdict]) -> None:
    verdict = verdicts[name]
    assert (verdict.status, verdict.fail_to_pass, verdict.pass_to_pass) == ("passed", 1.0, 1.0), verdict.reason
    assert verdict.reason == "all 8 tests passed"


@pytest.mark.parametrize("test", REACHED)
def test_what_attacks_are_after_passes_for_the_solution(test: str, verdicts: dict[str, PatchVerdict]) -> None:
    assert verdicts[f"gold for {test}"].status == "passed", verdicts[f"gold for {test}"].reason


def test_a_half_repair_fails_and_says_what_is_left(verdicts: dict[str, PatchVerdict]) -> None:
    verdict = verdicts["half"]
    assert (verdict.status, verdict.fail_to_pass, verdict.pass_to_pass) == ("failed", 5 / 6, 1.0)
    assert verdict.reason == "1 of 6 fail_to_pass tests did not pass: tests/test_calc.py::test_money failed"


def test_a_repair_that_breaks_another_test_fails(verdicts: dict[str, PatchVerdict]) -> None:
    verdict = verdicts["breaks another"]
    assert (verdict.status, verdict.fail_to_pass, verdict.pass_to_pass) == ("failed", 1.0, 0.5)


def test_what_was_put_back_is_named(verdicts: dict[str, PatchVerdict]) -> None:
    assert verdicts["gold and deleted tests"].overruled == ("tests/test_calc.py",)


def test_empty_and_damaged_patches_fail_without_a_container(verdicts: dict[str, PatchVerdict]) -> None:
    async def work(containers: Containers) -> list[PatchVerdict]:
        _, task = await gold_of(containers)
        return [await grade_patch(containers, task, Patch(data=data)) for data in (b" \n", b"rubbish", b"diff --git a/x b/x\n")]

    found = with_containers(work)
    assert [one.status for one in found] == ["failed"] * 3
    assert found[0].reason == "the patch is empty"
    assert all(not one.tests for one in found)


def test_a_task_whose_own_solution_lacks_tests_is_ungradable(verdicts: dict[str, PatchVerdict]) -> None:
    async def work(containers: Containers) -> PatchVerdict:
        base, task = await gold_of(containers)
        broken = RepoTask(
            id="broken", image=task.image, instruction="", overlay=task.overlay, gold=task.gold,
            fail_to_pass=("tests/test_calc.py::test_gone",), pass_to_pass=(),
        )  # fmt: skip
        return await grade_patch(containers, broken, await base.patch_of([change("calc.py", LIBRARY + "\n# more\n")]))

    verdict = with_containers(work)
    assert verdict.status == "ungradable"
    assert "own solution does not pass" in verdict.reason


def test_the_same_patch_is_graded_once(verdicts: dict[str, PatchVerdict]) -> None:
    async def work(containers: Containers) -> tuple[PatchVerdict, ...]:
        _, task = await gold_of(containers)
        grader = PatchGrader(containers)
        try:
            both = await asyncio.gather(grader.grade(task, task.gold), grader.grade(task, task.gold))
            return (*both, await grader.grade(task, task.gold))
        finally:
            await grader.close()

    first, second, third = with_containers(work)
    assert first is second is third
    assert all(test.outcome is Outcome.PASSED for test in first.tests)


RIGHTS = """
import os, pytest

def test_rights():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    assert {lines[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (lines["Uid"].split(), lines["Gid"].split(), lines["Groups"].split()) == (["1001"] * 4, ["1001"] * 4, [])
    assert lines["NoNewPrivs"].strip() == "1"
    for act in (
        lambda: os.setresuid(0, 0, 0), lambda: os.setresgid(0, 0, 0), lambda: os.setgroups([0]), lambda: os.setuid(0),
        lambda: os.chown("calc.py", 1001, 1001), lambda: os.chmod("calc.py", 0o666), lambda: os.utime("calc.py", (1, 1)),
        lambda: open("calc.py", "a"), lambda: open("tests/new.py", "w"), lambda: open("new.py", "w"), lambda: os.unlink("calc.py"),
        lambda: os.rename("tests", "other"),
    ):
        with pytest.raises(PermissionError):
            act()
    assert {os.stat(name).st_uid for name in (".", "calc.py", "tests")} == {0}
    home = os.path.expanduser("~/kept")
    open(home, "w").close()
    assert os.stat(home).st_uid == 1001
"""


def test_the_process_of_the_tests_has_given_up_all_rights(engine: str) -> None:  # noqa: F811
    async def work(containers: Containers) -> SuiteResult:
        await make_image(containers)
        task = make_task(gold=Patch(data=b""))
        request = SuiteRequest(changes=(change("tests/test_rights.py", RIGHTS),), tests=("tests/test_rights.py::test_rights",))
        return await run_suite(containers, image=task.image, work_dir=task.work_dir, request=request)

    found: SuiteResult = with_containers(work)
    assert [one.outcome for one in found.tests] == [Outcome.PASSED], (found.tests[0].detail, found.reason)


REACH = """
import ctypes, fcntl, json, os, subprocess, sys, termios

LOOK = r'''
import ctypes, json, os, sys
pid, libc, got = os.getppid(), ctypes.CDLL(None, use_errno=True), []

def tried(name, act):
    try:
        act()
        got.append(name)
    except PermissionError:
        pass

for name in ("mem", "maps", "environ", "stack", "syscall", "auxv"):
    tried(name, lambda: open(f"/proc/{pid}/{name}", "rb").read(1))
for name in ("fd", "map_files", "fdinfo"):
    tried(name, lambda: os.listdir(f"/proc/{pid}/{name}"))
for name in ("cwd", "root", "exe", *(f"fd/{number}" for number in range(3))):
    tried(name, lambda: os.readlink(f"/proc/{pid}/{name}"))
for name, number, *arguments in (
    ("ptrace", 101, 16, pid, 0, 0), ("process_vm_readv", 310, pid, 0, 0, 0, 0, 0), ("process_vm_writev", 311, pid, 0, 0, 0, 0, 0),
    ("pidfd_getfd", 438, libc.syscall(434, pid, 0), 1, 0), ("kcmp", 312, pid, os.getpid(), 0, 1, 1), ("keyctl", 250, 0, -3, 0),
    ("add_key", 248, 0, 0, 0, 0), ("bpf", 321, 0, 0, 0), ("io_uring_setup", 425, 1, 0), ("userfaultfd", 323, 0), ("unshare", 272, 1 << 28),
):
    if libc.syscall(number, *arguments) >= 0:
        got.append(name)
for signal in (9, 15, 19):
    os.kill(pid, signal)
json.dump(got, sys.stdout)
'''

def test_reach():
    told = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (0, "[]"), told
    with pytest.raises(PermissionError):
        open("/proc/self/mem", "rb")
    for number in range(3):
        with pytest.raises(OSError):
            fcntl.ioctl(number, termios.TIOCSTI, b"x")
"""


def test_programs_that_tests_start_do_not_reach_the_process_of_the_tests(engine: str) -> None:  # noqa: F811
    """It was root before and runs no program since: the kernel keeps it from being looked into, by its own user, too."""

    async def work(containers: Containers) -> SuiteResult:
        await make_image(containers)
        task = make_task(gold=Patch(data=b""))
        files = (change("tests/test_reach.py", f"import pytest\n{REACH}"),)
        request = SuiteRequest(changes=files, tests=("tests/test_reach.py::test_reach",))
        return await run_suite(containers, image=task.image, work_dir=task.work_dir, request=request)

    found: SuiteResult = with_containers(work)
    assert [one.outcome for one in found.tests] == [Outcome.PASSED], (found.tests[0].detail, found.reason)
