"""The task factory: which mutants become tasks and why others fall, on a real repository in real containers; what an issue text says."""

import asyncio
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import docker
import pytest

from environments.containers.make import SharedContainers
from environments.swe.base_tree import BaseTree
from environments.swe.factory.failure import read_failure
from environments.swe.factory.gold import patched, restoring_patch
from environments.swe.factory.issue import file_text, issue_text
from environments.swe.factory.make import Order, Summary, make_tasks
from environments.swe.factory.mutations import KINDS
from environments.swe.factory.pool import Pool
from environments.swe.factory.report import parse_report
from environments.swe.factory.repository import find_targets, licence_of
from environments.swe.factory.similar import LARGEST_SIMILARITY, Kept, features, jaccard
from environments.swe.factory.stubs import stubs
from environments.swe.factory.trial import Fell
from environments.swe.folder import read_task, task_folders, write_task
from environments.swe.images.record import read_image
from environments.swe.images.rootfs import python_image_reference
from environments.swe.inside.modes import FILE
from environments.swe.records import Outcome, PatchError, RepoImage, SuiteRequest, SuiteResult, TestOutcome, TreeChange
from environments.swe.tool_bodies import Edit
from environments.swe.tool_format import parse_call
from examples.short_functions import module_text, write_repositories
from examples.short_functions_base import demonstrations, unused_functions
from rewards.score import Score, ScoreStatus
from rl.log.runs import prepare_run
from rl.log.writer import RolloutWriter
from rl.swe.image import image_command
from rl.swe.mutate import mutate_command
from rl.swe.rates import rates_command
from rl.swe.rows import import_command
from rl.swe.validate import validate_command
from tests.containers_host import engine
from tests.log_fakes import make_group, make_rollout
from tests.test_swe_folder import make_task

__all__ = ["engine"]

SHOP = '''\
"""A shop."""
import math


def price(amount, each=2):
    """What `amount` things cost."""
    total = amount * each
    if amount > 10:
        total = total - 1  # a present
    return total


def boxes(amount):
    """Boxes of six that hold them."""
    return math.ceil(amount / 6)


def unused(amount):
    return amount + 1
'''
TESTS = """\
import pytest
from shop import boxes, price


@pytest.mark.parametrize("amount, total", [(1, 2), (10, 20), (11, 21)])
def test_price(amount, total):
    assert price(amount) == total


class TestBoxes:
    def test_boxes(self):
        wanted = 2
        assert boxes(7) == wanted

    def test_no_number(self):
        with pytest.raises(TypeError):
            boxes("7")


def test_nothing():
    assert price(0) == 0


def test_skipped():
    pytest.skip("never")
"""


def changes(**texts: str) -> dict[str, TreeChange]:
    paths = {name.replace("__", "/") + ".py": text for name, text in texts.items()}
    return {path: TreeChange(path=path.encode(), mode=FILE, data=text.encode()) for path, text in paths.items()}


FILES = changes(shop=SHOP, tests__test_shop=TESTS)
PRICE = tuple(f"tests/test_shop.py::test_price[{case}]" for case in ("1-2", "10-20", "11-21"))
BOXES = ("tests/test_shop.py::TestBoxes::test_boxes", "tests/test_shop.py::TestBoxes::test_no_number")
IMAGE = RepoImage(
    image="codeworld/shop:1",
    image_id="sha256:0",
    name="shop",
    source="git:shop",
    base_commit="0" * 40,
    tests=dict.fromkeys((*PRICE, *BOXES, "tests/test_shop.py::test_nothing"), 0.01),
    covered={"shop.py:price:5": (*PRICE, "tests/test_shop.py::test_nothing"), "shop.py:boxes:13": BOXES},
)


# --- choosing -------------------------------------------------------------------------------------------------------


def test_only_functions_that_stable_tests_enter_are_broken() -> None:
    image = replace(IMAGE, covered={**IMAGE.covered, "shop.py:unused:18": ("tests/test_shop.py::flaky",)})
    targets, skipped = find_targets(image, FILES)
    wanted = {"price": (*PRICE, "tests/test_shop.py::test_nothing"), "boxes": BOXES}
    assert {target.name: target.tests for target in targets} == wanted
    assert skipped == {"not covered by a stable test": 1}


