"""`rl env check`: every rule against something that breaks just this one, and all built-in environments."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from environments.registry import known_environments
from rl.authoring.builtin_rows import BUILTIN_ROWS
from rl.authoring.records import RULE_NAMES
from rl.cli import main
from tests.ring import ROOT

BREAKERS = "tests.data.rule_breakers"


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def check(capsys: pytest.CaptureFixture[str], *words: str, status: int) -> dict[str, Any]:
    assert main(["env", "check", *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", sorted(BUILTIN_ROWS.keys() & {*known_environments()}))
def test_builtin_environments_hold_all_rules(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = check(capsys, name, status=0)
    assert report["ok"] and [rule["result"] for rule in report["rules"]] == ["holds"] * len(RULE_NAMES)
    assert [rule["rule"] for rule in report["rules"]] == list(RULE_NAMES)


def test_the_examples_hold_all_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, "plain_number", "--config", "examples/plain_number.yaml", status=0)["ok"]
    assert check(capsys, f"{BREAKERS}:Adder", "--reward", f"{BREAKERS}:adds", status=0)["ok"]


@pytest.mark.parametrize(
    ("env", "reward", "rule", "says"),
    [
        ("unpicklable", "adds", "picklable", "the factory cannot be pickled"),
        ("Random", "adds", "seeded", "in one process and"),
        ("Hashed", "adds", "seeded", "in one process and"),
        ("Remembers", "adds", "resets_cleanly", "after other episodes"),
        ("NoSolution", "adds", "gold_passes", "no problem has reference['solution']"),
        ("Adder", "too_strict", "gold_passes", "the reference solution gets policy_fail"),
        ("Adder", "likes_silence", "noop_fails", "an empty reply, problem a: gets ok with reward 1.0"),
        ("Adder", "looks_anywhere", "cheats_fail", "cheat 'hedged answers', problem a: gets ok"),
        ("Payload", "adds", "hidden_data", "the payload holds reference['answer']"),
        ("Holds", "adds", "hidden_data", "the environment holds reference['answer'] of every problem"),
        ("Tells", "adds", "hidden_data", "the environment's messages tell reference['answer'] of every problem"),
        ("LeavesFiles", "adds", "closes", "3 episodes of problem a left 3 open files"),
        ("LeavesProcesses", "adds", "closes", "left 3 child processes"),
        ("LeavesThreads", "adds", "closes", "left 3 threads"),
        ("LeavesTasks", "adds", "closes", "left 3 asyncio tasks"),
        ("CloseNeedsReset", "adds", "closes", "closing without reset(): close() raised AttributeError"),
        ("Raises", "adds", "exceptions", "step() raised AssertionError: too long"),
        ("Exits", "adds", "exceptions", "step() raised SystemExit"),
        ("Adder", "executes", "exceptions", "cheat 'process exit', problem a: the reward ended the process (exit code 0)"),
        ("Waits", "adds", "time_limits", "cheat 'control characters', problem a: step() took more than 0.5 s"),
        ("Adder", "blocks", "time_limits", "the reward blocks the process for more than 0.5 s"),
    ],
)
def test_a_broken_rule_is_named_alone_with_its_fix(env: str, reward: str, rule: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    limit = ("--timeout", "0.5") if rule == "time_limits" else ()
    report = check(capsys, f"{BREAKERS}:{env}", "--reward", f"{BREAKERS}:{reward}", *limit, status=1)
    failing = [one for one in report["rules"] if one["result"] == "fails"]
    assert [one["rule"] for one in failing] == [rule], failing
    assert any(says in finding for finding in failing[0]["findings"]), failing[0]["findings"]
    assert failing[0]["fix"]


def test_the_report_for_people_has_the_finding_and_the_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "check", f"{BREAKERS}:Adder", "--reward", f"{BREAKERS}:too_strict"]) == 1
    out = capsys.readouterr().out
    assert "fails    gold_passes" in out and "fix: give each problem reference['solution']" in out and "1 of 10 rules fail" in out


def test_a_plugin_file_and_a_tasks_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin, tasks = tmp_path / "parrot.py", tmp_path / "tasks.jsonl"
    plugin.write_text(
        "from environments.registry import environment\n"
        "from environments.single_turn import SingleTurn\n"
        "from rewards.registry import reward\n"
        "@environment('check_parrot')\n"
        "class Parrot(SingleTurn):\n"
        "    pass\n"
        "@reward('check_parrot')\n"
        "def parrot(problem, response):\n"
        "    return 1.0 if response == problem.reference['answer'] else -1.0\n"
    )
    tasks.write_text(json.dumps({"id": "x", "prompt": "Say hello backwards", "answer": "olleh", "solution": "olleh"}) + "\n")
    assert check(capsys, str(plugin), "--tasks", str(tasks), status=0)["env"] == "check_parrot"
    assert check(capsys, f"{plugin}:check_parrot", "--tasks", str(tasks), status=0)["ok"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("maths",), "unknown environment 'maths'; did you mean 'math'"),
        ((f"{BREAKERS}:Adder",), "names no reward: give --reward"),
        ((f"{BREAKERS}:Adder", "--reward", f"{BREAKERS}:ads"), "did you mean 'adds'"),
        (("tests/data/digits_plugin.py:digits",), "there are no problems to try 'digits' on: give --tasks FILE or --config FILE"),
        (("tests/data/no_such.py",), "TARGET: no file tests/data/no_such.py"),
        (("tests/data/judges_plugin.py",), "defines 0 environments ()"),
        (("code", "--config", "examples/plain_number.yaml"), "no task source has env='code'; there are plain_number"),
        (("math", "--tasks", "no_such.jsonl"), "cannot read no_such.jsonl"),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_line(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "check", *words]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_every_builtin_environment_is_checked_above() -> None:
    code = "from environments.registry import known_environments\nprint(*known_environments())"
    builtin = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert builtin and set(builtin) <= set(BUILTIN_ROWS), "give the new environment rows in rl/authoring/builtin_rows.py"
