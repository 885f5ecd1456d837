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
        pytest.param(
            "Waits", "adds", "time_limits", "cheat 'control characters', problem a: step() took more than 0.5 s", marks=pytest.mark.alone
        ),
        pytest.param("Adder", "blocks", "time_limits", "the reward blocks the process for more than 0.5 s", marks=pytest.mark.alone),
        ("ShowsShort", "adds", "hidden_data", "every problem: the prompt shows reference['answer']"),
        ("ShortPayload", "adds", "hidden_data", "every problem: the payload holds reference['answer']"),
        ("OneWrong", "adds", "gold_passes", "problem 5: the reference solution gets policy_fail"),
    ],
)
def test_a_broken_rule_is_named_alone_with_its_fix(env: str, reward: str, rule: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    limit = ("--timeout", "0.5") if rule == "time_limits" else ()
    report = check(capsys, f"{BREAKERS}:{env}", "--reward", f"{BREAKERS}:{reward}", *limit, status=1)
    failing = [one for one in report["rules"] if one["result"] == "fails"]
    assert [one["rule"] for one in failing] == [rule], failing
    assert any(says in finding for finding in failing[0]["findings"]), failing[0]["findings"]
    assert failing[0]["fix"]


@pytest.mark.parametrize(
    ("env", "reward", "says", "fix"),
    [
        ("StepSaysNothing", "adds", "step() returned None, not a StepResult", "return a StepResult from every path of step()"),
        ("ResetSaysNothing", "adds", "reset() returned None, not a tuple of messages", "return a tuple of messages from reset()"),
        ("NeedsMore", "adds", "the factory raised KeyError: 'level'", "let it take every task of its source"),
        (
            "Adder",
            "tells_nothing",
            "the reward returned 'None'; a reward returns a number or a Score",
            "a reward returns a number or a Score",
        ),
        ("Adder", "tells_text", "the reward returned 'good'; a reward returns a number or a Score", "a reward returns a number or a Score"),
    ],
)
def test_what_goes_wrong_everywhere_is_told_once_with_its_own_fix(
    env: str, reward: str, says: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = check(capsys, f"{BREAKERS}:{env}", "--reward", f"{BREAKERS}:{reward}", status=1)
    (rule,) = (one for one in report["rules"] if one["rule"] == "exceptions")
    (finding,) = rule["findings"]
    assert says in finding and finding.endswith(" more)") and fix in rule["fix"]
    assert {one["result"] for one in report["rules"] if one["rule"] in ("gold_passes", "noop_fails", "cheats_fail")} == {"skipped"}


@pytest.mark.alone
@pytest.mark.parametrize("env", ["AlwaysBlocks", "AlwaysWaits"])
def test_the_check_is_given_up_when_a_call_is_too_slow_again_and_again(env: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = check(capsys, f"{BREAKERS}:{env}", "--reward", f"{BREAKERS}:adds", "--timeout", "0.2", status=1)
    results = {rule["rule"]: rule["result"] for rule in report["rules"]}
    assert results["time_limits"] == "fails" and results["cheats_fail"] == results["hidden_data"] == "skipped"
    (finding,) = next(rule["findings"] for rule in report["rules"] if rule["rule"] == "time_limits")
    assert "step()" in finding and finding.endswith("(and 2 more)")


def test_choices_that_every_prompt_shows_are_no_leak(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, f"{BREAKERS}:ManyChoices", "--reward", f"{BREAKERS}:adds", status=0)["ok"]


CODE_ROWS = {
    "code": {
        "question": "Write add(a, b).",
        "entry_point": "add",
        "tests": [{"args": [1, 2], "expected": 3}],
        "reference": "def add(a, b): return a + b",
    },
    "code_puzzle": {"puzzle": "def sat(x: int): return x * x == 49 and x < 0", "ans_type": "int", "reference": "def sol(): return -7"},
    "code_input": {"code": "def f(xs):\n    return xs[::-1]", "output": "[2, 1]", "input": "[1, 2]"},
    "code_output": {"question": "print(6 * 7)", "answer": "42"},
}
CODE_TASKS: dict[str, dict[str, Any]] = {
    "code": {},
    "code_puzzle": {"prompt": "Write sol():\n{puzzle}", "options": {"context": "puzzle"}},
    "code_input": {"prompt": "{code}\nf(?) == {output}", "answer_field": "input"},
    "code_output": {},
}


@pytest.mark.parametrize("env", CODE_ROWS)
def test_rows_of_code_need_no_solution_and_show_what_they_are_about(env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(CODE_ROWS[env]) + "\n")
    task = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "env": env, **CODE_TASKS[env]}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"run": {"name": "x"}, "model": {"path": "x"}, "tasks": {"rows": task}}))
    assert check(capsys, env, "--config", str(config), status=0)["ok"]


def test_the_report_says_how_many_problems_were_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "check", f"{BREAKERS}:OneWrong", "--reward", f"{BREAKERS}:adds"]) == 1
    assert "tried 4 of 6 problems, and the reference solutions of 6" in capsys.readouterr().out


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
        (("tests/data/judges_plugin.py",), 'defines no environment: put `@environment("name")` on a class'),
        ((f"{BREAKERS}:adds", "--reward", "math", "--tasks", "tests/data/sums.jsonl"), "is no environment"),
        ((f"{BREAKERS}:SyncStep", "--reward", f"{BREAKERS}:adds"), "`step` of SyncStep must be `async def`"),
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
    need_an_engine = {"swe"}  # tests/test_swe_ring.py has them
    assert builtin and set(builtin) <= set(BUILTIN_ROWS) | need_an_engine, "give the new environment rows in rl/authoring/builtin_rows.py"
