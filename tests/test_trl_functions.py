"""Reward functions of TRL's shape, and TRL's own rewards by name."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from configs.schema import TaskConfig
from environments.records import Episode, Message, Problem, StopReason, Task
from environments.sources.jsonl import JsonlSource
from rewards.registry import make_grader
from rewards.score import Grader, Score, ScoreStatus
from rewards.trl_named import TrlNamedGrader

FUNCTIONS = """
import functools

def chat(prompts, completions, answer, **kwargs):
    assert prompts == [[{"role": "user", "content": "2+2="}]], prompts
    return [1.0 if completion[-1]["content"] == right else -1.0 for completion, right in zip(completions, answer)]

def texts(prompts: list[str], completions: "list[str]") -> list[float]:
    return [float(prompt == "2+2=" and completion == "4") for prompt, completion in zip(prompts, completions)]

async def waits(completions, answer):
    return [0.5]

def keywords(**kwargs):
    assert sorted(kwargs) == ["answer", "completion_ids", "completions", "entry_point", "log_extra", "log_metric", "prompts"]
    kwargs["log_extra"]("seen", ["something"])
    kwargs["log_metric"]("chars", 7)
    return [float(len(kwargs["completion_ids"][0]))]

class Scaled:
    def __init__(self, factor):
        self.factor = factor
    def __call__(self, completions, **kwargs):
        return [self.factor]

scaled = Scaled(3.0)
partly = functools.partial(chat, answer=["4"])

def none(completions, **kwargs):
    return [None]

def nan(completions, **kwargs):
    return [float("nan")]

def infinite(completions, **kwargs):
    return [float("inf")]

def too_many(completions, **kwargs):
    return [1.0, 2.0]

def needs_state(completions, trainer_state):
    return [0.0]

def may_have_state(completions, trainer_state=None, **kwargs):
    return [1.0 if trainer_state is None else 0.0]

def needs_column(completions, difficulty):
    return [0.0]

def by_difficulty(completions, difficulty, note, **kwargs):
    assert note == [None] and "columns" not in kwargs
    return [float(value) for value in difficulty]

def three(a, b, c):
    return 0.0

async def ours(problem, response):
    return 1.0 if response == problem.reference["answer"] else -1.0

class NoGrader:
    pass

def makes():
    from rewards.math import MathGrader
    return MathGrader()
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trl_shapes.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))


def problem(**reference: Any) -> Problem:
    task = Task(id="p1", env="math", prompt=(Message(role="user", content="2+2="),), payload={"entry_point": "f"})
    return Problem(task=task, reference=reference, source="s")


def grade(grader: Grader, asked: Problem, *replies: str) -> list[Score]:
    async def body() -> list[Score]:
        try:
            return [await grader.grade(asked, episode(asked, reply)) for reply in replies]
        finally:
            await grader.close()

    return asyncio.run(body())


def episode(asked: Problem, reply: str) -> Episode:
    return Episode(messages=(*asked.task.prompt, Message(role="assistant", content=reply)), stop_reason=StopReason.DONE, n_sampled_tokens=5)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("chat", 1.0, -1.0),
        ("texts", 1.0, 0.0),
        ("waits", 0.5, 0.5),
        ("scaled", 3.0, 3.0),
        ("partly", 1.0, -1.0),
        ("may_have_state", 1.0, 1.0),
    ],
)
def test_functions_of_trls_shape_are_taken_as_they_are(name: str, right: float, wrong: float) -> None:
    scores = grade(make_grader(f"trl_shapes:{name}"), problem(answer="4"), "4", "5")
    assert [score.reward for score in scores] == [right, wrong]
    assert all((score.status is ScoreStatus.OK) == (score.reward is not None and score.reward > 0) for score in scores)


def test_a_function_sees_columns_and_may_tell_more() -> None:
    (score,) = grade(make_grader("trl_shapes:keywords"), problem(answer="4"), "4")
    assert (score.reward, score.reason, score.parts["chars"].value, score.parts["chars"].weight) == (5.0, "seen something", 7.0, 0.0)