def test_decorated_functions_are_found_by_either_line_and_tests_are_left_alone() -> None:
    decorated = "import functools\n\n@functools.cache\ndef f():\n    return 1\n"
    files = changes(a=decorated, tests__helper="def g():\n    return 1\n", conftest="def h():\n    return 1\n")
    for line in (3, 4):
        covered = {f"a.py:f:{line}": PRICE, "tests/helper.py:g:1": PRICE, "conftest.py:h:1": PRICE}
        assert [target.name for target in find_targets(replace(IMAGE, covered=covered), files)[0]] == ["f"]


def draw(*, seed: int, count: int) -> list[str]:
    pool = Pool(find_targets(IMAGE, FILES)[0], kinds=tuple(KINDS), seed=seed)
    drawn = [found[1] for found in (pool.take() for _ in range(count)) if found]
    return [f"{one.kind} {one.function} {one.before} {one.after}" for one in drawn]


def test_draws_are_seeded_and_spread_over_kinds_and_functions() -> None:
    first = draw(seed=1, count=8)
    assert first == draw(seed=1, count=8) != draw(seed=2, count=8)
    assert len({one.split()[0] for one in first}) == 8, "every kind once before any comes twice"
    assert {one.split()[1] for one in first} == {"price", "boxes"}


def test_a_pool_gives_everything_once_and_kinds_that_fail_come_again() -> None:
    pool = Pool(find_targets(IMAGE, FILES)[0], kinds=tuple(KINDS), seed=0)
    mutants = []
    while found := pool.take():
        mutants.append(found[1])
        if found[1].kind == "constant":
            pool.fell(found[1])
    assert len({id(one) for one in mutants}) == len(mutants) == pool.size > 30
    assert sum(one.kind == "constant" for one in mutants[:16]) > 2


def test_likeness_is_jaccard_over_function_tests_and_tokens() -> None:
    base = {"file": "a.py", "function": "f", "kind": "arithmetic", "before": "+", "after": "-"}
    one = features(failing=["t1"], **base)
    assert jaccard(one, one) == 1.0
    assert jaccard(one, features(failing=["t1"], **(base | {"kind": "constant", "before": "1", "after": "2"}))) < LARGEST_SIMILARITY
    many = [f"t{n}" for n in range(9)]
    other = features(failing=many, **(base | {"function": "g", "kind": "constant", "before": "1", "after": "2"}))
    assert jaccard(features(failing=many, **base), other) > LARGEST_SIMILARITY, "two ways to break the same many tests"
    kept = Kept()
    kept.add(one, path="a.py", data=b"x")
    assert kept.has_like(one) and kept.has_text("a.py", b"x")
    assert not kept.has_like(other) and not kept.has_text("a.py", b"y")


# --- trying ---------------------------------------------------------------------------------------------------------


PRICE_FUNCTION = next(target for target in find_targets(replace(IMAGE, covered={"shop.py:price:5": PRICE}), FILES)[0])
STAND_INS = {stub.data for stub in stubs(PRICE_FUNCTION.source, PRICE_FUNCTION.function)}


class Suite:
    """Runs of the shop's tests whose verdicts are worked out here, so that odd ones can be put among them."""

    def __init__(self, *, odd: Sequence[str] = (), hollow: Sequence[str] = ()) -> None:
        self.odd = list(odd)
        """What becomes of the next runs of broken code: `timeout`, `crashed`, `all`, `none`."""
        self.hollow = hollow
        """Tests that a stand-in for the function passes."""
        self.runs = 0

    async def run(self, request: SuiteRequest) -> SuiteResult:
        self.runs += 1
        await asyncio.sleep(0)
        if any(change.data in STAND_INS for change in request.changes):
            outcomes = [TestOutcome(id=test, outcome=Outcome.PASSED if test in self.hollow else Outcome.FAILED) for test in request.tests]
            return SuiteResult(tests=tuple(outcomes), ended="finished", seconds=0.01)
        broken = any(change.data != FILES["shop.py"].data for change in request.changes)
        odd = self.odd.pop(0) if broken and self.odd else ""
        if odd in ("timeout", "crashed"):
            return SuiteResult(tests=(), ended=odd)
        fails = {"all": set(IMAGE.tests), "none": set()}.get(odd, {PRICE[0]} if broken else set())
        outcomes = [TestOutcome(id=test, outcome=Outcome.FAILED if test in fails else Outcome.PASSED) for test in request.tests]
        return SuiteResult(tests=tuple(outcomes), ended="finished", seconds=0.01)


async def no_reports(change: TreeChange, tests: Sequence[str]) -> dict[str, str]:
    return {}


