"""rl replay: recorded actions in fresh environments, on runs with real sandboxes."""

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from environments.records import Budget, Message, StepResult, StopReason, Task
from environments.registry import environment
from environments.single_turn import SingleTurn
from rewards.score import Score, ScoreStatus
from rl.cli import main
from rl.history.observations import RULES, compare
from rl.history.recorded import Said
from rl.log.query import RunLog
from tests.history_run import config_for, make_run, settings_as_found, write_sums
from tests.ring import ROOT

__all__ = ["settings_as_found"]
HOSTILE = "\x1b[2J\u202eevil"
STATE = {"answer": "first"}
"""What the moody environment is like at the moment."""


@environment("replayed_moods")
class Moods(SingleTurn):
    """Answers by STATE; says what is left of its budgets."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._budget: Budget | None = None

    def note_budget(self, budget: Budget) -> None:
        self._budget = budget

    async def step(self, action: Message) -> StepResult:
        if action.content == "end":
            return StepResult(done=True, stop_reason=StopReason.DONE, outcome={"mood": STATE["answer"]})
        if action.content == "fail":
            raise OSError("the mood is gone")
        assert self._budget is not None
        left = f"{self._budget.turns} turns, {self._budget.tokens} tokens, {self._budget.seconds:.0f} seconds"
        text = f"{STATE['answer']}\n{left}" if action.content == "mood" else f"nothing\n{left}"
        return StepResult(messages=(Message(role="user", content=text),), done=False)


def cell(code: str) -> str:
    return f"<tool: python>\n{code}\n</tool>"


def one_run(folder: Path, env: str, replies: Callable[[str, int], str], *, samples: int = 1, **sections: Any) -> Path:
    root = folder / "runs" / env.replace(":", "-")
    root.parent.mkdir(exist_ok=True)
    task = {"kind": "jsonl", "env": env, "path": str(write_sums(folder)), "reward": "math"}
    make_run(root, config_for(root, tasks={"sums": task}, **sections), replies, groups=1, samples=samples, batch=0)
    return root


def replay(capsys: pytest.CaptureFixture[str], run: Path, rollout: str, *words: str, status: int) -> dict[str, Any]:
    assert main(["replay", str(run), rollout, "--json", *words]) == status
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["same"] == (status == 0)
    return report


def verdicts(report: dict[str, Any]) -> list[str]:
    return [turn["verdict"] for turn in report["turns"]]


def test_a_single_turn_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = one_run(tmp_path, "math", lambda episode, turn: r"\boxed{4}")
    report = replay(capsys, run, "00000000-0", status=0)
    assert verdicts(report) == ["same", "same"] and [turn["turn"] for turn in report["turns"]] == ["opening", "0"]
    assert report["score"]["same"] and report["score"]["replayed"]["reward"] == report["score"]["recorded"]["reward"]
    assert main(["replay", str(run), "00000000-0"]) == 0
    assert "same: every observation, the outcome and the score" in capsys.readouterr().out


@pytest.fixture(scope="module")
def python_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that computes, one whose cell prints addresses, temporary names and durations, one that asks the clock, one that says much."""
    cells = {
        "0": ["x = 6", "print(x * 7)"],
        "1": [
            "print(object())\nimport tempfile\nprint(tempfile.mkdtemp())\nimport random\nprint(f'1 passed in {random.random() + 1:.2f}s')"
        ],
        "2": ["print('steady')", "import time\nprint('now', time.time_ns())\nprint('\\x1b[2J')", "print('steady')"],
        "3": ["for i in range(900):\n    print(i, 'x' * 40)"],
    }

    def reply(episode: str, turn: int) -> str:
        own = cells[episode[-1]]
        return cell(own[turn]) if turn < len(own) else r"\boxed{4}"

    return one_run(tmp_path_factory.mktemp("python"), "math_python", reply, samples=4)


