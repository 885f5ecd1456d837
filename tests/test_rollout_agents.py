"""Episodes of agents: budgets, limits, what is handed over at the end, and slow ones beside quick ones."""

import asyncio
import dataclasses
from typing import ClassVar

from environments.records import Budget, Episode, Message, Problem, StepResult, StopReason
from environments.registry import environment
from rewards.registry import grader
from rewards.score import Score, ScoreStatus
from rl.generator import Generator
from rl.prompt import ChatTokenizer, Renderer
from rl.records import Completion
from rl.rollout import GroupOutcome, RolloutWorker
from tests.fakes import FakeEngine, make_problem
from tests.test_rollout import Counter, ScriptedGenerator, make_config, make_job, run_group, tokenizer

__all__ = ["tokenizer"]


class Agent(Counter):
    """Writes down its budgets; hands a patch over at `stop`."""

    budgets: ClassVar[list[Budget]] = []

    def note_budget(self, budget: Budget) -> None:
        self.budgets.append(budget)

    async def step(self, action: Message) -> StepResult:
        if action.content == "stop":
            return StepResult(done=True, stop_reason=StopReason.DONE, outcome={"patch": f"after {self.turn}"})
        return await super().step(action)


environment("test-agent")(Agent)


class PatchGrader:
    """Passes an episode with a patch."""

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        ok = episode.outcome.get("patch") == "after 1"
        return Score(
            reward=1.0 if ok else -1.0, status=ScoreStatus.OK if ok else ScoreStatus.POLICY_FAIL, reason=str(dict(episode.outcome))
        )

    async def close(self) -> None:
        return None


grader("test-agent")(PatchGrader)


def test_what_an_environment_hands_over_reaches_grader_and_record(tokenizer: ChatTokenizer) -> None:
    replies = {"0": ["a", "stop"], "1": ["a", "b"], "2": ["stop"]}

    def reply(episode: str, turn: int) -> str:
        return replies[episode[-1]][turn] if turn < len(replies[episode[-1]]) else "on"

    generator = ScriptedGenerator(tokenizer, reply)
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-agent"), config=make_config(max_turns=3))
    assert outcome.group is not None
    assert [(dict(r.outcome), r.score.status, r.stop_reason) for r in outcome.group.rollouts] == [
        ({"patch": "after 1"}, ScoreStatus.OK, StopReason.DONE),
        ({}, ScoreStatus.POLICY_FAIL, StopReason.MAX_TURNS),
        ({"patch": "after 0"}, ScoreStatus.POLICY_FAIL, StopReason.DONE),
    ]


def test_an_outcome_that_cannot_be_logged_is_the_environments_failure(tokenizer: ChatTokenizer) -> None:
    class Bytes(Counter):
        async def step(self, action: Message) -> StepResult:
            return StepResult(done=True, stop_reason=StopReason.DONE, outcome={"patch": b"raw"})

    environment("test-bytes")(Bytes)
    grader("test-bytes")(PatchGrader)
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: "stop")
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-bytes"), config=make_config(retries=0))
    assert outcome.group is not None
    assert {(r.score.status, r.error_type) for r in outcome.group.rollouts} == {(ScoreStatus.INFRA, "TypeError")}


def test_budgets_are_told_before_each_step(tokenizer: ChatTokenizer) -> None:
    Agent.budgets.clear()
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: f"t{turn}")
    config = make_config(max_turns=2)
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-agent"), config=config)
    assert outcome.group is not None
    turns = outcome.group.rollouts[0].turns
    used = [len(turn.context_ids_P) + len(turn.completion.token_ids_T) for turn in turns]
    assert sorted((b.turns, b.tokens) for b in Agent.budgets) == [(0, 400 - sum(used))] * 3 + [(1, 400 - used[0])] * 3
    assert all(0 < b.seconds <= b.seconds_in_all == config.rollout.max_seconds for b in Agent.budgets)


def test_seconds_end_the_episode_between_turns(tokenizer: ChatTokenizer) -> None:
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: "stop" if episode.endswith("-0") else "on")
    config = make_config()
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, max_seconds=1e-9))
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-agent"), config=config)
    assert outcome.group is not None
    ended = [(r.stop_reason, len(r.turns), bool(r.outcome)) for r in outcome.group.rollouts]
    assert ended == [(StopReason.DONE, 1, True)] + [(StopReason.MAX_SECONDS, 1, False)] * 2, "what was sampled is played"