def make(suite: Suite, out: Path, *, n_tasks: int = 1, kinds: tuple[str, ...] = ("arithmetic",), image: RepoImage = IMAGE) -> Summary:
    image = replace(image, covered={"shop.py:price:5": PRICE})
    order = Order(n_tasks=n_tasks, seed=0, kinds=kinds, style="issue", out=out)
    return asyncio.run(make_tasks(image, FILES, order=order, run=suite.run, reports=no_reports, on_result=lambda result, mutant: None))


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (["timeout"], Fell.TIMEOUT),
        (["crashed"], Fell.CRASH),
        (["none"], Fell.NO_FAILURE),
        (["", "timeout"], Fell.TIMEOUT),
        (["", "all"], Fell.MANY_FAILURES),
        (["", "none"], Fell.UNSTABLE),
        (["", "", "none"], Fell.UNSTABLE),
        (["", "", "", "timeout"], Fell.TIMEOUT),
    ],
)
def test_a_candidate_falls_for_a_counted_reason(odd: list[str], reason: Fell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("environments.swe.factory.make.IN_FLIGHT", 1)
    summary = make(Suite(odd=odd), tmp_path / "tasks")
    assert summary.fell == {reason: 1}
    assert summary.candidates == 2 and len(summary.kept) == 1
    assert len(task_folders(tmp_path / "tasks")) == 1


def test_a_candidate_whose_tests_a_stand_in_passes_falls(tmp_path: Path) -> None:
    kinds = ("arithmetic", "statement_removed", "body_removed")
    hollow = make(Suite(hollow=PRICE), tmp_path / "hollow", n_tasks=100, kinds=kinds)
    assert not hollow.kept and hollow.fell[Fell.HOLLOW]
    partly = make(Suite(hollow=PRICE[:1]), tmp_path / "partly", n_tasks=100, kinds=kinds)
    assert partly.kept and not partly.fell[Fell.HOLLOW], "the tests that notice the mutant pass, others that enter the function do not"


def test_tests_that_do_not_pass_unbroken_stop_everything(tmp_path: Path) -> None:
    async def run(request: SuiteRequest) -> SuiteResult:
        return SuiteResult(tests=(), ended="finished")

    order = Order(n_tasks=1, seed=0, kinds=("arithmetic",), style="issue", out=tmp_path / "tasks")
    with pytest.raises(ValueError, match="6 of 6 tests do not pass, for example"):
        asyncio.run(make_tasks(IMAGE, FILES, order=order, run=run, reports=no_reports, on_result=lambda result, mutant: None))


def test_alike_and_equal_candidates_fall_and_the_pool_ends(tmp_path: Path) -> None:
    summary = make(Suite(), tmp_path / "tasks", n_tasks=100, kinds=("arithmetic", "statement_removed", "body_removed"))
    assert summary.candidates == summary.possible
    assert summary.fell[Fell.SIMILAR] and 1 <= len(summary.kept) < 8
    again = make(Suite(), tmp_path / "tasks", n_tasks=100, kinds=("arithmetic", "statement_removed", "body_removed"))
    assert not again.kept and again.fell[Fell.SAME_TEXT] == len(summary.kept), "tasks that are there already count"


def test_a_failure_of_the_engine_ends_with_nothing_half_done(tmp_path: Path) -> None:
    suite = Suite()

    async def run(request: SuiteRequest) -> SuiteResult:
        if suite.runs > 12:
            raise OSError("gone")
        return await suite.run(request)

    order = Order(n_tasks=1, seed=0, kinds=("arithmetic",), style="issue", out=tmp_path / "tasks")
    with pytest.raises(OSError, match="gone"):
        asyncio.run(make_tasks(IMAGE, FILES, order=order, run=run, reports=no_reports, on_result=lambda result, mutant: None))
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize("path", [b"a.py", b"deep/er/a b.py", "ü\n.py".encode(), b"\xff.py", b"a/b/c.py"])
@pytest.mark.parametrize(
    ("before", "after"), [(b"x = 1\ny = 2\n", b"x = 1\ny = 3\n"), (b"x\r\ny", b"x\r\nz"), (b"a", b""), (b"x\n", b"y\xff\0\n")]
)
def test_the_gold_patch_comes_from_git_and_restores_the_file(path: bytes, before: bytes, after: bytes) -> None:
    broken = TreeChange(path=path, mode=0o100755, data=before)
    patch = restoring_patch(broken=broken, fixed=replace(broken, data=after))
    assert patch.data.startswith(b"diff --git ")
    assert patched(broken, patch) == replace(broken, data=after)
    with pytest.raises(PatchError):
        patched(replace(broken, data=b"something else\n"), patch)


# --- telling --------------------------------------------------------------------------------------------------------

DETAIL = """\
amount = 11, total = 21

    @pytest.mark.parametrize("amount, total", [(1, 2), (10, 20), (11, 21)])
    def test_price(amount, total):
>       assert price(amount) == total
E       assert 22 == 21
E        +  where 22 = price(11)

tests/test_shop.py:7: AssertionError"""
DEEP = """\
self = <tests.test_shop.TestBoxes object at 0x7f0123456789>

    def test_boxes(self):
        wanted = 2
>       assert boxes(7) == wanted

tests/test_shop.py:13: 
_ _ _ _ _ _ _ _

amount = 7

    def boxes(amount):
>       return math.ceil()
E       TypeError: ceil() takes exactly one argument (0 given) at 0x7f0123456789

shop.py:15: TypeError"""


def failed(test: str, detail: str) -> TestOutcome:
    return TestOutcome(id=test, outcome=Outcome.FAILED, detail=detail)


def test_an_issue_tells_what_is_seen_and_not_where_the_bug_is() -> None:
    failures = [read_failure(failed(PRICE[2], DETAIL), FILES), read_failure(failed(BOXES[0], DEEP), FILES)]
    price, boxes = failures
    assert (price.statement, price.values, price.called) == ("assert price(amount) == total", "amount = 11, total = 21", "price")
    assert (boxes.example, boxes.error, boxes.values) == ("wanted = 2\nassert boxes(7) == wanted", "TypeError", "")
    text = issue_text([price], repository="shop", work_dir="/testbed")
    assert "With amount = 11, total = 21, this\n\n```python\nassert price(amount) == total\n```" in text
    assert "assert 22 == 21\n+  where 22 = price(11)" in text and "/testbed" in text
    text = issue_text(failures, repository="shop", work_dir="/testbed")
    assert text == issue_text(failures, repository="shop", work_dir="/testbed")
    assert "1 more check fails" in text
    text = issue_text([boxes], repository="shop", work_dir="/testbed")
    assert "should work, but raises" in text and "takes exactly one argument (0 given) at 0x..." in text
    assert not [hidden for hidden in ("math.ceil()", "shop.py", "test_shop", "test_boxes", "0x7f", "pytest") if hidden in text]


def test_without_a_report_or_a_source_there_is_still_a_text() -> None:
    for outcome in (failed(PRICE[0], ""), failed("gone.py::test_x", "E   boom"), TestOutcome(id=BOXES[1], outcome=Outcome.MISSING)):
        text = issue_text([read_failure(outcome, FILES)], repository="shop", work_dir="/testbed")
        assert text.startswith("# ") and "/testbed" in text and "None" not in text


def test_reports_from_the_broken_process_are_text_and_nothing_more() -> None:
    lines = ['["t::a", "E   boom"]', "noise", "[" * 100_000, '{"t::a": 1}', '["t::a"]', '["t::a", 1]', '["cut", "E']
    assert [parse_report(line) for line in lines] == [("t::a", "E   boom"), *[None] * 6]
    text = issue_text([read_failure(failed(BOXES[0], "E   ValueError: \ud800 \0 ```"), FILES)], repository="shop", work_dir="/testbed")
    assert "````text\nValueError: ? \0 ```\n````" in text


def test_the_style_for_small_models_is_short() -> None:
    shown = "    def test_f():\n>       assert f(3,4) == 21\nE       assert -3 == 21\nE        + where -3 = f(3,4)\n\ntests/test_m0.py:5: A"
    files = changes(tests__test_m0="from m0 import f\n\n\ndef test_f():\n    assert f(3,4) == 21\n    assert f(1,1) == 6\n")
    text = file_text([read_failure(failed("tests/test_m0.py::test_f", shown), files)], path="m0.py", source="def f(x,y):\n")
    assert text == "Fix m0.py\nf(3,4) gives -3, not 21\ndef f(x,y):\n"


def test_the_licence_is_the_one_that_the_package_names() -> None:
    def files(name: str, text: str) -> dict[str, TreeChange]:
        return {name: TreeChange(path=name.encode(), mode=FILE, data=text.encode())}

    about = "Name: x\nLicense: MIT\nClassifier: License :: OSI Approved :: BSD License\n\nLicense: no"
    assert licence_of(files("PKG-INFO", about)) == "BSD License"
    assert licence_of(files("pyproject.toml", '[project]\nlicense = "Apache-2.0"\n')) == "Apache-2.0"
    assert licence_of(files("pyproject.toml", "no toml")) == licence_of({}) == ""


# --- for real -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The record of a prepared image of the shop, which is removed after the tests."""
    folder = tmp_path_factory.mktemp("shop") / "shop"
    (folder / "tests").mkdir(parents=True)
    (folder / "shop.py").write_text(SHOP)
    (folder / "tests/test_shop.py").write_text(TESTS)
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "shop"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    out = tmp_path_factory.mktemp("images")
    assert image_command(str(folder), name=None, base=None, requirements=None, out=out, runs=1, as_json=True) == 0
    yield out / "shop.json"
    client = docker.DockerClient(base_url=engine)
    client.images.remove(read_image(out / "shop.json").image, force=True)
    client.close()


def test_tasks_are_made_of_a_real_repository(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("environments.swe.factory.make.IN_FLIGHT", 3)
    out = tmp_path / "tasks"
    kinds = ("arithmetic", "comparison", "argument_dropped")
    assert mutate_command(shop, out=out, n_tasks=2, seed=0, kinds=kinds, style="issue", as_json=True) == 0
    summary = json.loads(capsys.readouterr().out)
    tasks = [read_task(folder) for folder in task_folders(out)]
    assert len(tasks) == len(summary["kept"]) == 2
    assert summary["candidates"] == 2 + sum(summary["fell"].values())
    assert summary["functions_left_out"] == {"not covered by a stable test": 1}
    image = read_image(shop)

    async def check() -> None:
        shared = SharedContainers.take()
        try:
            for task in tasks:
                restored = await (await BaseTree.of(task, shared.containers)).apply(task.gold)
                assert [(change.path, change.data) for change in restored] == [(b"shop.py", SHOP.encode())]
        finally:
            await shared.release()

    asyncio.run(check())
    for task in tasks:
        assert sorted(task.fail_to_pass + task.pass_to_pass) == sorted(image.tests)
        assert task.overlay[0].data != SHOP.encode()
        mutation = task.metadata["mutation"]
        assert mutation["function"] in ("price", "boxes") and "solve_rate" not in task.metadata
        assert "```" in task.instruction and "shop.py" not in task.instruction
        assert re.search(r"assert -?\d+ == \d+|TypeError", task.instruction), "the values that were compared"
        assert mutation["before"] + " " not in task.instruction.replace("```", "") or len(mutation["before"]) < 3


def test_a_task_that_a_function_without_a_thought_solves_is_unsound(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = TreeChange(path=b"shop.py", mode=FILE, data=SHOP.replace("amount * each", "amount + each").encode())
    image = read_image(shop)
    thorough = make_task(
        id="thorough",
        image=image.image,
        overlay=(broken,),
        gold=restoring_patch(broken=broken, fixed=FILES["shop.py"]),
        fail_to_pass=("tests/test_shop.py::test_price[1-2]", "tests/test_shop.py::test_nothing"),
        pass_to_pass=(),
        test_seconds=60.0,
        metadata={"mutation": {"file": "shop.py", "function": "price", "line": 5}},
    )
    write_task(thorough, tmp_path / "thorough")
    write_task(replace(thorough, id="hollow", fail_to_pass=("tests/test_shop.py::test_nothing",)), tmp_path / "hollow")
    assert validate_command([tmp_path / "thorough", tmp_path / "hollow"], repeat=1, as_json=True) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["sound"] for row in rows] == [True, False]
    assert "the broken function does nothing but return False" in rows[1]["reason"]


def test_a_record_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "rubbish.json").write_text("{")
    for name, words in (
        ("none.json", "there is no record of an image .*none.json; rl swe image"),
        ("rubbish.json", "is no record of an image"),
    ):
        with pytest.raises(ValueError, match=words):
            mutate_command(tmp_path / name, out=tmp_path, n_tasks=1, seed=0, kinds=(), style="issue", as_json=False)


def test_rows_become_tasks(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row like SWE-bench's: the fix adds a function, the test patch a test of it."""
    fix = restoring_patch(broken=FILES["shop.py"], fixed=replace(FILES["shop.py"], data=SHOP.replace("+ 1", "+ 2").encode()))
    changed = TESTS + "\n\ndef test_unused():\n    from shop import unused\n\n    assert unused(1) == 3\n"
    tests = restoring_patch(broken=FILES["tests/test_shop.py"], fixed=replace(FILES["tests/test_shop.py"], data=changed.encode()))
    image = read_image(shop)
    row = {
        "instance_id": "shop__shop-1",
        "repo": "shop/shop",
        "base_commit": image.base_commit,
        "problem_statement": "unused is off by one",
        "patch": fix.data.decode(),
        "test_patch": tests.data.decode(),
        "FAIL_TO_PASS": '["tests/test_shop.py::test_unused"]',
        "PASS_TO_PASS": list(PRICE),
        "tag": image.image.removeprefix("codeworld-rl/"),
        "version": "1",
    }
    rows = tmp_path / "rows.jsonl"
    bad = {"instance_id": "shop__shop-2", "patch": fix.data.decode().replace("amount + 1", "amount + 9")}
    rows.write_text("".join(json.dumps({**row, **change}) + "\n" for change in ({}, bad, {"instance_id": "shop__shop-3", "tag": "none:1"})))
    assert import_command(rows, image="codeworld-rl/{tag}", out=tmp_path / "tasks", as_json=True) == 1
    result = json.loads(capsys.readouterr().out)
    assert "patch does not apply" in result["left_out"]["shop__shop-2"]
    assert "rl swe image image:codeworld-rl/none:1" in result["left_out"]["shop__shop-3"]
    (folder,) = task_folders(tmp_path / "tasks")
    task = read_task(folder)
    assert task.test_changes == (replace(FILES["tests/test_shop.py"], data=changed.encode()),)
    assert (task.fail_to_pass, task.pass_to_pass) == (("tests/test_shop.py::test_unused",), PRICE)
    assert (task.gold, task.instruction, task.overlay) == (fix, "unused is off by one", ())
    assert task.metadata["kind"] == "issue" and task.metadata["version"] == "1"


def test_an_image_that_is_not_prepared_is_named(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The base on which the shop's image was built."""
    row = dict.fromkeys(("instance_id", "repo", "base_commit", "patch", "test_patch", "problem_statement"), "x")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**row, "FAIL_TO_PASS": ["t"], "PASS_TO_PASS": []}) + "\n")
    base = python_image_reference()
    assert import_command(rows, image=base, out=tmp_path / "tasks", as_json=False) == 1
    assert f"image {base} is not prepared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch": None}, "rows.jsonl:1: patch is None"),
        ({"problem_statement": 3}, "rows.jsonl:1: it has no problem_statement"),
        ({"FAIL_TO_PASS": "[x"}, "FAIL_TO_PASS is a text that is no JSON"),
        ({"FAIL_TO_PASS": "[]"}, "FAIL_TO_PASS is empty"),
        ({"PASS_TO_PASS": [1]}, "PASS_TO_PASS must be a list of node ids"),
        ({"image": 1}, "needs the field 'image'"),
    ],
)
def test_rows_are_checked_before_anything_is_done(change: dict[str, object], said: str, tmp_path: Path) -> None:
    row = dict.fromkeys(("instance_id", "repo", "base_commit", "patch", "test_patch", "problem_statement", "image"), "x")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**row, "FAIL_TO_PASS": ["t"], "PASS_TO_PASS": "[]", **change}) + "\n")
    with pytest.raises(ValueError, match=said):
        import_command(rows, image="{image}", out=tmp_path / "tasks", as_json=False)
    assert list(tmp_path.iterdir()) == [rows]


