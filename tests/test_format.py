"""CWM's format rewards, the length schedule, and the whole reward that joins them with an answer."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from environments.records import Episode, Message, Problem, StopReason, Task
from environments.registry import environment
from environments.single_turn import SingleTurn
from rewards.cwm import CwmGrader
from rewards.format import LengthGrader, box_problem, think_problem
from rewards.math import MathGrader
from rewards.registry import grader, make_grader
from rewards.score import Grader, Score, ScoreStatus
from rl.prompt import Renderer, load_tokenizer
from rl.rollout import RolloutWorker
from rl.tokenizer import save_tiny_tokenizer
from tests.fakes import make_problem
from tests.test_rollout import ScriptedGenerator, make_config, make_job


def grade(one: Grader | str, response: str, *, answer: object = "7", tokens: int = 10, version: int = 0) -> Score:
    async def main() -> Score:
        made = make_grader(one) if isinstance(one, str) else one
        task = Task(id="t", env="math", prompt=())
        messages = (Message(role="assistant", content="an earlier turn"), Message(role="assistant", content=response))
        episode = Episode(messages=messages, stop_reason=StopReason.DONE, n_sampled_tokens=tokens, policy_version=version)
        try:
            return await made.grade(Problem(task=task, reference={"answer": answer}, source="test"), episode)
        finally:
            await made.close()

    return asyncio.run(main())


CODE = "```python\npass\n```"
FORMATS = [
    ("think_format", "hm</think>7", ""),
    ("think_format", "<think>hm</think>7", ""),
    ("think_format", "7", "0 </think> instead of exactly one"),
    ("think_format", "<think>hm", "0 </think> instead of exactly one"),
    ("think_format", "a</think>b</think>c", "2 </think> instead of exactly one"),
    ("think_format", "", "0 </think> instead of exactly one"),
    ("box_format", r"hm</think>\boxed{7}", ""),
    ("box_format", r"\boxed{7}", ""),
    ("box_format", r"\boxed{6}?</think>\boxed{7}", ""),
    ("box_format", r"\boxed{7}</think>", "no \\boxed{} in the response"),
    ("box_format", r"</think>\boxed{6}\boxed{7}", "2 boxes instead of exactly one"),
    ("box_format", r"</think>\boxed{7", "a \\boxed{ is not closed within 10000 characters"),
    ("code_format", f"hm</think>\n{CODE}", ""),
    ("code_format", f"{CODE}\n</think>\n{CODE}", ""),
    ("code_format", f"{CODE}\n</think>", "0 fenced blocks instead of exactly one"),
    ("code_format", f"</think>\n{CODE}\n{CODE}", "2 fenced blocks instead of exactly one"),
    ("code_format", "</think>\n```python\npass", "the last fenced block is not closed"),
]


@pytest.mark.parametrize(("name", "response", "problem"), FORMATS)
def test_formats_are_all_or_nothing_and_say_why(name: str, response: str, problem: str) -> None:
    score = grade(name, response)
    assert (score.reward, score.status) == ((-1.0, ScoreStatus.POLICY_FAIL) if problem else (1.0, ScoreStatus.OK))
    assert score.reason == score.parts[name].reason == problem
    assert score.parts[name].value == score.reward


@pytest.mark.parametrize(
    ("tokens", "version", "reward"),
    [
        (0, 0, 1.0),
        (8192, 0, 1.0),
        (36864, 0, 0.0),
        (65535, 0, pytest.approx(-1.0, abs=1e-3)),
        (65536, 0, -1.0),
        (10**9, 0, -1.0),
        (36864, 5000, 1.0),
        (51200, 5000, 0.0),
        (65536, 10_000, 1.0),
        (65537, 10_000, -1.0),
        (65536, 10**6, 1.0),
    ],
)
def test_the_length_schedule_is_cwms(tokens: int, version: int, reward: float) -> None:
    score = grade("length", "x", tokens=tokens, version=version)
    assert score.reward == reward
    assert (score.status is ScoreStatus.POLICY_FAIL) == (reward == -1.0 and tokens >= 65536)
    assert bool(score.reason) == (score.reward < 1.0)


def test_a_static_schedule_and_bad_limits() -> None:
    assert LengthGrader(soft_max=10, hard_max=20, growth_steps=0).soft_max_at(10**6) == 10
    assert grade(LengthGrader(soft_max=10, hard_max=10, growth_steps=0), "", tokens=11).reward == -1.0
    for soft, hard, steps in ((0, 10, 0), (20, 10, 0), (5, 10, -1)):
        with pytest.raises(ValueError, match="length: "):
            LengthGrader(soft_max=soft, hard_max=hard, growth_steps=steps)


WHOLE = [
    (r"hm</think>\boxed{7}", 10, 1.0, []),
    (r"hm</think>\boxed{7}", 15, 0.0, []),
    (r"hm</think>\boxed{7}", 20, -1.0, ["length"]),
    (r"hm</think>\boxed{8}", 10, -1.0, ["answer"]),
    (r"hm</think>\boxed{8}", 15, -1.0, ["answer"]),
    (r"\boxed{7}", 10, -1.0, ["think_format"]),
    (r"</think></think>\boxed{7}", 10, -1.0, ["think_format"]),
    (r"</think>\boxed{7}\boxed{7}", 10, -1.0, ["box_format", "answer"]),
    ("", 30, -1.0, ["think_format", "box_format", "answer", "length"]),
]


@pytest.mark.parametrize(("response", "tokens", "reward", "failed"), WHOLE)
def test_the_whole_reward_needs_every_part(response: str, tokens: int, reward: float, failed: list[str]) -> None:
    formats = {"think_format": think_problem, "box_format": box_problem}
    grader = CwmGrader(MathGrader(), formats=formats, length=LengthGrader(soft_max=10, hard_max=20, growth_steps=0))
    score = grade(grader, response, tokens=tokens)
    assert score.reward == reward
    assert [name for name, part in score.parts.items() if part.value == -1.0] == failed
    assert (score.status is ScoreStatus.OK) == (not failed)
    assert all(name in score.reason for name in failed if name != "length" or failed == ["length"]) and score.reason


def test_the_whole_reward_is_registered_and_passes_on_what_has_no_verdict() -> None:
    assert grade("cwm_math", r"hm</think>\boxed{7}").reward == 1.0
    ungradable = grade("cwm_math", r"hm</think>\boxed{7}", answer=None)
    assert (ungradable.status, ungradable.reward) == (ScoreStatus.UNGRADABLE, None)
    assert {"think_format", "box_format", "length"} <= set(ungradable.parts)


def test_code_is_graded_with_its_format() -> None:
    async def main(response: str) -> Score:
        grader = make_grader("cwm_code")
        reference = {"entry_point": "f", "tests": [{"args": [2], "expected": 4}]}
        episode = Episode(messages=(Message(role="assistant", content=response),), stop_reason=StopReason.DONE, n_sampled_tokens=10)
        try:
            return await grader.grade(Problem(task=Task(id="t", env="code", prompt=()), reference=reference, source="test"), episode)
        finally:
            await grader.close()

    block = "```python\ndef f(x):\n    return x * 2\n```"
    assert asyncio.run(main(f"hm</think>\n{block}")).reward == 1.0
    unclosed = asyncio.run(main(f"hm\n{block}"))
    assert unclosed.reward == -1.0 and unclosed.parts["answer"].value == 1.0 and unclosed.parts["think_format"].value == -1.0


@grader("test_version")
class VersionGrader:
    """Rewards the policy version that the episode was started with."""

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        return Score(reward=float(episode.policy_version), status=ScoreStatus.OK)

    async def close(self) -> None:
        """Nothing to release."""


def test_a_rollout_tells_its_grader_the_policy_version(tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    environment("test_version")(SingleTurn)

    async def main() -> list[float | None]:
        generator = ScriptedGenerator(tokenizer, lambda episode, turn: "7")
        worker = RolloutWorker(make_config(), renderer=Renderer(tokenizer), generators=[generator], write_group=lambda group: None)
        job = dataclasses.replace(make_job(make_problem(env="test_version"), tokens=16), dispatch_version=7)
        outcome = await worker.run_group(job)
        await worker.close()
        assert outcome.group is not None
        return [rollout.score.reward for rollout in outcome.group.rollouts]

    assert asyncio.run(main()) == [7.0, 7.0, 7.0]
