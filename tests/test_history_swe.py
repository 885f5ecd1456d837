"""rl rescore and rl replay on repository tasks, in real containers."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from environments.records import Problem, Task
from environments.reply import ToolCall
from environments.swe.folder import read_task, write_task
from environments.swe.script import oracle_actions
from environments.swe.tool_bodies import Edit
from environments.swe.tool_format import render_call
from rl.cli import main
from rl.history.problems import check_image
from rl.history.recorded import find_row
from rl.log.query import RunLog
from rl.log.runs import RunPaths
from tests.containers_host import engine
from tests.history_run import config_for, make_run, settings_as_found
from tests.test_swe_ring import tasks

__all__ = ["engine", "settings_as_found", "tasks"]
pytestmark = pytest.mark.timeout(300)


def said(*calls: ToolCall) -> list[str]:
    return [render_call(call, tool_format="cwm") for call in calls]


@pytest.fixture(scope="module")
def run(engine: str, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group of four: the gold patch, one that is near it, one that looks at the clock and gives up, one that is the gold patch again
    with an observation in between."""
    folder = tmp_path_factory.mktemp("history")
    own = folder / "tasks"
    own.mkdir()
    shutil.copytree(tasks / "sums-1", own / "sums-1")
    oracle = oracle_actions(read_task(own / "sums-1"))
    near = Edit(path="sums.py", search="return a - b", replace="return a +  b + 0 * a - 1").body()
    replies = {
        "0": said(*oracle),
        "1": said(ToolCall(name="edit", body=near), ToolCall(name="submit", body="")),
        "2": said(ToolCall(name="bash", body="date +%s%N")),
        "3": said(ToolCall(name="bash", body="cat sums.py; exit 3"), *oracle),
    }

    def reply(episode: str, turn: int) -> str:
        own_replies = replies[episode[-1]]
        return own_replies[turn] if turn < len(own_replies) else "I give up."

    root = folder / "runs" / "repair"
    root.parent.mkdir()
    task = {"kind": "swe", "env": "swe", "path": str(own), "options": {"tool_docs": "none"}}
    limits = {"host": engine, "memory_mb": 256, "disk_mb": 16}
    config = config_for(root, tasks={"repair": task}, containers=limits, objective={"name": "dr_grpo"})
    make_run(root, config, reply, groups=1)
    return root


def report(capsys: pytest.CaptureFixture[str], *words: str, status: int) -> dict[str, Any]:
    assert main([*words, "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_patches_are_graded_again_in_fresh_containers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(run) as log:
        live = dict(log.query("SELECT rollout_id, reward FROM rollouts").rows)
    assert list(live.values()) == [1.0, -1.0, -1.0, 1.0]
    same = report(capsys, "rescore", str(run), "--reward", "swe", "--name", "again", status=0)
    assert same["scored"] == 4 and same["groups_compared"] == 1 and same["groups"] == []
    other = report(capsys, "rescore", str(run), "--reward", "cwm_swe", status=0)
    with RunLog(run) as log:
        scored = dict(log.query("SELECT rollout_id, value FROM scores WHERE scorer = 'cwm_swe' AND NOT live").rows)
    assert scored == {**live, "00000000-1": 0.0}
    (source,) = other["sources"]
    assert (source["before"]["mean"], source["after"]["mean"]) == (0.0, 0.25) and source["after"]["passed"] == 2
    assert other["groups"] == [], "less far below the mean is still below"


def test_episodes_are_played_again_in_fresh_containers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rollout, turns in (("00000000-0", 3), ("00000000-1", 3), ("00000000-3", 4)):
        found = report(capsys, "replay", str(run), rollout, status=0)
        assert [turn["verdict"] for turn in found["turns"]] == ["same"] * turns and found["score"]["same"], found
    clock = report(capsys, "replay", str(run), "00000000-2", status=1)
    assert [turn["verdict"] for turn in clock["turns"]] == ["same", "diverged", "same", "same", "unknown"]
    assert clock["score"]["same"] and clock["outcome"]["verdict"] == "same"


def test_changed_tests_of_a_task_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder's hidden tests are not in the log, but their digest is part of the task's hash."""
    folder = run.parent.parent / "tasks" / "sums-1"
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    task = read_task(folder)
    shutil.rmtree(folder)
    try:
        write_task(replace(task, test_changes=()), folder)
        for words in (("rescore", str(run), "--reward", "swe", "--name", "late"), ("replay", str(run), "00000000-0")):
            assert main([*words]) == 2
            assert "task 'sums-1' of rollout 00000000-0 has changed since the run" in capsys.readouterr().err
        shutil.rmtree(folder)
        write_task(replace(task, metadata={"solve_rate": 0.5}), folder)
        report(capsys, "replay", str(run), "00000000-0", status=0)
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)


def test_a_missing_engine_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str) -> None:
    config = RunPaths(root=run).config
    text = config.read_text()
    config.write_text(text.replace(engine, f"unix://{tmp_path}/none.sock"))
    try:
        for words in (("rescore", str(run), "--reward", "swe", "--name", "late"), ("replay", str(run), "00000000-0")):
            assert main([*words]) == 2
            assert "none.sock" in capsys.readouterr().err
    finally:
        config.write_text(text)
    with RunLog(run) as log:
        assert list(log.query("SELECT count(*) FROM scores WHERE scorer = 'late'").rows) == [(0,)]


def test_another_image_of_the_same_name_is_told(run: Path) -> None:
    with RunLog(run) as log:
        row = find_row(log, "00000000-0")
    folder = str(run.parent.parent / "tasks" / "sums-1")
    problem = Problem(task=Task(id="sums-1", env="swe", prompt=()), reference={"folder": folder}, source="repair")
    with pytest.raises(ValueError, match=r"is sha256:[0-9a-f]+ now, and rollout 00000000-0 was played in sha256:0: give that image"):
        asyncio.run(check_image(problem, replace(row, image_digest="sha256:0")))
