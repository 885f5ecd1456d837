"""The ring: the only place where it closes.

 TaskSource ─► GroupJob ─► rollout workers ─► RolloutGroup ─► Buffer ─► Batch ─► Learner ─► WeightBuckets ─► Generators
                  ▲         (generator, environment, grader,   (two doors,                                       │
                  │          log)                               bounded staleness)                               │
                  └──────────────────────────── version v+1, at a token boundary ◄──────────────────────────────┘

One iteration of `run`:
  collect   waits for a batch of accepted groups; consumes finished groups; unblocks admission
  train     waits for the learner; rollouts of later batches go on meanwhile when max_staleness > 0
  publish   waits for the generators to swap weights; unblocks admission, because the version has moved
  save      checkpoint and evaluation when they are due

With max_staleness 0 a whole wave of groups starts together and is put into the buffer in index order once all have
landed, so nothing depends on which worker was faster. Every wait has a deadline and says what it waits for.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from configs.schema import Config
from environments.sources.mixture import Mixture
from rl.advantage import advantages
from rl.batch import make_batches
from rl.buffer import Buffer, Rejection
from rl.checkpoint import Checkpoints, LoopState, UnfinishedJob
from rl.clock import Clock
from rl.errors import PartDied, RunFailed
from rl.evaluate import EvalReport, evaluate_heldout
from rl.filters import DropReason, ungraded
from rl.in_flight import InFlight
from rl.records import Batch, Loaded, Publication, Rollout, RolloutGroup, Sampling, Span, StepStats, TrainSample
from rl.rollout import GroupJob, GroupOutcome
from rl.samples import samples_of
from rl.status.record import OwnPart
from rl.unrewarded import Unrewarded

_HEARTBEAT = 10.0


class LearnerHandle(Protocol):
    """All learner ranks as one."""

    async def train_step(self, batches: Sequence[Sequence[Batch]]) -> tuple[StepStats, ...]: ...
    async def publish(self, version: int) -> Publication: ...
    async def save(self, folder: Path) -> None: ...


class GeneratorsHandle(Protocol):
    """All generator replicas as one."""

    async def load(self, publication: Publication) -> Loaded: ...


class RolloutsHandle(Protocol):
    """All rollout workers as one."""

    async def expect(self, jobs: Sequence[GroupJob]) -> None: ...
    async def run(self, job: GroupJob) -> GroupOutcome: ...
    async def flush(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepResult:
    """Everything that happened in one step, for the observer."""

    step: int
    """1-based; equals the policy version after the step."""
    groups: tuple[RolloutGroup, ...]
    samples: tuple[TrainSample, ...]
    """Trained samples; groups without any are the skipped ones."""
    dropped: Counter[str]
    """Counts by reason since the last step: rejected groups, jobs that never started, samples left out."""
    stats: tuple[StepStats, ...]
    """One a learner rank; empty when there was nothing to train on."""
    phases: dict[str, float]
    """Seconds by phase."""
    checksum: str
    """Of the published weights."""
    sync_bytes: int
    """What publishing them took: all of them, or what has changed."""
    broadcasts_failed: int
    """Broadcasts of them that did not come to their end."""


class Observer(Protocol):
    """Who wants to know: the log, the progress display, the trackers."""

    def step(self, result: StepResult) -> None: ...
    def rejected(self, rejections: Sequence[Rejection], *, step: int) -> None: ...
    def evaluated(self, report: EvalReport) -> None: ...
    def span(self, span: Span) -> None: ...
    def waiting(self, reason: str) -> None: ...
    def say(self, message: str) -> None: ...


class Loop:
    """One run. `run()` returns when all steps are done or `stop()` was called; state is then resumable."""

    def __init__(
        self,
        config: Config,
        *,
        mixture: Mixture,
        sampling: Sampling,
        learner: LearnerHandle,
        generators: GeneratorsHandle,
        rollouts: RolloutsHandle,
        buffer: Buffer,
        checkpoints: Checkpoints,
        observer: Observer,
        unfit: Callable[[Rollout], DropReason | None],
        config_fingerprint: str,
    ) -> None:
        """`unfit` says why a single rollout must not be trained on; None when it may."""
        self._config = config
        self._mixture = mixture
        self._sampling = sampling
        self._learner = learner
        self._generators = generators
        self._rollouts = rollouts
        self._buffer = buffer
        self._checkpoints = checkpoints
        self._observer = observer
        self._unfit = unfit
        self._fingerprint = config_fingerprint
        self._lockstep = config.rollout.max_staleness == 0
        self._in_flight = InFlight(buffer, lockstep=self._lockstep)
        self._restart: list[UnfinishedJob] = []
        self._rejected = 0
        self._dropped: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._admission = asyncio.Lock()
        self._failure: BaseException | None = None
        self._stopping = False
        self._barren_steps = 0
        self._barren_groups = 0
        self._unrewarded = Unrewarded()
        self._saved_version = -1
        self._moved, self._last_put = time.time(), ""
        """When a group landed last, and which."""
        self._clock = Clock(record=observer.span)

    def restore(self, state: LoopState) -> None:
        """Continue from a checkpoint; the learner restores its own part."""
        if state.config_fingerprint != self._fingerprint:
            raise ValueError(
                "the run was started with other settings of model, sampling, rollout, filters or objective; resume with the same ones, or "
                "start a new run name"
            )
        self._mixture.restore(state.mixture)
        self._buffer.restore(state.buffer)
        self._restart = list(state.unfinished)
        self._barren_steps = state.barren_steps
        self._saved_version = state.version

    def stop(self) -> None:
        """Finish the step under way, save a checkpoint and return from `run`."""
        self._stopping = True
        self._changed.set()

    async def run(self) -> None:
        """Go round the ring until `run.steps` steps are done. Raises RunFailed when a part fails."""
        async with self._tasks_ended():
            await self._publish()
            if self._buffer.version == 0:
                with self._clock.phase("evaluate", step=1):
                    await self._evaluate()
            while self._buffer.version < self._config.run.steps and not self._stopping:
                groups = await self._collect()
                if not groups:
                    break
                await self._step(groups)
            if self._saved_version != self._buffer.version or self._stopping:
                with self._clock.phase("checkpoint", step=self._buffer.version):
                    await self._save()
            if self._buffer.version >= self._config.run.steps and not self._due(self._config.evaluation.every):
                with self._clock.phase("evaluate", step=self._buffer.version):
                    await self._evaluate()
            if self._dropped:
                self._observer.say(f"dropped after the last step: {dict(self._dropped)}")

    async def _step(self, groups: tuple[RolloutGroup, ...]) -> None:
        step = self._buffer.version + 1
        with self._clock.phase("train", step=step):
            samples, stats = await self._train(groups)
        self._buffer.version += 1
        with self._clock.phase("sync", step=step):
            loaded, sync_bytes = await self._publish()
        self._count_barren(samples)
        self._rejected = 0
        dropped, self._dropped = self._dropped, Counter()
        self._observer.step(
            StepResult(
                step=self._buffer.version,
                groups=groups,
                samples=samples,
                dropped=dropped,
                stats=stats,
                phases=self._clock.take(),
                checksum=loaded.checksum,
                sync_bytes=sync_bytes,
                broadcasts_failed=loaded.broadcasts_failed,
            )
        )
        if self._buffer.version % self._config.checkpoint.every == 0:
            with self._clock.phase("checkpoint", step=step):
                await self._save()
        if self._due(self._config.evaluation.every):
            with self._clock.phase("evaluate", step=step):
                await self._evaluate()

    async def _collect(self) -> tuple[RolloutGroup, ...]:
        """The next batch; empty when the run is being stopped."""
        deadline = time.monotonic() + self._config.rollout.timeout
        landed_before = -1
        with self._clock.phase("rollout", step=self._buffer.version + 1):
            while not self._stopping:
                self._raise_failure()
                self._changed.clear()
                groups, stale = self._buffer.take()
                self._reject(stale)
                if groups:
                    await self._admit()  # the version has moved: rollouts go on while this batch is trained
                    return groups
                await self._admit()
                landed = len(self._buffer) + self._in_flight.landed + self._rejected
                if landed != landed_before:
                    landed_before, deadline = landed, time.monotonic() + self._config.rollout.timeout
                if not await self._something_changed(_HEARTBEAT):
                    self._observer.waiting(self._diagnosis())
                if time.monotonic() > deadline:
                    raise PartDied(f"no rollout finished within rollout.timeout={self._config.rollout.timeout:.0f} s: {self._diagnosis()}")
        return ()

    async def _something_changed(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _diagnosis(self) -> str:
        running = self._in_flight.running
        return (
            f"step {self._buffer.version + 1} waits for rollouts: {len(self._buffer)} of {self._config.rollout.prompts_per_step} groups "
            f"are accepted, {len(running)} running ({', '.join(sorted(running)[:3])}), {self._rejected} rejected since the last step"
        )

    async def _admit(self) -> None:
        """Start as many groups as the staleness bound allows."""
        async with self._admission:
            jobs = [self._next_job() for _ in range(self._in_flight.room if not self._stopping else 0)]
            if not jobs:
                return
            for job in jobs:
                self._in_flight.start(job)
            await self._rollouts.expect(jobs if self._lockstep else ())
            for job in jobs:
                task = asyncio.create_task(self._run_job(job))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _next_job(self) -> GroupJob:
        if self._restart:
            unfinished = self._restart.pop(0)
            index, problem = unfinished.index, unfinished.problem
        else:
            index, problem = self._mixture.next()
        return GroupJob(
            group_id=f"{index:08d}",
            index=index,
            problem=problem,
            split="train",
            n_samples=self._config.rollout.samples_per_prompt,
            dispatch_version=self._buffer.version,
            sampling=self._sampling,
            seed=self._config.run.seed,
        )

    async def _run_job(self, job: GroupJob) -> None:
        try:
            outcome = await self._rollouts.run(job)
            self._moved, self._last_put = time.time(), f"group {job.group_id} has landed"
            self._settle(self._in_flight.land(outcome))
            if not self._lockstep:
                await self._admit()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._changed.set()

    def _settle(self, landed: Sequence[GroupOutcome]) -> None:
        """Offer landed groups to the buffer."""
        for outcome in landed:
            if outcome.group is None:
                self._dropped[outcome.dropped] += 1
                self._note_barren_group()
                continue
            rejection = self._buffer.put(outcome.group)
            self._reject([rejection] if rejection else [])

    def _reject(self, rejections: Sequence[Rejection]) -> None:
        if rejections:
            self._observer.rejected(rejections, step=self._buffer.version + 1)
        for rejection in rejections:
            self._rejected += 1
            self._unrewarded.add(rejection.group)
            self._dropped[rejection.reason] += 1
            self._dropped.update(reason.value for rollout in rejection.group.rollouts if (reason := ungraded(rollout)) is not None)
            self._note_barren_group()

    def _note_barren_group(self) -> None:
        """Resampling must not go on for ever when nothing can be accepted."""
        self._barren_groups += 1
        limit = 2 * self._config.filters.zero_variance_patience * self._config.rollout.prompts_per_step
        if self._barren_groups == limit // 2:
            why = self._unrewarded.told()
            self._observer.say(f"the last {self._barren_groups} groups were all rejected: {why or dict(self._dropped)}")
        if self._barren_groups >= limit:
            why = self._unrewarded.told() or (
                f"{dict(self._dropped)}: the tasks are too easy or too hard for this policy, or the prompts too long; change tasks, "
                "filters or model.max_prompt_tokens"
            )
            self._failure = self._failure or RunFailed(f"the last {self._barren_groups} groups were all rejected: {why}")

    async def _train(self, groups: tuple[RolloutGroup, ...]) -> tuple[tuple[TrainSample, ...], tuple[StepStats, ...]]:
        config = self._config
        per_group = advantages(config.objective, groups, max_tokens=config.sampling.max_tokens, unfit=self._unfit)
        self._dropped.update(reason.value for result in per_group for reason in result.reasons if reason is not None)
        samples = samples_of(groups, per_group)
        if not samples:
            return (), ()
        n_rollouts = sum(len(group.rollouts) for group in groups)
        batches = make_batches(samples, config=config, n_rollouts=n_rollouts)
        return samples, await self._learner.train_step(batches)

    async def _publish(self) -> tuple[Loaded, int]:
        publication = await self._learner.publish(self._buffer.version)
        return await self._generators.load(publication), publication.nbytes

    def _count_barren(self, samples: Sequence[TrainSample]) -> None:
        if samples:
            self._barren_steps = self._barren_groups = 0
            self._unrewarded.clear()
            return
        self._barren_steps += 1
        patience = self._config.filters.zero_variance_patience
        if self._barren_steps == patience:
            self._observer.say(
                f"nothing to learn from for {patience} steps: every group had equal rewards. The tasks are too easy or too hard "
                "for this policy"
            )
        if self._barren_steps >= 2 * patience:
            raise RunFailed(
                f"every group of the last {self._barren_steps} steps had equal rewards (filters.zero_variance_patience={patience}): "
                "change the tasks, raise rollout.samples_per_prompt or sampling.temperature"
            )

    async def _save(self) -> None:
        await self._rollouts.flush()
        unfinished = [UnfinishedJob(index=job.index, problem=job.problem) for job in self._in_flight.unfinished()]
        state = LoopState(
            version=self._buffer.version,
            mixture=self._mixture.state(),
            buffer=self._buffer.state(),
            unfinished=tuple(unfinished) + tuple(self._restart),
            barren_steps=self._barren_steps,
            config_fingerprint=self._fingerprint,
        )
        await self._checkpoints.write(state, save_learner=self._learner.save)
        self._saved_version = self._buffer.version

    def _due(self, every: int) -> bool:
        return every > 0 and self._buffer.version > 0 and self._buffer.version % every == 0

    async def _evaluate(self) -> None:
        if not self._config.evaluation.enabled:
            return
        report = await evaluate_heldout(
            self._config,
            problems=self._mixture.heldout(),
            rollouts=self._rollouts,
            sampling=self._sampling,
            step=self._buffer.version,
            seed=self._config.run.seed,
        )
        if report.by_env:
            self._observer.evaluated(report)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def parts(self) -> tuple[OwnPart, ...]:
        """What the loop and its buffer are at, for the run's status."""
        clock, wanted = self._clock, self._config.rollout.prompts_per_step
        waits = f" ({self._diagnosis()})" if "rollout" in clock.doing else ""
        run, room = len(self._in_flight.running), self._in_flight.room
        held = f"holds {len(self._buffer)} groups of {wanted} a step, {run} run, room for {room} more"
        return (
            OwnPart(part="loop", doing=clock.doing + waits, since=clock.since, event=clock.event, event_at=clock.event_at),
            OwnPart(part="buffer", doing=held, since=self._moved, event=self._last_put, event_at=self._moved),
        )

    @contextlib.asynccontextmanager
    async def _tasks_ended(self) -> AsyncIterator[None]:
        """End every task on the way out."""
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
