"""The rewards swe and cwm_swe, rl swe grade and rl swe validate, on task folders in real containers."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from environments.containers.base import Containers
from environments.containers.make import make_containers
from environments.records import Episode, Problem, StopReason, Task
from environments.swe.base_tree import BaseTree
from environments.swe.folder import write_task
from environments.swe.records import Patch, SuiteRequest, SuiteResult
from environments.swe.suite import run_suite
from rewards.registry import make_grader
from rewards.score import Score, ScoreStatus
from rewards.swe import similarity
from rl.cli import main
from tests.containers_host import engine  # noqa: F401
from tests.swe_repository import BROKEN, IMAGE, LIBRARY, change, make_image, make_task

pytestmark = pytest.mark.timeout(600)
NEAR = BROKEN.replace("self.amount - other.amount", "self.amount + other.amount")
"""Half of the solution: one of its two changed lines."""
FAR = BROKEN + "\n\ndef more():\n    return 'nothing to do with it'\n" * 3


@pytest.fixture(scope="module")
def folders(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:  # noqa: F811
    """`tasks/good`, a sound task; patches beside it."""
    root = tmp_path_factory.mktemp("swe")

    async def make() -> None:
        containers = make_containers()
        try:
            await make_image(containers)
            base = await BaseTree.of(make_task(gold=Patch(data=b"")), containers)
            patches = {"gold": LIBRARY, "near": NEAR, "far": FAR}
            more = [change("calc.py", f"import atexit\n{LIBRARY}"), change("tests/test_calc.py", "")]
            (root / "more.patch").write_bytes((await base.patch_of(more)).data)
            for name, text in patches.items():
                (root / f"{name}.patch").write_bytes((await base.patch_of([change("calc.py", text)])).data)
            (root / "tests.patch").write_bytes((await base.patch_of([change("tests/test_calc.py", "")])).data)
        finally:
            await containers.close()

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(root / "cache"))
        asyncio.run(make())
        good = make_task(gold=Patch(data=(root / "gold.patch").read_bytes()))
        write_task(good, root / "tasks" / "good")
        write_task(replace(good, id="no-image", image="codeworld-rl-test:gone"), root / "tasks" / "no-image")
        passes = replace(good, id="passes-already", fail_to_pass=good.pass_to_pass, pass_to_pass=())
        write_task(passes, root / "tasks" / "passes-already")
        wrong = replace(good, id="wrong-solution", gold=Patch(data=(root / "near.patch").read_bytes()))
        write_task(wrong, root / "tasks" / "wrong-solution")
        write_task(good, root / "tasks" / "no-tests")
        (root / "tasks" / "no-tests" / "tests" / "tests.json").unlink()
        yield root


def score(reward: str, folder: Path, outcome: dict[str, Any]) -> Score:
    async def run() -> Score:
        grader = make_grader(reward)
        problem = Problem(task=Task(id="t", env="swe", prompt=()), reference={"folder": str(folder)}, source="test")
        episode = Episode(messages=(), stop_reason=StopReason.MAX_TURNS, n_sampled_tokens=0, outcome=outcome)
        try:
            return await grader.grade(problem, episode)
        finally:
            await grader.close()

    return asyncio.run(run())


def outcome_of(folders: Path, name: str) -> dict[str, Any]:
    return Patch(data=(folders / f"{name}.patch").read_bytes()).to_json()


def test_a_pass_is_worth_one_in_both(folders: Path) -> None:
    for reward in ("swe", "cwm_swe"):
        found = score(reward, folders / "tasks/good", outcome_of(folders, "gold"))
        assert (found.reward, found.status) == (1.0, ScoreStatus.OK)
        assert found.parts["fail_to_pass"].value == found.parts["pass_to_pass"].value == 1.0


def test_a_failing_patch_that_is_near_gets_cwms_middle_reward(folders: Path) -> None:
    plain, near = (score(reward, folders / "tasks/good", outcome_of(folders, "near")) for reward in ("swe", "cwm_swe"))
    assert (plain.reward, plain.status, plain.parts["fail_to_pass"].value) == (-1.0, ScoreStatus.POLICY_FAIL, 1 / 6)
    assert (near.reward, near.status) == (0.0, ScoreStatus.POLICY_FAIL)
    assert 0.5 <= near.parts["similarity"].value < 1.0
    far = score("cwm_swe", folders / "tasks/good", outcome_of(folders, "far"))
    assert far.reward == -1.0
    assert far.parts["similarity"].value < 0.5


def test_what_was_not_submitted_or_is_damaged_fails(folders: Path) -> None:
    for reward in ("swe", "cwm_swe"):
        nothing = score(reward, folders / "tasks/good", {})
        assert (nothing.reward, nothing.status) == (-1.0, ScoreStatus.POLICY_FAIL)
        assert "not submitted" in nothing.reason
        assert score(reward, folders / "tasks/good", {"patch": ""}).reward == -1.0
        assert "damaged" in score(reward, folders / "tasks/good", {"patch_base64": "%"}).reason


def test_a_broken_task_is_ungradable(folders: Path) -> None:
    for folder in (folders / "tasks/none", folders / "tasks/no-image"):
        found = score("swe", folder, outcome_of(folders, "gold"))
        assert (found.reward, found.status) == (None, ScoreStatus.UNGRADABLE)
        assert found.reason


def test_similarity_is_of_changes_and_not_of_files() -> None:
    before = "".join(f"line {number}\n" for number in range(200))
    gold = [change("a", before.replace("line 7\n", "line seven\n")), change("b", "x\n")]
    contents = {b"a": before.encode()}
    assert similarity(gold, gold, before=contents) == 1.0
    assert similarity([], gold, before=contents) == 0.0
    assert similarity(gold[:1], gold, before=contents) == 0.5
    assert similarity([change("c", "x\n")], gold, before=contents) == 0.0
    elsewhere = [change("a", before.replace("line 150\n", "something quite different\n"))]
    assert similarity(elsewhere, gold[:1], before=contents) < 0.6


def test_changes_that_do_nothing_and_changes_without_end_are_similar_to_nothing() -> None:
    lines = "".join(f"def f{number}(x):\n    return x + {number}\n\n\n" for number in range(40))
    gold, before = [change("a.py", lines.replace("x + 20", "x - 20"))], {b"a.py": lines.encode()}

    def of(text: str) -> float:
        return similarity([change("a.py", text)], gold, before=before)

    assert of(lines.replace("x + 20", "x - 21")) > 0.9
    for text in (lines.replace("x + 20", "x + 20  # x - 20"), lines.replace("x + 20\n", "x  +  20\n\n"), lines.replace("\n\n\n", "\n\n")):
        assert of(text) == 0.0
    assert of(lines.replace("    return x + 20\n", "    pass\n    return x + 20\n")) < 0.4  # what stands around it counts for nothing
    assert of(lines.replace("x + 20", "x - 20") + "\n" * 100_000) == 0.0
    assert of("(" * 10_000) < 0.5  # no Python
    indented = similarity(
        [change("a.py", "if x:\n    y\nz\n")], [change("a.py", "if x:\n    y\n    z\n")], before={b"a.py": b"if x:\n y\n z\n"}
    )
    assert indented > 0.5


def test_rl_swe_grade_prints_and_exits(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = str(folders / "tasks/good")
    assert main(["swe", "grade", task, "--patch", str(folders / "gold.patch"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["task"], printed["status"], printed["reward"]) == ("calc-1", "ok", 1.0)
    assert printed["notes"] == []
    assert main(["swe", "grade", task, "--patch", str(folders / "more.patch")]) == 0
    told = capsys.readouterr().out
    assert "tests/test_calc.py" in told and "to look at: calc.py: atexit" in told
    assert main(["swe", "grade", task, "--patch", str(folders / "near.patch"), "--reward", "cwm_swe"]) == 1
    assert "reward 0  5 of 6 fail_to_pass tests did not pass" in capsys.readouterr().out
    assert main(["swe", "grade", str(folders / "tasks/no-image"), "--patch", str(folders / "gold.patch")]) == 2
    assert "codeworld-rl-test:gone" in capsys.readouterr().out


def test_rl_swe_grade_names_what_is_wrong_with_its_input(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swe", "grade", str(folders / "nothing"), "--patch", str(folders / "gold.patch")]) == 2
    assert "there is no task folder" in capsys.readouterr().err
    assert main(["swe", "grade", str(folders / "tasks/no-tests"), "--patch", str(folders / "gold.patch")]) == 2
    assert "tests.json" in capsys.readouterr().err
    assert main(["swe", "grade", str(folders / "tasks/good"), "--patch", str(folders / "none.patch")]) == 2
    assert "--patch" in capsys.readouterr().err


def test_rl_swe_validate_tells_sound_tasks_from_others(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = folders / "tasks"
    assert main(["swe", "validate", str(tasks / "good"), "--repeat", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sound"], found["fail_to_pass"], found["pass_to_pass"]) == (True, 6, 2)
    names = ("passes-already", "wrong-solution", "no-image", "no-tests")
    assert main(["swe", "validate", *(str(tasks / name) for name in names), "--repeat", "1", "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["sound"] for row in rows] == [False] * 4
    for row, reason in zip(rows, ("passes already", "run 1 of the solution", "codeworld-rl-test:gone", "tests.json"), strict=True):
        assert reason in row["reason"]


def test_a_run_without_names_takes_all_tests_and_can_tell_what_they_enter(folders: Path) -> None:
    async def work(containers: Containers) -> tuple[SuiteResult, SuiteResult]:
        everything = await run_suite(containers, image=IMAGE, work_dir="/testbed", request=SuiteRequest(coverage=True))
        asked = ("tests/test_calc.py::test_add", "tests/test_calc.py::gone", "tests/gone.py::test")
        return everything, await run_suite(containers, image=IMAGE, work_dir="/testbed", request=SuiteRequest(tests=asked))

    async def run() -> tuple[SuiteResult, SuiteResult]:
        containers = make_containers()
        try:
            return await work(containers)
        finally:
            await containers.close()

    everything, asked = asyncio.run(run())
    assert (everything.ended, len(everything.passed())) == ("finished", 16)
    entered = {name.split(":")[1]: tests for name, tests in everything.covered.items()}
    assert entered["Money.__add__"] == ("tests/test_calc.py::test_money", "tests/test_more.py::test_all")
    assert "tests/test_calc.py::TestOld::test_total" in entered["total"]
    assert [(test.id, test.outcome.value) for test in asked.tests] == [
        ("tests/test_calc.py::test_add", "passed"),
        ("tests/test_calc.py::gone", "missing"),
        ("tests/gone.py::test", "missing"),
    ]
