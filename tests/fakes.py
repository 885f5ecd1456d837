"""Hand-written fakes that force an order of events; everything else in the tests is real."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from environments.records import Message, Problem, StopReason, Task
from rewards.score import Score, ScoreStatus
from rl.errors import PartGone
from rl.records import Completion, GenerateRequest, Loaded, Publication, Rollout, RolloutGroup, Sampling, StepStats, Turn
from rl.rollout import GroupJob, GroupOutcome


def make_problem(name: str = "t0", *, env: str = "math", source: str = "fake", answer: str = "4") -> Problem:
    """A one-line math problem."""
    task = Task(id=name, env=env, prompt=(Message(role="user", content="2+2="),))
    return Problem(task=task, reference={"answer": answer}, source=source)


def make_rollout(
    rollout_id: str,
    *,
    sample: int = 0,
    reward: float | None = 1.0,
    tokens: int = 3,
    version: int = 0,
    prompt: int = 4,
    logprob: float = -0.5,
    status: ScoreStatus | None = None,
) -> Rollout:
    """A single-turn rollout with made-up tokens."""
    if status is None:
        status = ScoreStatus.INFRA if reward is None else ScoreStatus.OK if reward > 0 else ScoreStatus.POLICY_FAIL
    completion = Completion(
        token_ids_T=np.arange(5, 5 + tokens, dtype=np.int32),
        logprobs_T=np.full(tokens, logprob, np.float32),
        versions_T=np.full(tokens, version, np.int32),
        stop_reason=StopReason.STOP_TOKEN,
    )
    context = np.arange(100, 100 + prompt, dtype=np.int32)
    return Rollout(
        rollout_id=rollout_id,
        sample_index=sample,
        seed=1,
        turns=(Turn(context_ids_P=context, completion=completion, text="4", started=1.0, ended=2.0),),
        messages=(Message(role="user", content="2+2="), Message(role="assistant", content="4")),
        score=Score(reward=reward, status=status, reason="made up"),
        stop_reason=StopReason.DONE,
        timings={"generate": 0.1},
    )


def make_group(
    index: int = 0, *, rewards: Sequence[float | None] = (1.0, -1.0), version: int = 0, split: str = "train", tokens: int = 3
) -> RolloutGroup:
    """A group with one rollout a reward."""
    group_id = f"{index:08d}"
    rollouts = tuple(
        make_rollout(f"{group_id}-{i}", sample=i, reward=reward, version=version, tokens=tokens) for i, reward in enumerate(rewards)
    )
    return RolloutGroup(
        group_id=group_id, index=index, problem=make_problem(f"t{index}"), split=split, dispatch_version=version, rollouts=rollouts
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FakeFinished:
    """A finished sample of the fake engine."""

    key: str
    index: int
    completion: Completion


class FakeEngine:
    """Every sample takes max_tokens steps; token t of a sample is t; the order of submits is recorded."""

    def __init__(self) -> None:
        self.version = 0
        self.submitted: list[str] = []
        self.weight = torch.zeros(4)
        self._running: dict[str, tuple[GenerateRequest, list[int]]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def submit(self, request: GenerateRequest) -> None:
        if len(request.prompt_ids_P) > 100:
            raise ValueError("prompt of more than 100 tokens")
        self.submitted.append(request.key)
        self._running[request.key] = (request, [])

    def cancel(self, key: str) -> None:
        self._running.pop(key, None)

    def step(self) -> Sequence[FakeFinished]:
        finished = []
        for key, (request, versions) in list(self._running.items()):
            versions.append(self.version)
            if len(versions) == request.sampling.max_tokens:
                del self._running[key]
                completion = Completion(
                    token_ids_T=np.arange(len(versions), dtype=np.int32),
                    logprobs_T=np.zeros(len(versions), np.float32),
                    versions_T=np.array(versions, np.int32),
                    stop_reason=StopReason.MAX_TOKENS,
                )
                finished += [FakeFinished(key=key, index=i, completion=completion) for i in range(len(request.seeds))]
        return finished

    def parameters(self) -> Mapping[str, torch.Tensor]:
        return {"weight": self.weight}


def make_request(key: str, *, episodes: Sequence[str] = (), tokens: int = 3, prompt: int = 4) -> GenerateRequest:
    """A request with one sample an episode."""
    episodes = tuple(episodes) or (f"{key}-0",)
    return GenerateRequest(
        key=key,
        episodes=episodes,
        prompt_ids_P=np.zeros(prompt, np.int32),
        seeds=tuple(range(len(episodes))),
        sampling=Sampling(max_tokens=tokens),
    )


class FakeLearner:
    """Counts steps; can be held inside train_step."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.fail: BaseException | None = None

    async def train_step(self, batches: Sequence[Sequence[Any]]) -> tuple[StepStats, ...]:
        self.events.append("train")
        await self.hold.wait()
        if self.fail is not None:
            raise self.fail
        stats = StepStats(
            loss=0.0, grad_norm=1.0, learning_rate=1e-3, entropy=1.0, kl=0.0, clip_fraction=0.0, n_tokens=1, seconds=0.0, samples=()
        )
        return (stats,)

    async def publish(self, version: int) -> Publication:
        self.events.append(f"publish {version}")
        return Publication(version=version, base=None, buckets=(), nbytes=0)

    async def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "rank0.bin").write_bytes(b"weights")
        self.events.append("save")


