"""rl swe run and rl swe script: scripted policies through the environment and the real graders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from environments.containers.address import engine_address
from environments.swe.folder import write_task
from environments.swe.records import Patch
from environments.swe.script import noop_actions, oracle_actions
from environments.swe.tool_bodies import Create
from environments.swe.tool_format import parse_call
from rl.cli import main
from tests.engine_proxy import Proxy
from tests.repo_image import engine, mutated_task, task_folder

__all__ = ["engine", "task_folder"]


def run(folder: Path, actions: Any, tmp_path: Path, *options: str) -> int:
    path = tmp_path / "actions.json"
    path.write_text(json.dumps([{"tool": name, "input": body} for name, body in actions]))
    return main(["swe", "run", str(folder), "--actions", str(path), *options])


def calls_of(calls: Any) -> list[tuple[str, str]]:
    return [(call.name, call.body) for call in calls]


@pytest.mark.parametrize("tool_format", ["cwm", "json"])
def test_the_oracle_passes(task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tool_format: str) -> None:
    actions = [("bash", "ls"), *calls_of(oracle_actions(mutated_task())), ("bash", "never")]
    assert run(task_folder, actions, tmp_path, "--format", tool_format, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["score"]["status"] == "ok" and said["score"]["reward"] == 1.0
    assert [turn["tool"] for turn in said["turns"]] == ["bash", "edit", "submit"] and said["left"] == 1
    assert said["turns"][0]["observation"] == "<output>\ncalc\nnotes\ntests\n</output>"
    assert (said["stop_reason"], said["task"]) == ("done", "calc-1") and "+++ b/calc/sums.py" in said["outcome"]["patch"]


def test_an_oracle_of_git_passes(task_folder: Path, tmp_path: Path) -> None:
    """A patch without its base text is applied by git in the container."""
    actions = calls_of(oracle_actions(replace(mutated_task(), overlay=())))
    assert [name for name, _ in actions] == ["bash", "submit"]
    assert run(task_folder, actions, tmp_path) == 0


@pytest.mark.parametrize(
    "actions",
    [
        calls_of(noop_actions()),
        [("bash", "echo hello")],
        [("bash", "sed -i 's/assert .*/pass/' tests/test_sums.py"), ("submit", "")],
        [("create", Create(path="conftest.py", content="import os\nos._exit(0)\n").body()), ("submit", "")],
        [("bash", "printf 'diff --git a/x b/x\\nnonsense\\n' > p"), ("submit", "p")],
        [("edit", "nonsense"), ("nothing", "")],
    ],
    ids=["noop", "unsubmitted", "edits tests", "conftest", "broken patch", "no calls"],
)
def test_what_repairs_nothing_fails(task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], actions: Any) -> None:
    assert run(task_folder, actions, tmp_path) == 1
    said = capsys.readouterr().out
    assert "--- 1: " in said and "score: policy_fail, reward " in said


def test_observations_drive_no_terminal(task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(task_folder, [("bash", "printf '\\033[2Jx'")], tmp_path) == 1
    said = capsys.readouterr().out
    assert "\\x1b[2Jx" in said and "\x1b" not in said and "(nothing was submitted)" in said


def test_wrong_input_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(mutated_task(), tmp_path / "task")
    assert run(tmp_path / "gone", [], tmp_path) == 2
    assert "there is no task folder" in capsys.readouterr().err
    assert main(["swe", "run", str(tmp_path / "task"), "--actions", str(tmp_path / "none.json")]) == 2
    assert "none.json: No such file" in capsys.readouterr().err
    assert run(tmp_path / "task", [], tmp_path, "--reward", "nonsense") == 2
    assert "nonsense" in capsys.readouterr().err


def test_scripts_hold_the_replies_of_all_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        write_task(replace(mutated_task(), id=f"calc-{number}"), tmp_path / "tasks" / f"calc-{number}")
    for policy, tool_format, expected in (("oracle", "json", oracle_actions(mutated_task())), ("noop", "cwm", noop_actions())):
        out = tmp_path / "deep" / f"{policy}.json"
        words = ["--policy", policy, "--format", tool_format, "--out", str(out), "--json"]
        assert main(["swe", "script", str(tmp_path / "tasks"), *words]) == 0
        assert json.loads(capsys.readouterr().out) == {"out": str(out), "tasks": 2}
        script = json.loads(out.read_text())
        assert list(script) == ["calc-1", "calc-2"]
        for replies in script.values():
            assert tuple(parse_call(reply, tool_format=tool_format) for reply in replies) == expected


def test_scripts_of_wrong_folders_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(replace(mutated_task(), gold=Patch(data=b"")), tmp_path / "bare" / "one")
    write_task(mutated_task(), tmp_path / "twice" / "one")
    write_task(mutated_task(), tmp_path / "twice" / "two")
    for folder, message in (("none", "is not a folder"), ("bare", "no gold patch"), ("twice", "ids must be unique")):
        assert main(["swe", "script", str(tmp_path / folder), "--out", str(tmp_path / "s.json")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


def commands_of(folder: Path, tmp_path: Path) -> list[list[str]]:
    """All that play or grade a task."""
    (tmp_path / "actions.json").write_text(json.dumps([{"tool": "bash", "input": "ls"}]))
    return [
        ["swe", "grade", str(folder), "--patch", str(folder / "solution" / "gold.patch")],
        ["swe", "run", str(folder), "--actions", str(tmp_path / "actions.json"), "--json"],
        ["swe", "validate", str(folder), str(folder)],
    ]


def test_an_engine_that_is_stopped_is_no_verdict(
    task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 would say that the patch fails, or that the task is unsound."""
    real = engine_address().removeprefix("unix://")
    for number, words in enumerate(commands_of(task_folder, tmp_path)):
        with Proxy(str(tmp_path / f"engine{number}"), real, at=b"/start HTTP") as proxy:
            monkeypatch.setenv("DOCKER_HOST", f"unix://{proxy.path}")
            assert main(words) == 2
        said = capsys.readouterr()
        assert said.err.startswith("rl swe: the engine could not ") and "the engine does not answer" in said.err
        assert said.err.count("\n") == 1 and said.out == ""


def test_without_engine_or_image_there_is_no_verdict(
    task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(replace(mutated_task(), image="codeworld-rl-test:gone"), tmp_path / "task")
    for words in commands_of(tmp_path / "task", tmp_path)[:2]:
        assert main(words) == 2
        said = capsys.readouterr()
        assert "has no image 'codeworld-rl-test:gone'" in said.out + said.err
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    for words in commands_of(task_folder, tmp_path):
        assert main(words) == 2
        assert f"no Docker engine answers at unix://{tmp_path}/none (No such file or directory): as root" in capsys.readouterr().err
