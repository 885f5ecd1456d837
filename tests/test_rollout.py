"""The rollout worker with real environments, graders and tokenizer, and a generator that says what a test wants."""

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from configs.schema import Config, ModelConfig, RolloutConfig, RunConfig, SamplingConfig, TaskConfig
from environments.records import Message, Problem, StepResult, StopReason, Task
from environments.registry import environment
from rewards.registry import reward
from rewards.score import ScoreStatus
from rl.generator import Generator
from rl.prompt import ChatTokenizer, Renderer, load_tokenizer
from rl.records import Completion, GenerateRequest, RolloutGroup, Sampling
from rl.rollout import GroupJob, GroupOutcome, RolloutWorker
from rl.tokenizer import save_tiny_tokenizer
from tests.fakes import FakeEngine, make_problem


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    return load_tokenizer(folder)


class ScriptedGenerator:
    """Answers sample i of a request with what `reply(episode, turn)` says."""

    def __init__(self, tokenizer: ChatTokenizer, reply: Callable[[str, int], str]) -> None:
        self.tokenizer = tokenizer
        self.reply = reply
        self.requests: list[GenerateRequest] = []
        self.released: list[str] = []

    async def generate(self, request: GenerateRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        turn = int(request.key.split(".")[1])
        return tuple(self._completion(self.reply(episode, turn)) for episode in request.episodes)

    async def release(self, episodes: Sequence[str]) -> None:
        self.released += episodes

    def _completion(self, text: str) -> Completion:
        ids = np.array([*self.tokenizer.encode(text), self.tokenizer.stop_ids[0]], np.int32)
        zeros = np.zeros(len(ids), np.float32)
        return Completion(token_ids_T=ids, logprobs_T=zeros, versions_T=zeros.astype(np.int32), stop_reason=StopReason.STOP_TOKEN)


def make_config(*, retries: int = 1, max_turns: int = 4, max_prompt: int = 200) -> Config:
    return Config(
        run=RunConfig(name="t"),
        model=ModelConfig(path="m", max_prompt_tokens=max_prompt, context_length=400),
        tasks={"fake": TaskConfig(kind="programs", env="math")},
        sampling=SamplingConfig(max_tokens=16),
        rollout=RolloutConfig(samples_per_prompt=3, retries=retries, max_turns=max_turns),
    )


def make_job(problem: Problem, *, tokens: int) -> GroupJob:
    """Three samples of a problem."""
    return GroupJob(
        group_id="00000000",
        index=0,
        problem=problem,
        split="train",
        n_samples=3,
        dispatch_version=0,
        sampling=Sampling(max_tokens=tokens),
        seed=1,
    )


def run_group(
    tokenizer: ChatTokenizer, generator: ScriptedGenerator, problem: Problem, *, config: Config | None = None
) -> tuple[GroupOutcome, list[RolloutGroup]]:
    written: list[RolloutGroup] = []

    async def body() -> GroupOutcome:
        worker = RolloutWorker(config or make_config(), renderer=Renderer(tokenizer), generators=[generator], write_group=written.append)
        job = make_job(problem, tokens=16)
        try:
            return await worker.run_group(job)
        finally:
            await worker.close()

    return asyncio.run(body()), written


def test_samples_share_one_prefill_and_are_graded(tokenizer: ChatTokenizer) -> None:
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: r"\boxed{4}" if episode.endswith("-1") else r"\boxed{5}")
    outcome, written = run_group(tokenizer, generator, make_problem())
    assert outcome.group is not None and [group.group_id for group in written] == [outcome.group.group_id]
    assert "expected: 4\n" in written[0].rollouts[0].score.log
    assert not any(rollout.score.log for rollout in outcome.group.rollouts), "logs go to the disk, not to the learner"
    assert len(generator.requests) == 1 and len(set(generator.requests[0].seeds)) == 3
    assert [r.score.status for r in outcome.group.rollouts] == [ScoreStatus.POLICY_FAIL, ScoreStatus.OK, ScoreStatus.POLICY_FAIL]
    assert set(generator.released) == {"00000000-0", "00000000-1", "00000000-2"}
    assert all(r.timings["generate"] >= 0 and r.stop_reason is StopReason.DONE for r in outcome.group.rollouts)