class FakeGenerators:
    """Accepts every version."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    async def load(self, publication: Publication) -> Loaded:
        self.versions.append(publication.version)
        return Loaded(checksum=f"sum{publication.version}", broadcasts_failed=0)


class FakeRollouts:
    """Answers jobs with groups whose rewards `rewards(job)` gives; jobs wait while `hold` is cleared."""

    def __init__(self, rewards: Any = None) -> None:
        self.jobs: list[GroupJob] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self._rewards = rewards or (lambda job: (1.0, -1.0))

    async def expect(self, jobs: Sequence[GroupJob]) -> None:
        return None

    async def run(self, job: GroupJob) -> GroupOutcome:
        self.jobs.append(job)
        await self.hold.wait()
        # Later jobs land first.
        await asyncio.sleep(0.001 * (10 - job.index % 10))
        rewards = self._rewards(job)
        if rewards is None:
            return GroupOutcome(job=job, group=None, dropped="prompt_too_long")
        group = make_group(job.index, rewards=rewards, version=job.dispatch_version, split=job.split)
        return GroupOutcome(job=job, group=group)

    async def flush(self) -> None:
        return None


class FakePart:
    """A process elsewhere: answers by `answers[method]`, can be killed, frozen, or hard to reach."""

    def __init__(self, name: str, answers: Mapping[str, Callable[..., Any]]) -> None:
        self.name = name
        self.calls: list[tuple[Any, ...]] = []
        self.dead = asyncio.Event()
        self.built = asyncio.Event()
        self.built.set()
        self._answers = answers

    async def call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        self.calls.append((method, *arguments))
        answer = asyncio.ensure_future(self._answer(method, *arguments))
        dead = asyncio.ensure_future(self.dead.wait())
        try:
            await asyncio.wait({answer, dead}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise PartGone(f"{self.name} {'is gone' if dead.done() else f'did not answer {method}'}")
        finally:
            answer.cancel()
            dead.cancel()

    def kill(self) -> None:
        self.dead.set()

    async def _answer(self, method: str, *arguments: Any) -> Any:
        if method == "ready":
            await self.built.wait()
        if method == "stay":
            await asyncio.Event().wait()
        answer = self._answers.get(method, lambda *_: True)(*arguments)
        return await answer if asyncio.iscoroutine(answer) else answer


class FakeHealth:
    """Everyone is well, except who is said to be silent."""

    def __init__(self) -> None:
        self.silent: dict[str, float] = {}
        self.heard = True

    def silent_for(self, part: str) -> float:
        return self.silent.get(part, 0.0)

    def told(self, part: str) -> str:
        return f"status of {part}" if self.heard else ""

    def waits_for(self, part: str) -> str:
        return f"{part} waits for a place"