@pytest.mark.parametrize(("name", "says"), [("none", "returned None"), ("nan", "returned NaN")])
def test_none_leaves_the_baseline(name: str, says: str) -> None:
    (score,) = grade(make_grader(f"trl_shapes:{name}"), problem(answer="4"), "4")
    assert (score.reward, score.status) == (None, ScoreStatus.UNGRADABLE)
    assert says in score.reason and "does not apply" in score.reason


def test_fields_of_the_rows_become_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "2+2=", "answer": "4", "difficulty": 3, "note": null}\n')
    config = TaskConfig(kind="jsonl", env="math", path=str(path), columns=("difficulty", "note"))
    asked = JsonlSource("rows", config=config).problem(0)
    (score,) = grade(make_grader("trl_shapes:by_difficulty"), asked, "4")
    assert score.reward == 3.0
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: unknown field 'dificulty'; did you mean 'difficulty'.*tasks\.rows\.columns"):
        JsonlSource("rows", config=dataclasses.replace(config, columns=("dificulty",)))


def test_a_missing_column_is_the_datas_fault() -> None:
    (score,) = grade(make_grader("trl_shapes:needs_column"), problem(answer="4"), "4")
    assert score.status is ScoreStatus.UNGRADABLE
    assert "problem p1" in score.reason and "'difficulty'" in score.reason and "answer" in score.reason


@pytest.mark.parametrize(("name", "says"), [("infinite", "not finite"), ("too_many", "must be a list with one number")])
def test_an_unusable_result_is_an_error(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        grade(make_grader(f"trl_shapes:{name}"), problem(answer="4"), "4")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("needs_state", "needs trainer_state"),
        ("three", r"takes \(a, b, c\); a reward is a function"),
        ("NoGrader", "is the class NoGrader, which has no `grade`"),
        ("FUNCTIONS", "unknown name"),
    ],
)
def test_what_cannot_be_a_reward_is_refused_when_it_is_named(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_grader(f"trl_shapes:{name}")


def test_our_functions_and_makers_of_graders_are_told_apart() -> None:
    right, wrong = grade(make_grader("trl_shapes:ours"), problem(answer="4"), "4", "5")
    assert (right.status, wrong.status) == (ScoreStatus.OK, ScoreStatus.POLICY_FAIL)
    (score,) = grade(make_grader("trl_shapes:makes"), problem(answer="4"), r"\boxed{4}")
    assert score.reward == 1.0


def test_trls_rewards_by_name() -> None:
    asked = problem(answer="4", solution=r"\boxed{4}")
    formatted, plain = grade(make_grader("trl:think_format_reward"), asked, "<think>\nwell\n</think>\n4", "4")
    assert (formatted.reward, formatted.status, plain.reward, plain.status) == (1.0, ScoreStatus.OK, 0.0, ScoreStatus.POLICY_FAIL)
    right, wrong = grade(make_grader("trl:accuracy_reward"), asked, r"so \boxed{4}", r"so \boxed{5}")
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert "gold_parsed" in right.reason
    (missing,) = grade(make_grader("trl:accuracy_reward"), problem(answer="4"), r"\boxed{4}")
    assert missing.status is ScoreStatus.UNGRADABLE and "set tasks.*.solution" in missing.reason


def test_a_reply_that_costs_too_much_fails_and_harms_no_other() -> None:
    asked = problem(solution=r"\boxed{4}")
    hostile, right = grade(TrlNamedGrader("accuracy_reward", timeout_seconds=3), asked, r"\boxed{9^{9^{9^9}}}", r"\boxed{4}")
    assert (hostile.reward, hostile.status, right.reward) == (0.0, ScoreStatus.POLICY_FAIL, 1.0)


def test_a_worker_that_dies_is_replaced() -> None:
    async def body() -> Score:
        grader = TrlNamedGrader("think_format_reward")
        asked = problem()
        await grader.grade(asked, episode(asked, "x"))
        assert grader._worker._process is not None
        grader._worker._process.kill()
        try:
            return await grader.grade(asked, episode(asked, "<think>a</think>b"))
        finally:
            await grader.close()

    assert asyncio.run(body()).reward == 1.0


@pytest.mark.parametrize(
    ("name", "says"),
    [("accuracy_rewards", "did you mean 'accuracy_reward'"), ("get_cosine_scaled_reward", "needs arguments: call it in a module of yours")],
)
def test_unknown_rewards_of_trl_are_named(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_grader(f"trl:{name}")