def test_a_template_may_only_name_fields(tmp_path: Path) -> None:
    row = dict.fromkeys(("instance_id", "repo", "base_commit", "patch", "test_patch", "problem_statement", "image"), "x")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**row, "FAIL_TO_PASS": ["t"], "PASS_TO_PASS": []}) + "\n")
    for template in ("{image.__class__}", "{image[0]}", "{}", "{0}", "{other}", "{image"):
        with pytest.raises(ValueError, match="--image"):
            import_command(rows, image=template, out=tmp_path / "tasks", as_json=False)


SAMPLE = Path(__file__).parent.parent.parent / "shared/data/swebench_sample.jsonl"


@pytest.mark.skipif(not SAMPLE.exists(), reason="no sample of SWE-bench's rows beside the project")
def test_real_rows_are_read_and_their_images_asked_for(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_command(SAMPLE, image="swebench/{instance_id}:latest", out=tmp_path / "tasks", as_json=True) == 1
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert len(left_out) == 4 and all("rl swe image image:swebench/" in problem for problem in left_out.values())


# --- small repositories ---------------------------------------------------------------------------------------------


def test_short_functions_are_small_sound_and_always_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_repositories(tmp_path / name, repositories=2, modules=20, seed=3)
    one, two = (subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path / name / "r1") for name in ("one", "two"))
    assert one == two
    modules = [path.read_text() for path in (tmp_path / "one").glob("r*/?.py")]
    assert max(map(len, modules)) < 120
    assert len(set(modules)) == 40
    for folder in ("r0", "r1"):
        command = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(command, cwd=tmp_path / "one" / folder, capture_output=True, text=True)
        assert "20 passed" in done.stdout
    with pytest.raises(ValueError, match="--modules is 27"):
        write_repositories(tmp_path / "three", repositories=1, modules=27, seed=0)
    with pytest.raises(ValueError, match="--repositories is 0"):
        write_repositories(tmp_path / "three", repositories=0, modules=1, seed=0)
    with pytest.raises(ValueError, match="already there"):
        write_repositories(tmp_path / "one", repositories=1, modules=1, seed=0)