def test_a_prompt_over_the_limit_is_dropped_by_name(tokenizer: ChatTokenizer) -> None:
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: "x")
    outcome, written = run_group(tokenizer, generator, make_problem(), config=make_config(max_prompt=3))
    assert (outcome.group, outcome.dropped, written, generator.requests) == (None, "prompt_too_long", [], [])
    assert len(generator.released) == 3


class Counter:
    """Adds numbers over several turns: a multi-turn environment."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.turn = 0

    async def reset(self) -> tuple[Message, ...]:
        return self.task.prompt

    async def step(self, action: Message) -> StepResult:
        self.turn += 1
        if action.content == "stop":
            return StepResult(done=True, stop_reason=StopReason.DONE)
        return StepResult(messages=(Message(role="user", content=f"seen {action.content}"),), done=False)

    async def close(self) -> None:
        return None


environment("test-counter")(Counter)


@reward("test-counter")
def counted(problem: Problem, response: str) -> float:
    return 1.0 if response == "stop" else -1.0


def test_multi_turn_keeps_sampled_tokens_and_extends_the_context(tokenizer: ChatTokenizer) -> None:
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: "stop" if turn == 2 else f"t{turn}")
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-counter"))
    assert outcome.group is not None
    rollout = outcome.group.rollouts[0]
    assert [turn.text for turn in rollout.turns] == ["t0", "t1", "stop"]
    own = [r for r in generator.requests if r.episodes[0] == rollout.rollout_id]
    for earlier, later in itertools.pairwise(own):
        assert later.prompt_ids_P[: len(earlier.prompt_ids_P)].tolist() == earlier.prompt_ids_P.tolist()
    whole = np.concatenate([ids for turn in rollout.turns[:2] for ids in (turn.context_ids_P, turn.completion.token_ids_T)])
    assert own[-1].prompt_ids_P[: len(whole)].tolist() == whole.tolist(), "sampled tokens reappear as they were sampled"
    assert rollout.score.status is ScoreStatus.OK


def test_a_template_that_rewrites_earlier_turns_starts_a_new_sample(tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path)
    template = tmp_path / "chat_template.jinja"
    # Shows only the newest of the policy's messages, as templates do that drop earlier thinking.
    template.write_text(
        template.read_text().replace("message['content']", "(message['content'] if message['role'] != 'assistant' or loop.last else '')")
    )
    tokenizer = load_tokenizer(tmp_path)
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: "stop" if turn == 2 else f"t{turn}")
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-counter"))
    assert outcome.group is not None
    rollout = outcome.group.rollouts[0]
    assert (rollout.score.status, rollout.error_type) == (ScoreStatus.OK, "")
    assert [turn.restarts for turn in rollout.turns] == [False, True, True]
    own = [r for r in generator.requests if r.episodes[0] == rollout.rollout_id]
    assert [r.prompt_ids_P.tolist() for r in own] == [turn.context_ids_P.tolist() for turn in rollout.turns]
    assert tokenizer.decode(own[1].prompt_ids_P.tolist()).count("seen t0") == 1


def test_the_turn_budget_ends_the_episode_with_its_own_reason(tokenizer: ChatTokenizer) -> None:
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: "go on")
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-counter"), config=make_config(max_turns=2))
    assert outcome.group is not None
    assert {r.stop_reason for r in outcome.group.rollouts} == {StopReason.MAX_TURNS}
    assert {len(r.turns) for r in outcome.group.rollouts} == {2}


_failures: dict[str, int] = {"left": 0}


class Flaky(Counter):
    """Fails as often as the test says, then works."""

    async def step(self, action: Message) -> StepResult:
        if _failures["left"] > 0:
            _failures["left"] -= 1
            raise OSError("sandbox is gone")
        return StepResult(done=True, stop_reason=StopReason.DONE)


environment("test-flaky")(Flaky)


@reward("test-flaky")
def flaky(problem: Problem, response: str) -> float:
    return 1.0


def test_an_infrastructure_failure_is_repeated_and_then_forgotten(tokenizer: ChatTokenizer) -> None:
    _failures["left"] = 2
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: "stop")
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-flaky"), config=make_config(retries=1))
    assert outcome.group is not None
    assert [r.score.status for r in outcome.group.rollouts] == [ScoreStatus.OK] * 3
    assert len(generator.requests) == 2, "only the failed samples are sampled again, together"
    assert len(generator.requests[1].episodes) == 2
    assert set(generator.requests[1].seeds) <= set(generator.requests[0].seeds)


def test_a_lasting_infrastructure_failure_gives_no_reward(tokenizer: ChatTokenizer) -> None:
    _failures["left"] = 1000
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: "stop")
    outcome, written = run_group(tokenizer, generator, make_problem(env="test-flaky"))
    assert outcome.group is not None and len(written) == 1
    for rollout in outcome.group.rollouts:
        assert rollout.score.status is ScoreStatus.INFRA and rollout.score.reward is None
        assert rollout.error_type == "OSError" and "sandbox is gone" in rollout.score.reason
        assert rollout.stop_reason is StopReason.ERROR


class Hangs(Counter):
    """Never answers."""

    async def step(self, action: Message) -> StepResult:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


environment("test-hangs")(Hangs)
reward("test-hangs")(counted)


def test_an_environment_that_hangs_is_named_and_gives_no_reward(tokenizer: ChatTokenizer) -> None:
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: "1")
    config = make_config(retries=0)
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, timeout=0.05))
    outcome, _ = run_group(tokenizer, generator, make_problem(env="test-hangs"), config=config)
    assert outcome.group is not None
    for rollout in outcome.group.rollouts:
        assert (rollout.score.status, rollout.score.reward) == (ScoreStatus.INFRA, None)
        assert "step of the environment test-hangs did not answer within rollout.timeout=0 s, after turn 1" in rollout.score.reason


def run_in_lockstep(problem: Problem, *, config: Config, tokenizer: ChatTokenizer) -> GroupOutcome:
    """A group over the real generator service in lockstep mode, all episodes announced, with the fake engine below it."""

    async def body() -> GroupOutcome:
        generator = Generator(FakeEngine(), lockstep=True)
        worker = RolloutWorker(config, renderer=Renderer(tokenizer), generators=[generator], write_group=lambda group: None)
        job = make_job(problem, tokens=3)
        try:
            await generator.expect(job.episodes)
            return await asyncio.wait_for(worker.run_group(job), 20)
        finally:
            generator.close()
            await worker.close()

    return asyncio.run(body())


_order = itertools.count()


class Uneven(Counter):
    """Episodes of different lengths."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.turns = 1 + next(_order) % 3

    async def step(self, action: Message) -> StepResult:
        self.turn += 1
        if self.turn == self.turns:
            return StepResult(done=True, stop_reason=StopReason.DONE)
        return StepResult(messages=(Message(role="user", content="on"),), done=False)