def test_a_session_of_python_is_played_again(python_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = replay(capsys, python_run, "00000000-0", status=0)
    assert verdicts(report) == ["same"] * 4 and report["notes"] == []
    replay(capsys, python_run, "00000000-3", status=0)


def test_what_differs_by_rule_is_told_and_can_be_counted(python_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = replay(capsys, python_run, "00000000-1", status=0)
    assert verdicts(report) == ["same", "by_rule", "same"]
    assert report["turns"][1]["rules"] == ["address", "temporary", "duration"]
    exact = replay(capsys, python_run, "00000000-1", "--exact", status=1)
    assert verdicts(exact) == ["same", "diverged", "same"] and exact["first_divergence"] == "0"


def test_a_clock_diverges_and_the_rest_is_still_compared(python_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = replay(capsys, python_run, "00000000-2", status=1)
    assert verdicts(report) == ["same", "same", "diverged", "same", "same"] and report["first_divergence"] == "1"
    diff = report["turns"][2]["diff"].split("\n")
    assert diff[:2] == ["--- recorded", "+++ replayed"]
    assert [line[:5] for line in diff if line.startswith(("-now", "+now"))] == ["-now ", "+now "]
    assert report["score"]["same"]
    assert main(["replay", str(python_run), "00000000-2"]) == 1
    said = capsys.readouterr().out
    assert "turn 1: DIVERGED: another text came back" in said and "first divergence: turn 1" in said
    assert "\x1b" not in said and "\\x1b[2J" in said


def moody(folder: Path, said: list[str], **sections: Any) -> Path:
    return one_run(folder, "replayed_moods", lambda episode, turn: said[turn], **sections)


def test_budgets_are_those_of_the_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["mood", "other", "end"]

    def slowly(episode: str, turn: int) -> str:
        time.sleep(1.2 * (turn == 1))
        return said[turn]

    run = one_run(tmp_path, "replayed_moods", slowly)
    with RunLog(run) as log:
        shown = [str(row[0]) for row in log.query("SELECT text FROM turns WHERE text LIKE '%seconds' ORDER BY message_index").rows]
    assert [text.rpartition(", ")[2] for text in shown] == ["7200 seconds", "7199 seconds"]
    assert verdicts(replay(capsys, run, "00000000-0", status=0)) == ["same"] * 4


def test_what_diverges_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = moody(tmp_path, ["other", "mood", "end"])
    replay(capsys, run, "00000000-0", status=0)
    monkeypatch.setitem(STATE, "answer", f"second {HOSTILE}")
    report = replay(capsys, run, "00000000-0", status=1)
    assert verdicts(report) == ["same", "same", "diverged", "same"] and report["first_divergence"] == "1"
    assert f"+second {HOSTILE}" in report["turns"][2]["diff"].split("\n")
    assert report["outcome"]["verdict"] == "diverged"
    assert main(["replay", str(run), "00000000-0"]) == 1
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\u202e" not in said and "+second \\x1b[2J\\u202eevil" in said and "outcome: DIVERGED" in said


def test_an_end_that_comes_elsewhere_diverges(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = moody(tmp_path, ["mood", "mood", "end"])
    steps = Moods.step

    async def never(self: Moods, action: Message) -> StepResult:
        return await steps(self, Message(role="assistant", content="mood"))

    async def at_once(self: Moods, action: Message) -> StepResult:
        return await steps(self, Message(role="assistant", content="end"))

    monkeypatch.setattr(Moods, "step", never)
    report = replay(capsys, run, "00000000-0", status=1)
    assert report["turns"][3]["why"] == "the recorded episode ended here, and this one goes on" and report["first_divergence"] == "2"
    monkeypatch.setattr(Moods, "step", at_once)
    report = replay(capsys, run, "00000000-0", status=1)
    assert report["turns"][1]["why"] == "the episode ends here, and the recorded one went on" and report["not_played"] == 2


def test_an_episode_that_a_limit_cut_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = moody(tmp_path, ["mood"] * 9, rollout={"max_turns": 3, "retries": 0})
    report = replay(capsys, run, "00000000-0", status=0)
    assert verdicts(report) == ["same", "same", "same", "unknown"] and report["score"]["same"]
    assert report["turns"][3]["why"] == "the recorded episode was cut off here (max_turns), so the log has no answer"
    assert main(["replay", str(run), "00000000-0"]) == 0
    assert "same, as far as the log goes (1 not compared)" in capsys.readouterr().out


def test_another_score_diverges(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = one_run(tmp_path, "math", lambda episode, turn: r"\boxed{1}")
    import rewards.math

    async def always(self: Any, problem: Any, episode: Any) -> Score:
        return Score(reward=1.0, status=ScoreStatus.OK, reason="generous")

    monkeypatch.setattr(rewards.math.MathGrader, "grade", always)
    report = replay(capsys, run, "00000000-0", status=1)
    assert report["first_divergence"] == "score" and report["score"]["replayed"]["reason"] == "generous"


def test_an_environment_that_fails_is_no_divergence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = moody(tmp_path, ["mood", "end"])

    async def broken(self: Moods, action: Message) -> StepResult:
        raise OSError("the sandbox is gone")

    monkeypatch.setattr(Moods, "step", broken)
    assert main(["replay", str(run), "00000000-0", "--json"]) == 1
    captured = capsys.readouterr()
    assert "the environment failed after 0 turns: OSError: the sandbox is gone" in captured.err and not captured.out


def test_a_recording_that_infrastructure_cut_off_is_played_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = moody(tmp_path, ["mood", "fail"])
    assert main(["replay", str(run), "00000000-0", "--json"]) == 1
    assert "the environment failed after 1 turns: OSError: the mood is gone" in capsys.readouterr().err
    steps = Moods.step

    async def repaired(self: Moods, action: Message) -> StepResult:
        return await steps(self, replace(action, content="end") if action.content == "fail" else action)

    monkeypatch.setattr(Moods, "step", repaired)
    report = replay(capsys, run, "00000000-0", status=0)
    assert report["outcome"]["verdict"] == "unknown" and report["score"]["replayed"] is None
    assert report["notes"] == ["infrastructure cut the recorded episode off (OSError), so its end is not compared"]


def test_wrong_input_is_told(python_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(python_run), "00000000-7"]) == 2
    assert "there is no rollout '00000000-7' in this run; the nearest ids are 00000000-0, 00000000-1" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "none"), "00000000-7"]) == 2
    assert "is not a run" in capsys.readouterr().err
    shutil.copytree(ROOT / "tests/data/log_v1", tmp_path / "old")
    assert main(["replay", str(tmp_path / "old"), "nothing"]) == 2
    near = capsys.readouterr().err.rpartition("the nearest ids are ")[2].split(",")[0]
    assert main(["replay", str(tmp_path / "old"), near]) == 2
    assert "schema 1" in capsys.readouterr().err


def said_by(message: Message, *, whole: bool = True) -> Said:
    return Said(message=message, whole=whole, turn=None, started=None, ended=None, token_start=None, token_end=None, finish_reason=None)


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        ("<a object at 0x7f00aa10>", "<a object at 0x55d0aa10f0>", "by_rule"),
        ("0x7f00aa10", "0x7f00aa1", "by_rule"),
        ("0xff", "0xfe", "diverged"),
        ("/tmp/tmpab12cd34/x", "/tmp/tmpzz12cd34/x", "by_rule"),
        ("/tmp/tmpab12cd34/x", "/tmp/tmpzz12cd34/y", "diverged"),
        ("/tmp/notes", "/tmp/other", "diverged"),
        ("===== 3 passed in 0.12s =====", "===== 3 passed in 1.5s =====", "by_rule"),
        ("===== 3 passed in 0.12s =====", "===== 2 passed in 0.12s =====", "diverged"),
        ("Ran 2 tests in 0.001s", "Ran 2 tests in 0.004s", "by_rule"),
        ("took 0.12s", "took 0.13s", "diverged"),
    ],
)
def test_the_rules_cover_what_they_say(then: str, now: str, verdict: str) -> None:
    recorded, replayed = Message(role="tool", name="python", content=then), Message(role="tool", name="python", content=now)
    assert compare([said_by(recorded)], [replayed], exact=False).verdict == verdict
    assert compare([said_by(recorded)], [replayed], exact=True).verdict == "diverged"
    assert compare([said_by(recorded, whole=False)], [replayed], exact=False).verdict == "unknown"


def test_exit_codes_and_roles_are_compared() -> None:
    one = Message(role="tool", name="bash", content="x", exit_code=0)
    for other in (Message(role="tool", name="bash", content="x", exit_code=1), Message(role="user", content="x")):
        assert compare([said_by(one)], [other], exact=False).verdict == "diverged"
    assert compare([said_by(one)], [], exact=False).why == "0 messages came back, and 1 had"


def test_a_huge_difference_stays_readable() -> None:
    then, now = "\n".join(["same"] * 5000 + ["x" * 10_000] * 500), "\n".join(["same"] * 5000 + ["y" * 10_000] * 500)
    diff = compare([said_by(Message(role="tool", content=then))], [Message(role="tool", content=now)], exact=False).diff
    assert len(diff) < 2_000_000 and "+" + "y" * 2000 in diff.split("\n")


def test_the_documented_rules_are_the_code() -> None:
    text = (ROOT / "docs/history.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| `(.+?)` \|$", text, re.M)
    assert rows == [(rule.name, rule.about, rule.instead) for rule in RULES]
