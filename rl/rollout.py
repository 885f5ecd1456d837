"""The rollout worker: a problem goes in, a group of scored rollouts comes out.

It consumes `GroupJob`s from the loop, waits for the generator, the environment and the grader, and unblocks the buffer.
All samples of a group share their first prompt, so the generator prefills it once. A rollout that fails by
infrastructure is repeated, then recorded with no reward; errors never leave this boundary as exceptions.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol, TypeVar

import numpy as np

from configs.schema import Config
from environments.protocol import Budgeted, Environment, Sandboxed
from environments.records import Budget, Episode, Json, Message, Problem, SandboxInfo, StopReason
from environments.registry import environment_version, make_environment
from rewards.score import Score, ScoreStatus
from rl.graders import Graders
from rl.prompt import PrefixBroken, Renderer
from rl.records import Completion, GenerateRequest, Rollout, RolloutGroup, Sampling, Span, Turn, unbroken
from rl.seeds import derive_seed

T = TypeVar("T")


class GeneratorClient(Protocol):
    """How a worker reaches the generator that serves a group."""

    async def generate(self, request: GenerateRequest) -> tuple[Completion, ...]: ...
    async def release(self, episodes: Sequence[str]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupJob:
    """One group to collect."""

    group_id: str
    index: int
    problem: Problem
    split: str
    """`train` or `heldout`."""
    n_samples: int
    dispatch_version: int
    sampling: Sampling
    seed: int
    """Run seed for this group's randomness."""

    @property
    def episodes(self) -> tuple[str, ...]:
        """Rollout ids of the samples."""
        return tuple(f"{self.group_id}-{sample}" for sample in range(self.n_samples))


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupOutcome:
    """What became of a job."""

    job: GroupJob
    group: RolloutGroup | None
    """None when the job was dropped before it started."""
    dropped: str = ""
    """Why there is no group, for example `prompt_too_long`."""


@dataclass(kw_only=True, slots=True)
class _Trajectory:
    """A rollout in the making."""

    sample: int
    rollout_id: str
    job: GroupJob
    record_span: Callable[[Span], None]
    environment: Environment
    messages: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    pending_context_P: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """Rendered environment tokens that the policy has not answered yet."""
    restarts: bool = False
    """They are the whole conversation, because the chat template could not continue the tokens before."""
    stop_reason: StopReason | None = None
    outcome: Mapping[str, Json] = field(default_factory=dict)
    sandbox: SandboxInfo = field(default_factory=SandboxInfo)
    error: BaseException | None = None
    began: float = 0.0
    """Monotonic clock when its first turn was asked for."""
    doing: tuple[str, float] = field(default_factory=lambda: ("environment", time.time()))
    """The phase under way, and since when (Unix seconds)."""
    timings: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "environment": 0.0, "score": 0.0})

    def context(self) -> np.ndarray:
        """int32[P]: everything since the last restart, as the generator must see it."""
        run = () if self.restarts else unbroken(self.turns)[-1] if self.turns else ()
        parts = [array for turn in run for array in (turn.context_ids_P, turn.completion.token_ids_T)]
        return np.concatenate([*parts, self.pending_context_P]).astype(np.int32)

    async def close(self) -> None:
        """Close the environment, having asked it where its programs ran."""
        try:
            if isinstance(self.environment, Sandboxed):
                self.sandbox = self.environment.sandbox_info()
        finally:
            await self.environment.close()

    async def within(self, phase: str, what: str, call: Awaitable[T], *, seconds: float) -> T:
        """The answer of an environment or a grader, which has so long for it. Raises NoAnswer."""
        self.doing = (phase, time.time())
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await call
        except TimeoutError:
            if not deadline.expired():
                raise
            raise NoAnswer(f"{what} did not answer within rollout.timeout={seconds:.0f} s, after turn {len(self.turns)}") from None

    def spent(self, phase: str, *, since: float) -> None:
        """Time went by in a phase, from `since` (monotonic clock) until now."""
        seconds, now = time.monotonic() - since, time.time()
        self.timings[phase] += seconds
        self.record_span(
            Span(
                name=phase,
                started=now - seconds,
                ended=now,
                version=self.job.dispatch_version,
                group_id=self.job.group_id,
                rollout_id=self.rollout_id,
                turn=len(self.turns) - 1 if self.turns else None,
            )
        )

    def fail(self, error: BaseException) -> None:
        """End the episode by an infrastructure failure."""
        self.error = error
        self.stop_reason = StopReason.ERROR