def test_the_base_learns_from_edits_that_repair_functions_it_will_never_be_asked_about(tmp_path: Path) -> None:
    write_repositories(tmp_path / "short", repositories=4, modules=25, seed=0)
    rng = random.Random(0)
    functions = unused_functions(tmp_path / "short", rng)
    assert len(set(functions)) == 2000
    asked = {path.read_text() for path in (tmp_path / "short").glob("r*/?.py")}
    sound = {module_text(function) for function in functions}
    assert len(asked) == 100 and not asked & sound
    for example in islice(demonstrations(functions, rng), 50):
        fix, said, source = example.prompt[0].content.split("\n", 2)
        edit = Edit.read(parse_call(example.answer, tool_format="cwm").body)
        assert fix == f"Fix {edit.path}" and re.fullmatch(r"f\(\d+(,\d+)?\) gives -?\d+, not -?\d+", said)
        assert source not in sound and source.count(edit.search) == 1 and source.replace(edit.search, edit.replace) in sound
    for example in islice(demonstrations(functions, rng, slip_rate=1.0), 20):
        edit = Edit.read(parse_call(example.answer, tool_format="cwm").body)
        source = example.prompt[0].content.split("\n", 2)[2]
        assert source.count(edit.search) == 1 and source.replace(edit.search, edit.replace) not in {source, *sound}
    with pytest.raises(ValueError, match="has no repositories"):
        unused_functions(tmp_path, rng)