def test_a_turn_that_was_cut_is_answered_and_the_episode_goes_on(tokenizer: ChatTokenizer) -> None:
    class Cut(ScriptedGenerator):
        def _completion(self, text: str) -> Completion:
            whole = super()._completion(text)
            if text == "stop":
                return whole
            ids = whole.token_ids_T[:-1]
            return dataclasses.replace(
                whole,
                token_ids_T=ids,
                logprobs_T=whole.logprobs_T[:-1],
                versions_T=whole.versions_T[:-1],
                stop_reason=StopReason.MAX_TOKENS,
            )

    generator = Cut(tokenizer, lambda episode, turn: "stop" if turn == 1 else "half a tool ca")
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-agent"))
    assert outcome.group is not None
    rollout = outcome.group.rollouts[0]
    assert [turn.completion.stop_reason for turn in rollout.turns] == [StopReason.MAX_TOKENS, StopReason.STOP_TOKEN]
    assert rollout.turns[1].context_ids_P[0] == tokenizer.token_id("<|eot_id|>"), "the template's end token closes it"
    assert (rollout.stop_reason, dict(rollout.outcome)) == (StopReason.DONE, {"patch": "after 1"})


_hold: dict[str, asyncio.Event] = {}


class Hanging(Counter):
    """A step of task `slow` waits."""

    async def step(self, action: Message) -> StepResult:
        if self.task.id == "slow-step":
            await _hold["step"].wait()
        return await super().step(action)


environment("test-hanging")(Hanging)


class HangingGrader(PatchGrader):
    """The tests of task `slow-tests` hang."""

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        if problem.task.id == "slow-tests":
            await _hold["tests"].wait()
        return Score(reward=1.0, status=ScoreStatus.OK, reason="")


grader("test-hanging")(HangingGrader)


def test_a_hanging_step_or_test_run_holds_nobody_else_up(tokenizer: ChatTokenizer) -> None:
    """Over the real generator service as asynchronous runs use it, with the fake engine below it."""
    config = make_config(max_turns=2)

    async def body() -> None:
        _hold.update(step=asyncio.Event(), tests=asyncio.Event())
        generator = Generator(FakeEngine(), lockstep=False)
        asynchronous = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, max_staleness=4))
        worker = RolloutWorker(asynchronous, renderer=Renderer(tokenizer), generators=[generator], write_group=lambda group: None)

        def start(name: str, index: int) -> "asyncio.Task[GroupOutcome]":
            job = make_job(make_problem(name, env="test-hanging"), tokens=3)
            return asyncio.create_task(worker.run_group(dataclasses.replace(job, group_id=f"{index:08d}", index=index)))

        try:
            slow = [start("slow-step", 0), start("slow-tests", 1)]
            for index in range(2, 6):
                quick = await asyncio.wait_for(start("quick", index), 20)
                assert quick.group is not None and all(len(r.turns) == 2 for r in quick.group.rollouts)
            assert not any(task.done() for task in slow)
            _hold["step"].set()
            _hold["tests"].set()
            for outcome in await asyncio.wait_for(asyncio.gather(*slow), 20):
                assert outcome.group is not None and {r.score.status for r in outcome.group.rollouts} == {ScoreStatus.OK}
        finally:
            generator.close()
            await worker.close()

    asyncio.run(body())


def test_in_lockstep_a_hanging_test_run_holds_nobody_up(tokenizer: ChatTokenizer) -> None:
    """An episode that is being graded has been released. A step that hangs holds the round, since its episode will ask again."""
    config = make_config(max_turns=2)

    async def body() -> None:
        _hold.update(step=asyncio.Event(), tests=asyncio.Event())
        generator = Generator(FakeEngine(), lockstep=True)
        worker = RolloutWorker(config, renderer=Renderer(tokenizer), generators=[generator], write_group=lambda group: None)
        jobs = [
            dataclasses.replace(make_job(make_problem(name, env="test-hanging"), tokens=3), group_id=f"{index:08d}", index=index)
            for index, name in enumerate(("slow-tests", "quick"))
        ]
        try:
            for job in jobs:
                await generator.expect(job.episodes)
            slow, quick = (asyncio.create_task(worker.run_group(job)) for job in jobs)
            outcome = await asyncio.wait_for(quick, 20)
            assert outcome.group is not None and not slow.done()
            _hold["tests"].set()
            await asyncio.wait_for(slow, 20)
        finally:
            generator.close()
            await worker.close()

    asyncio.run(body())
