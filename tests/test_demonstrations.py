"""Demonstrations of several turns: played, graded, and learned with the very tokens that RL sees."""

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest

from environments.records import Problem, StopReason
from rl.demonstrations import Demonstrations, play_demonstrations
from rl.prompt import ChatTokenizer
from rl.records import Sampling
from rl.samples import to_sample
from tests.fakes import make_problem
from tests.test_rollout import ScriptedGenerator, make_config, run_group, tokenizer
from tests.test_rollout_agents import Agent

__all__ = ["Agent", "tokenizer"]
SAMPLING = Sampling(max_tokens=16)


def demonstrated(name: str, *replies: str) -> Problem:
    """A problem of the environment `test-agent`, which passes when `stop` is said in the second turn."""
    problem = make_problem(name, env="test-agent")
    return dataclasses.replace(problem, reference={"replies": list(replies)})


def play(tokenizer: ChatTokenizer, problems: Sequence[Problem], said: list[str] | None = None) -> Demonstrations:
    say = (said if said is not None else []).append
    return asyncio.run(play_demonstrations(make_config(), problems, tokenizer=tokenizer, sampling=SAMPLING, say=say))


def test_a_demonstration_is_the_sample_that_rl_would_make_of_it(tokenizer: ChatTokenizer) -> None:
    problem = demonstrated("a", "go", "stop")
    (example,) = play(tokenizer, [problem]).examples
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: ("go", "stop")[turn])
    outcome, _ = run_group(tokenizer, generator, problem)
    assert outcome.group is not None
    rollout = outcome.group.rollouts[0]
    assert rollout.stop_reason is StopReason.DONE
    sample = to_sample(rollout.turns, rollout_id="r", part=0, group_index=0, advantage=0.0)
    learned = [i for i, in_mask in enumerate(example.mask) if in_mask]
    assert learned == sample.agent_mask_T.nonzero()[0].tolist()
    assert tokenizer.decode([example.token_ids[i] for i in learned]) == "gostop"
    assert [example.token_ids[i] for i in range(len(example.mask)) if not example.mask[i]] == sample.token_ids_T[
        ~sample.agent_mask_T
    ].tolist()


def test_what_does_not_pass_is_left_out_and_counted(tokenizer: ChatTokenizer) -> None:
    problems = [demonstrated("right", "go", "stop"), demonstrated("early", "stop"), demonstrated("cut", "x" * 40), demonstrated("none")]
    done = play(tokenizer, problems)
    assert len(done.examples) == 1
    told = done.told()
    assert told.startswith("3 left out: ") and "policy_fail, ended by done" in told and "ended by script_end" in told


def test_none_that_passes_is_an_error(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(ValueError, match=r"no demonstration passed; 1 left out: 1 x policy_fail"):
        play(tokenizer, [demonstrated("early", "stop")])


def test_progress_is_told(tokenizer: ChatTokenizer) -> None:
    said: list[str] = []
    play(tokenizer, [demonstrated(str(i), "go", "stop") for i in range(100)], said)
    assert said == ["warm start: 100 of 100 demonstrations played"]
