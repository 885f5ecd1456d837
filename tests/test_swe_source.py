"""`kind: swe`: folders of task folders as a source of problems."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from configs.schema import ContainersConfig, TaskConfig
from environments.containers.make import use_containers
from environments.records import Message
from environments.sources.swe_tasks import SweSource
from environments.swe.folder import set_metadata, write_task
from environments.swe.records import Patch, RepoTask, TreeChange
from environments.swe.tool_format import parse_call
from rewards.needs import FieldMissing, check_needs
from rl.cli import main
from tests.fakes import make_problem

BROKEN = b"def add(a, b):\n    return a - b\n"
GOLD = b"""diff --git a/sums.py b/sums.py
--- a/sums.py
+++ b/sums.py
@@ -1,2 +1,2 @@
 def add(a, b):
-    return a - b
+    return a + b
"""


def make_task(name: str = "sums-1", **changes: Any) -> RepoTask:
    """A function with a wrong operator."""
    task = RepoTask(
        id=name,
        image="codeworld-rl-test:python",
        instruction="Fix sums.py",
        overlay=(TreeChange(path=b"sums.py", mode=0o100644, data=BROKEN),),
        gold=Patch(data=GOLD),
        fail_to_pass=("test_sums.py::test_add",),
        pass_to_pass=(),
    )
    return dataclasses.replace(task, **changes)


def make_folder(root: Path, count: int = 3) -> Path:
    """A folder with some tasks."""
    for number in range(1, count + 1):
        write_task(make_task(f"sums-{number}", metadata={"solve_rate": number / 10}), root / f"sums-{number}")
    return root


def source(path: Path, **settings: Any) -> SweSource:
    return SweSource("repair", config=TaskConfig(kind="swe", env="swe", path=str(path), **settings))


def test_a_task_folder_is_a_problem(tmp_path: Path) -> None:
    found = source(make_folder(tmp_path / "tasks"), system="Be brief.", options={"tool_docs": "none", "edit_context": 0})
    assert found.size == 3 and found.images == {"codeworld-rl-test:python": "sums-1"}
    problem = found.problem(1)
    folder = str((tmp_path / "tasks" / "sums-2").resolve())
    assert (problem.task.id, problem.task.env, problem.source) == ("sums-2", "swe", "repair")
    assert problem.task.prompt == (Message(role="system", content="Be brief."), Message(role="user", content="Fix sums.py"))
    assert problem.task.payload == {"folder": folder, "tool_docs": "none", "edit_context": 0}
    assert problem.reference["folder"] == folder
    check_needs("swe", problem)


def test_the_oracles_replies_are_written_in_the_tasks_own_tool_format(tmp_path: Path) -> None:
    make_folder(tmp_path / "tasks", 1)
    for tool_format in ("cwm", "json"):
        replies = source(tmp_path / "tasks", options={"tool_format": tool_format}).problem(0).reference["replies"]
        assert [parse_call(reply, tool_format=tool_format).name for reply in replies] == ["edit", "submit"]  # type: ignore[arg-type]


def test_a_task_without_a_gold_patch_has_no_replies(tmp_path: Path) -> None:
    write_task(make_task(gold=Patch(data=b"")), tmp_path / "tasks" / "sums-1")
    assert "replies" not in source(tmp_path / "tasks").problem(0).reference


def test_solve_rates_and_limit_choose_tasks(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "tasks")
    some = source(root, options={"min_solve_rate": 0.2, "max_solve_rate": 0.3})
    assert [some.problem(i).task.id for i in range(2)] == ["sums-2", "sums-3"] and some.size == 2
    assert source(root, limit=2).size == 2
    with pytest.raises(ValueError, match=r"tasks.repair.options: no task of .* solve rate"):
        source(root, options={"min_solve_rate": 0.9})
    set_metadata(root / "sums-3", solve_rate=None)
    with pytest.raises(ValueError, match=r"sums-3/task.toml has no metadata.solve_rate"):
        source(root, options={"min_solve_rate": 0.1})


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tasks.repair.path: .*nowhere"):
        source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"tasks.repair.path: .*empty has no task folders"):
        source(tmp_path / "empty")
    root = make_folder(tmp_path / "tasks")
    (root / "sums-2" / "tests" / "tests.json").unlink()
    with pytest.raises(ValueError, match=r"tasks.repair.path: .*sums-2 has no tests/tests.json"):
        source(root)
    again = make_folder(tmp_path / "again", 1)
    write_task(make_task("sums-1"), again / "twin")
    with pytest.raises(ValueError, match=r"twin has id 'sums-1', as .*again/sums-1 has"):
        source(again)


def test_a_wrong_option_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "tasks", 1)
    with pytest.raises(ValueError, match=r"tasks.repair.options: tool_formatt is no option"):
        source(root, options={"tool_formatt": "json"})
    with pytest.raises(ValueError, match=r"tasks.repair.options.min_solve_rate is 2"):
        source(root, options={"min_solve_rate": 2})


def test_a_reward_on_repositories_needs_a_task_folder() -> None:
    with pytest.raises(FieldMissing, match="no 'folder'"):
        check_needs("swe", make_problem())


def test_a_missing_engine_is_told_before_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run: {{name: r, dir: {tmp_path}/runs}}\nmodel: {{path: {tmp_path}}}\n"
        f"tasks: {{repair: {{kind: swe, env: swe, path: {make_folder(tmp_path / 'tasks')}}}}}\n"
        f"containers: {{host: 'unix://{tmp_path}/no.sock'}}\n"
    )
    try:
        assert main(["train", str(config), "--dry-run"]) != 0
    finally:
        use_containers(ContainersConfig())
    assert "no.sock" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
