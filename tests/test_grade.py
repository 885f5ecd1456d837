"""`rl grade`: formats, order, exit statuses, and responses that are meant to break it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl.cli import main
from tests.ring import ROOT

PLUGIN = ROOT / "tests/data/judges_plugin.py"
TASKS = [{"id": "a", "prompt": "2+2=", "answer": "4"}, {"id": 7, "prompt": "3+3=", "answer": "6"}]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def grade(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[dict[str, Any]], str]]:
    def run(responses: list[Any], *words: str, env: str = "math", tasks: list[Any] = TASKS) -> tuple[int, list[dict[str, Any]], str]:
        files = ("--tasks", str(write(tmp_path / "tasks.jsonl", tasks)), "--responses", str(write(tmp_path / "responses.jsonl", responses)))
        status = main(["grade", "--env", env, *files, "--plugin", str(PLUGIN), "--json", *words])
        captured = capsys.readouterr()
        return status, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return run


def test_every_response_gets_a_line_in_the_order_of_the_input(grade: Any) -> None:
    texts = {"r1": r"\boxed{4}", "r2": r"\boxed{5}", "r3": "no box"}
    status, lines, said = grade([{"id": key, "task_id": "a", "response": text} for key, text in texts.items()])
    assert status == 0
    assert [list(line) for line in lines] == [["id", "reward", "status", "reason", "parts", "seconds"]] * 3
    assert [(line["id"], line["reward"], line["status"]) for line in lines] == [
        ("r1", 1.0, "ok"),
        ("r2", -1.0, "policy_fail"),
        ("r3", -1.0, "policy_fail"),
    ]
    assert all(line["reason"] and line["seconds"] >= 0 for line in lines)
    assert "3 responses" in said and "ok 1, policy_fail 2, infra 0, ungradable 0" in said


def test_a_slow_verdict_holds_the_later_ones_back(grade: Any) -> None:
    rows = [{"id": number, "task_id": 7, "response": text} for number, text in enumerate(["0.3", "0", "0.1", "0", "0"])]
    status, lines, _ = grade(rows, env="graded_late")
    assert status == 0 and [line["id"] for line in lines] == ["0", "1", "2", "3", "4"]


def test_a_mix_shows_its_parts(grade: Any) -> None:
    _, (line,), _ = grade([{"id": "r", "task_id": "a", "response": r"\boxed{4}"}], "--reward", "math + 0.5*graded_length")
    assert line["reward"] == 1.0 + 0.5 * 9
    assert line["parts"]["graded_length"] == {"value": 9.0, "weight": 0.5, "reason": "'\\\\boxed{4}'"}


def test_infrastructure_is_tried_again_and_then_told(grade: Any) -> None:
    rows = [{"id": text, "task_id": "a", "response": text} for text in ("0", "2", "3")]
    status, lines, _ = grade(rows, env="graded_flaky")
    assert status == 1
    assert [(line["status"], line["reward"]) for line in lines] == [("ok", 1.0), ("ok", 1.0), ("infra", None)]
    assert "the judge is away" in lines[-1]["reason"]


def test_an_unusable_reference_is_ungradable_and_no_failure(grade: Any) -> None:
    tasks = [{"id": "a", "prompt": "?", "answer": r"\begin{unknown"}]
    status, (line,), said = grade([{"id": "r", "task_id": "a", "response": r"\boxed{4}"}], tasks=tasks)
    assert (status, line["status"], line["reward"]) == (0, "ungradable", None)
    assert "ungradable 1" in said


@pytest.mark.parametrize(
    ("written", "length", "shown"),
    [
        (r'"\ud800x\udfff"', 3, "'\ufffdx\ufffd'"),
        (r'"\ud83d\ude00"', 1, "'\U0001f600'"),
        (r'"\u0000\u0000"', 2, r"'\x00\x00'"),
        ('""', 0, "''"),
        ('"' + "x" * 10_000_000 + '"', 10_000_000, "'xxxxxxxxxx'"),
    ],
    ids=["lone surrogates", "a pair", "NUL", "empty", "10 MB"],
)
def test_odd_responses_get_a_verdict(written: str, length: int, shown: str, grade: Any) -> None:
    status, (line,), _ = grade([f'{{"id": "r", "task_id": "a", "response": {written}}}'], env="graded_length")
    assert (status, line["reward"], line["reason"]) == (0, length, shown)


@pytest.mark.parametrize("env", ["math", "code", "code_output"])
def test_builtin_graders_bear_odd_responses(env: str, grade: Any) -> None:
    tasks = [{"id": "a", "prompt": "?", "answer": "4", "entry_point": "f", "tests": [{"args": [1], "expected": 1}]}]
    texts = [r'"\ud800"', r'"```python\n\ud800\u0000\n```"', r'"\\boxed{\u0000}"', '"' + "`" * 10_000_000 + '"', '""']
    rows = [f'{{"id": "{number}", "task_id": "a", "response": {text}}}' for number, text in enumerate(texts)]
    status, lines, _ = grade(rows, env=env, tasks=tasks)
    assert status == 0
    assert [line["status"] for line in lines] == ["policy_fail"] * len(texts)


GOOD = {"id": "r", "task_id": "a", "response": "x"}


@pytest.mark.parametrize(
    ("responses", "says"),
    [
        ([GOOD, '{"id": '], r"responses.jsonl:2:"),
        ([GOOD, "[1]"], "responses.jsonl:2: the line is of type list"),
        ([GOOD, {**GOOD, "id": "s", "task_id": "b"}], "responses.jsonl:2: field 'task_id': unknown task 'b'"),
        ([GOOD, GOOD], "responses.jsonl:2: id 'r' is already used on line 1"),
        ([{"id": "r", "task_id": "a"}], "responses.jsonl:1: field 'response' is of type NoneType"),
        ([{**GOOD, "response": ["x"]}], "field 'response' is of type list; it must be the model's whole text"),
        ([{**GOOD, "n_tokens": -1}], "field 'n_tokens' is -1"),
        ([{"task_id": "a", "response": "x"}], "field 'id' is None"),
        ([], "responses.jsonl has no rows"),
    ],
)
def test_wrong_responses_are_named_before_anything_is_graded(responses: list[Any], says: str, grade: Any) -> None:
    status, lines, said = grade(responses)
    assert (status, lines) == (2, [])
    assert says in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("env", "tasks", "says"),
    [
        ("math", [{"prompt": "2+2=", "answer": "4"}], "tasks.jsonl:1: no field 'id'"),
        ("math", [{"id": "a", "answer": "4"}], "tasks.jsonl:1: unknown field 'prompt'"),
        ("math", [{"id": "a", "prompt": "2+2="}], "tasks.jsonl:1: no 'answer' field"),
        ("math", [TASKS[0], TASKS[0]], "tasks.jsonl:2: id 'a' is already used on line 1"),
        ("math", [r'{"id": "a", "prompt": "\ud800", "answer": "4"}'], "tasks.jsonl:1: a text holds a lone surrogate"),
        ("code", [{"id": "a", "prompt": "?", "entry_point": "f", "tests": []}], "tasks.jsonl:1: field 'tests' is empty"),
        ("code", [{"id": "a", "prompt": "?", "entry_point": "f"}], "tasks.jsonl:1: field 'tests' is missing"),
        ("math", [], "tasks.jsonl has no rows"),
        ("maths", TASKS, "unknown environment 'maths'; did you mean 'math'?"),
    ],
)
def test_wrong_tasks_are_refused(env: str, tasks: list[Any], says: str, grade: Any) -> None:
    status, lines, said = grade([GOOD], env=env, tasks=tasks)
    assert (status, lines) == (2, [])
    assert says in said and said.count("\n") == 1


def test_a_reward_that_looks_at_the_length_needs_it(grade: Any) -> None:
    known, unknown = {**GOOD, "n_tokens": 5}, {**GOOD, "id": "s"}
    for reward in ("length", "math + 0.1*length", "cwm_math"):
        status, lines, said = grade([known, unknown], "--reward", reward)
        assert (status, lines) == (2, [])
        assert f"responses.jsonl:2: reward {reward!r} needs n_tokens" in said and said.count("\n") == 1
    status, (line,), _ = grade([known], "--reward", "length")
    assert (status, line["reward"]) == (0, 1.0)


def test_what_a_reward_needs_is_asked_of_the_tasks(grade: Any) -> None:
    status, lines, said = grade([GOOD], "--reward", "trl:accuracy_reward")
    assert (status, lines) == (2, [])
    assert "tasks.jsonl:1: reward 'trl:accuracy_reward'" in said and "add the field 'solution' to the rows of --tasks" in said
    status, _, said = grade([GOOD], tasks=[{"id": "a", "prompt": "2+2="}])
    assert status == 2 and "no 'answer' field" in said and "tasks.grade" not in said


def test_files_that_cannot_be_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks, pipe, responses = write(tmp_path / "tasks.jsonl", TASKS), tmp_path / "pipe", write(tmp_path / "r.jsonl", [GOOD])
    os.mkfifo(pipe)
    for words, says in (
        (("--tasks", str(tmp_path / "none.jsonl"), "--responses", "x"), "--tasks: cannot read"),
        (("--tasks", str(tasks), "--responses", str(tmp_path / "none.jsonl")), "--responses: cannot read"),
        (("--tasks", str(tasks), "--responses", str(pipe)), "is not a file"),
        (("--tasks", str(tasks), "--responses", str(responses), "--reward", "math + 2"), "unknown reward '2'"),
    ):
        assert main(["grade", "--env", "math", *words]) == 2
        assert says in capsys.readouterr().err


def test_a_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = write(tmp_path / "tasks.jsonl", TASKS)
    responses = write(tmp_path / "responses.jsonl", [{"id": "e\x1b[31m", "task_id": "a", "response": r"\boxed{4}"}])
    assert main(["grade", "--env", "math", "--tasks", str(tasks), "--responses", str(responses)]) == 0
    line, summary = capsys.readouterr().out.splitlines()
    assert line.split() == ["e\\x1b[31m", "ok", "1", "4", "is", "right"]
    assert summary.startswith("1 responses in") and summary.endswith("mean reward 1.000 over 1 graded")


def test_ctrl_c_ends_at_once_with_what_was_graded(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", TASKS)
    responses = write(tmp_path / "responses.jsonl", [{"id": str(number), "task_id": "a", "response": "x"} for number in range(50)])
    words = ("--env", "graded_never", "--tasks", tasks, "--responses", responses, "--plugin", PLUGIN)
    process = subprocess.Popen(
        [sys.executable, "-m", "rl.cli", "grade", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline().startswith("grading")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert "infra" not in out