def test_rates_of_a_run_go_into_its_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("task-1", "other"):
        write_task(make_task(id=name, metadata={"kind": "mutate"}), tmp_path / "tasks" / name)
    run = tmp_path / "run"
    prepare_run(run)
    infra = Score(reward=None, status=ScoreStatus.INFRA, reason="the engine failed", parts={})
    failed = Score(reward=0.0, status=ScoreStatus.POLICY_FAIL, reason="tests fail", parts={})
    scores = (None, failed, failed, failed, infra)
    rollouts = [make_rollout(f"g-{at}", sample=at, score=score) for at, score in enumerate(scores)]
    with RolloutWriter(run, run_id="r", attempt=1, writer="w0", tokens=False) as log:
        log.write_group(make_group(1, rollouts=rollouts))
        log.write_group(make_group(2))
    assert rates_command(str(run), tmp_path / "tasks", as_json=False) == 0
    assert "1 of 4     task-1\n1 of 2 tasks" in capsys.readouterr().out
    assert read_task(tmp_path / "tasks/task-1").metadata == {"kind": "mutate", "solve_rate": 0.25, "graded": 4}
    assert "solve_rate" not in read_task(tmp_path / "tasks/other").metadata
    shutil.rmtree(tmp_path / "tasks/task-1")
    assert rates_command(str(run), tmp_path / "tasks", as_json=True) == 1


def test_random_is_not_shared() -> None:
    """Drawing leaves the process's own random numbers alone."""
    random.seed(5)
    wanted = random.random()
    random.seed(5)
    draw(seed=0, count=5)
    assert random.random() == wanted