class NoAnswer(RuntimeError):
    """An environment or a grader hangs; the message says which."""


class RolloutWorker:
    """Collects groups, many at a time. One instance a process."""

    def __init__(
        self,
        config: Config,
        *,
        renderer: Renderer,
        generators: Sequence[GeneratorClient],
        write_group: Callable[[RolloutGroup], None],
        record_span: Callable[[Span], None] = lambda span: None,
    ) -> None:
        self._config = config
        self._record_span = record_span
        self._renderer = renderer
        self._generators = generators
        self._write_group = write_group
        self._graders = Graders(config.tasks)
        self._env_version = cache(environment_version)
        self._live: dict[str, _Trajectory] = {}
        self._idle_since = time.time()

    async def run_group(self, job: GroupJob) -> GroupOutcome:
        """Collect all samples of a job, write them to the log and return them."""
        client = self._generators[job.index % len(self._generators)]
        try:
            prompt = self._renderer.render_prompt(job.problem.task.prompt)
            if len(prompt) > self._config.model.max_prompt_tokens:
                return GroupOutcome(job=job, group=None, dropped="prompt_too_long")
            rollouts: dict[int, Rollout] = {}
            todo = list(range(job.n_samples))
            for attempt in range(self._config.rollout.retries + 1):
                for rollout in await self._attempt(job, todo, client=client, attempt=attempt):
                    rollouts[rollout.sample_index] = rollout
                todo = [i for i in todo if rollouts[i].score.status is ScoreStatus.INFRA]
                if not todo:
                    break
                await self._release(client, [episode for i, episode in enumerate(job.episodes) if i not in todo])
        finally:
            await self._release(client, job.episodes)
        group = RolloutGroup(
            group_id=job.group_id,
            index=job.index,
            problem=job.problem,
            split=job.split,
            dispatch_version=job.dispatch_version,
            rollouts=tuple(rollouts[i] for i in range(job.n_samples)),
            sampling=job.sampling,
            env_version=self._env_version(job.problem.task.env),
            scorer=self._graders.spec(job.problem),
            scorer_hash=self._graders.hash(job.problem),
        )
        self._write_group(group)
        return GroupOutcome(job=job, group=_without_logs(group))

    def describe(self) -> tuple[str, float]:
        """What the episodes do or wait for, and since when the slowest of them does (Unix seconds)."""
        live = {name: one.doing for name, one in list(self._live.items())}
        if not live:
            return "waits for a group", self._idle_since
        counts = Counter(phase for phase, _ in live.values())
        name, (phase, since) = min(live.items(), key=lambda item: item[1][1])
        told = ", ".join(f"{count} in {what}" for what, count in counts.most_common())
        return f"{len(live)} episodes: {told}; longest: {name} in {phase}", since

    async def close(self) -> None:
        """Close the graders."""
        await self._graders.close()

    async def _release(self, client: GeneratorClient, episodes: Sequence[str]) -> None:
        """In lockstep the next requests of all others wait for these episodes, which will not ask again."""
        if episodes and self._config.rollout.max_staleness == 0:
            await client.release(episodes)

    async def _attempt(self, job: GroupJob, samples: Sequence[int], *, client: GeneratorClient, attempt: int) -> list[Rollout]:
        trajectories = [
            _Trajectory(
                sample=i,
                rollout_id=job.episodes[i],
                job=job,
                record_span=self._record_span,
                environment=make_environment(job.problem.task),
            )
            for i in samples
        ]
        self._live.update((t.rollout_id, t) for t in trajectories)
        try:
            await asyncio.gather(*(self._reset(trajectory) for trajectory in trajectories))
            await self._release(client, [t.rollout_id for t in trajectories if t.stop_reason is not None])
            await self._first_turn(job, trajectories, client=client, attempt=attempt)
            return list(await asyncio.gather(*(self._continue(job, t, client=client, attempt=attempt) for t in trajectories)))
        finally:
            for trajectory in trajectories:
                self._live.pop(trajectory.rollout_id, None)
            self._idle_since = time.time()

    async def _reset(self, trajectory: _Trajectory) -> None:
        started = time.monotonic()
        try:
            trajectory.messages = list(await self._environment(trajectory, "reset", trajectory.environment.reset()))
            trajectory.pending_context_P = self._renderer.render_prompt(trajectory.messages)
        except Exception as error:
            trajectory.fail(error)
        trajectory.spent("environment", since=started)

    async def _first_turn(self, job: GroupJob, trajectories: Sequence[_Trajectory], *, client: GeneratorClient, attempt: int) -> None:
        """One request for each distinct opening prompt, so that samples share its prefill."""
        by_prompt: dict[bytes, list[_Trajectory]] = {}
        for trajectory in trajectories:
            if trajectory.stop_reason is None:
                by_prompt.setdefault(trajectory.pending_context_P.tobytes(), []).append(trajectory)
        await asyncio.gather(*(self._generate(job, same, client=client, attempt=attempt) for same in by_prompt.values()))

    async def _generate(self, job: GroupJob, trajectories: Sequence[_Trajectory], *, client: GeneratorClient, attempt: int) -> None:
        """Sample the next turn of trajectories that have the same context."""
        turn = len(trajectories[0].turns)
        request = GenerateRequest(
            key=f"{job.group_id}.{turn:04d}.{trajectories[0].sample:04d}.{attempt}",
            episodes=tuple(t.rollout_id for t in trajectories),
            prompt_ids_P=trajectories[0].context(),
            seeds=tuple(derive_seed(job.seed, job.problem.task.id, job.group_id, t.sample, turn) for t in trajectories),
            sampling=job.sampling,
            task_id=job.problem.task.id,
            turn=turn,
        )
        started, began = time.time(), time.monotonic()
        for trajectory in trajectories:
            trajectory.doing = ("generate", started)
        if turn == 0:
            for trajectory in trajectories:
                trajectory.began = began
        try:
            completions = await client.generate(request)
        except Exception as error:
            for trajectory in trajectories:
                trajectory.fail(error)
            return
        ended = time.time()
        for trajectory, completion in zip(trajectories, completions, strict=True):
            text = self._renderer.decode(completion.token_ids_T)
            context, trajectory.pending_context_P = trajectory.pending_context_P, np.zeros(0, np.int32)
            restarts, trajectory.restarts = trajectory.restarts, False
            trajectory.turns.append(
                Turn(context_ids_P=context, completion=completion, text=text, restarts=restarts, started=started, ended=ended)
            )
            trajectory.spent("generate", since=began)

    async def _continue(self, job: GroupJob, trajectory: _Trajectory, *, client: GeneratorClient, attempt: int) -> Rollout:
        """Play the episode from its first sampled turn to the end, then grade it."""
        try:
            while trajectory.stop_reason is None:
                await self._environment_step(trajectory)
                if trajectory.stop_reason is None:
                    await self._generate(job, [trajectory], client=client, attempt=attempt)
            if self._config.rollout.max_turns > 1:
                await self._release(client, [trajectory.rollout_id])
        finally:
            await self._timed(trajectory, "environment", lambda: self._environment(trajectory, "close", trajectory.close()))
        return Rollout(
            rollout_id=trajectory.rollout_id,
            sample_index=trajectory.sample,
            seed=derive_seed(job.seed, job.problem.task.id, job.group_id, trajectory.sample, 0),
            turns=tuple(trajectory.turns),
            messages=tuple(trajectory.messages),
            score=await self._score(job, trajectory),
            stop_reason=trajectory.stop_reason or StopReason.ERROR,
            outcome=trajectory.outcome,
            error_type=type(trajectory.error).__name__ if trajectory.error else "",
            timings=dict(trajectory.timings),
            sandbox=trajectory.sandbox,
        )

    async def _environment_step(self, trajectory: _Trajectory) -> None:
        """Show the last turn to the environment and render its answer. What was sampled is always played, a turn that was cut off by
        a limit too; the limits are looked at after it."""
        limits = self._config.rollout
        action = Message(role="assistant", content=trajectory.turns[-1].text)
        before = tuple(trajectory.messages)
        trajectory.messages.append(action)
        cut = trajectory.turns[-1].completion.stop_reason
        started = time.monotonic()
        try:
            if isinstance(trajectory.environment, Budgeted):
                trajectory.environment.note_budget(self._budget(trajectory))
            result = await self._environment(trajectory, "step", trajectory.environment.step(action))
            if result.done:
                json.dumps(dict(result.outcome))  # it goes to the log: what cannot is this environment's failure
                trajectory.outcome = result.outcome
                # How the completion ended says more than "done" when the model ran out of tokens.
                trajectory.stop_reason = cut if cut is not StopReason.STOP_TOKEN else (result.stop_reason or StopReason.DONE)
            elif cut in (StopReason.CONTEXT_FULL, StopReason.SCRIPT_END):
                trajectory.stop_reason = cut
            elif len(trajectory.turns) >= limits.max_turns:
                trajectory.stop_reason = StopReason.MAX_TURNS
            elif time.monotonic() - trajectory.began >= limits.max_seconds:
                trajectory.stop_reason = StopReason.MAX_SECONDS
            else:
                trajectory.messages.extend(result.messages)
                self._render_answer(trajectory, result.messages, after=(*before, action), closed=cut is StopReason.STOP_TOKEN)
                if len(trajectory.context()) >= self._config.model.context_length:
                    trajectory.stop_reason = StopReason.CONTEXT_FULL
        except Exception as error:
            trajectory.fail(error)
        trajectory.spent("environment", since=started)

    async def _environment(self, trajectory: _Trajectory, method: str, call: Awaitable[T]) -> T:
        """One call of an environment, with its deadline."""
        what = f"{method} of the environment {trajectory.job.problem.task.env}"
        return await trajectory.within("environment", what, call, seconds=self._config.rollout.timeout)

    def _budget(self, trajectory: _Trajectory) -> Budget:
        """What is left after the turn that is being answered."""
        limits = self._config.rollout
        return Budget(
            turns=limits.max_turns - len(trajectory.turns),
            tokens=self._config.model.context_length - len(trajectory.context()),
            seconds=max(0.0, limits.max_seconds - (time.monotonic() - trajectory.began)),
            seconds_in_all=limits.max_seconds,
        )

    def _render_answer(self, trajectory: _Trajectory, messages: Sequence[Message], *, after: Sequence[Message], closed: bool) -> None:
        """What the policy is shown next: the tokens that follow, or the whole conversation where the template rewrites earlier turns."""
        try:
            trajectory.pending_context_P = self._renderer.render_continuation(messages, after=after, closed=closed)
        except PrefixBroken:
            trajectory.pending_context_P = self._renderer.render_prompt((*after, *messages))
            trajectory.restarts = True

    async def _score(self, job: GroupJob, trajectory: _Trajectory) -> Score:
        if trajectory.error is not None:
            return Score(reward=None, status=ScoreStatus.INFRA, reason=f"{type(trajectory.error).__name__}: {trajectory.error}"[:500])
        episode = Episode(
            messages=tuple(trajectory.messages),
            stop_reason=trajectory.stop_reason or StopReason.DONE,
            n_sampled_tokens=sum(len(turn.completion.token_ids_T) for turn in trajectory.turns),
            outcome=trajectory.outcome,
            policy_version=job.dispatch_version,
        )
        started = time.monotonic()
        try:
            grading = self._graders.of(job.problem).grade(job.problem, episode)
            what = f"the grader of {job.problem.task.env}"
            score = await trajectory.within("score", what, grading, seconds=self._config.rollout.timeout)
        except Exception as error:
            trajectory.error = error
            score = Score(reward=None, status=ScoreStatus.INFRA, reason=f"{type(error).__name__}: {error}"[:500])
        trajectory.spent("score", since=started)
        return score

    async def _timed(self, trajectory: _Trajectory, phase: str, action: Callable[[], Awaitable[None]]) -> None:
        """Run a clean-up; its failure is recorded on the trajectory only if nothing failed before."""
        started = time.monotonic()
        try:
            await action()
        except Exception as error:
            if trajectory.error is None:
                trajectory.fail(error)
        trajectory.spent(phase, since=started)


def _without_logs(group: RolloutGroup) -> RolloutGroup:
    """For the way to the learner: what the graders logged is on its way to the disk and takes no part in training."""
    if not any(rollout.score.log for rollout in group.rollouts):
        return group
    return replace(group, rollouts=tuple(replace(r, score=replace(r.score, log="")) for r in group.rollouts))