environment("test-uneven")(Uneven)


@reward("test-uneven")
def uneven(problem: Problem, response: str) -> float:
    return 1.0


def test_lockstep_does_not_wait_for_episodes_that_have_ended(tokenizer: ChatTokenizer) -> None:
    outcome = run_in_lockstep(make_problem(env="test-uneven"), config=make_config(), tokenizer=tokenizer)
    assert outcome.group is not None
    assert sorted(len(rollout.turns) for rollout in outcome.group.rollouts) == [1, 2, 3]


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_lockstep_goes_on_after_an_infrastructure_failure(tokenizer: ChatTokenizer, failures: int) -> None:
    _failures["left"] = failures
    config = make_config(retries=2, max_turns=1)
    outcome = run_in_lockstep(make_problem(env="test-flaky"), config=config, tokenizer=tokenizer)
    assert outcome.group is not None
    assert [rollout.score.status for rollout in outcome.group.rollouts] == [ScoreStatus.OK] * 3


_judged: list[str] = []


@reward("test-judge")
def judge(problem: Problem, response: str) -> float:
    _judged.append(response)
    if _judged.count(response) < 2:
        raise OSError("the judge is away")
    return 2.0


def test_the_task_sources_reward_grades_and_its_failures_are_repeated(tokenizer: ChatTokenizer) -> None:
    base = make_config(retries=1)
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: f"reply {episode[-1]}")
    for reward_spec, n_judged in (("test-judge", 6), (None, 6)):
        tasks = {"fake": dataclasses.replace(base.tasks["fake"], reward=reward_spec)}
        outcome, _ = run_group(tokenizer, generator, make_problem(), config=dataclasses.replace(base, tasks=tasks))
        assert outcome.group is not None and len(_judged) == n_judged, "each reply once again"
        assert [r.score.reward for r in outcome.group.rollouts] == [2.0 if reward_spec else -1.0] * 3
