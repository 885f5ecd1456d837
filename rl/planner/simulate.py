"""A run in miniature: the ring's own order of events and its own admission, with seconds in place of work.

The groups are real records that go through the real `InFlight`, `Buffer`, doors, `Room`, advantages and `make_batches`; `Ring` goes round
in the order of `rl/loop.py` (collect, train, publish). What is simulated is how long things take: replicas decode by `Costs`, environments
sleep, and all who compute share the machine's cores. The event loop's clock jumps from one event to the next, so a day takes seconds.

Large batches are counted in units of several tokens where only their proportions matter (batches, staleness), never in the replicas.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from configs.schema import Config
from environments.records import Problem, StopReason, Task
from rewards.score import Score, ScoreStatus
from rl.advantage import advantages
from rl.batch import make_batches
from rl.buffer import Buffer, Rejection
from rl.filters import get_door, put_door, unfit_rollout
from rl.in_flight import InFlight
from rl.planner.cores import Cores, Thread
from rl.planner.costs import Costs
from rl.planner.layout import sequence_ranks
from rl.planner.replica import Replica, Sampled
from rl.planner.shape import ModelShape
from rl.planner.virtual_time import run_virtually
from rl.planner.workload import EpisodeDraw, Workload
from rl.records import Batch, Completion, MicroBatch, Rollout, RolloutGroup, Sampling, TrainSample, Turn
from rl.rollout import GroupJob, GroupOutcome
from rl.room import Room
from rl.samples import samples_of

_BATCH_UNITS = 60_000
"""A larger batch is counted in units of tokens, so that it has about as many."""
_PROBLEM = Problem(task=Task(id="", env="", prompt=()), reference={}, source="")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One simulated training step."""

    seconds: float
    """Since the end of the step before."""
    phases: dict[str, float]
    """Seconds by phase, with the log's names: rollout (the wait for a batch), train, sync, log."""
    sampled_tokens: int
    """Of the step's groups."""
    optimizer_seconds: float
    """Of `train`."""
    staleness: Counter[int]
    """Trained tokens by versions between sampling and training (in units)."""
    groups: int
    rejected: Counter[str]
    """Groups by reason since the step before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """A simulated run."""

    steps: tuple[StepRecord, ...]
    busy: float
    """Share of the time in which a replica decodes or prefills, mean over replicas."""
    occupancy: float
    """Sequences that decode together while a replica is busy, mean."""
    peak_positions: float
    """Most cached positions of one replica, summed over sequences and layers."""
    peak_sequences: int
    """Most sequences of one replica at a time."""
    held_back: float
    """Share of the groups that had to wait for room before they could start."""
    batches: frozenset[tuple[int, int, int]]
    """Of each micro-batch of a rank: tokens with padding, longest row, response tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What is simulated."""

    config: Config
    shape: ModelShape
    costs: Costs
    workload: Workload
    live_episodes: int | None = None
    """Most episodes at a time; None: any number."""
    cores: float | None = None
    """That all processes share; None: each has its own processors."""
    beside: float = 1.0
    """How many times longer work takes on them while another process computes."""
    learner_threads: int = 1
    """Of all ranks, while they train."""
    generator_threads: int = 1
    """Of a replica, while it samples."""


def simulate(setup: Setup, *, steps: int) -> Simulated:
    """Simulate the first `steps` training steps."""
    return run_virtually(lambda: Ring(setup).run(steps))


class Ring:
    """See the module's docstring; `rl.loop.Loop` is what it follows."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        config = self._config = setup.config
        self._lockstep = config.rollout.max_staleness == 0
        self._keeps_prefixes = config.generator.engine == "vllm" and config.vllm.prefix_cache != "off"
        """Replicas do not compute the KV of an episode's earlier turns again; what a swap of weights resets is not modelled."""
        self._unit = _unit(setup)
        self._scaled = _scaled(config, self._unit)
        self._buffer = Buffer(
            batch_size=config.rollout.prompts_per_step,
            max_staleness=config.rollout.max_staleness,
            put_door=put_door(config, vocab_size=setup.shape.vocab),
            get_door=get_door(config),
        )
        self._unfit = unfit_rollout(config.filters, vocab_size=setup.shape.vocab)
        self._cores = Cores(setup.cores, beside=setup.beside)
        self._driver = Thread(self._cores)
        self._replicas = [Replica(setup, cores=self._cores, lockstep=self._lockstep) for _ in range(config.generator.replicas)]
        self._room = Room(episodes=setup.live_episodes, lockstep=self._lockstep, announce=self._announce)
        self._workers = [Thread(self._cores) for _ in range(config.rollout.workers)]
        self._changed = asyncio.Event()
        self._next_index = 0
        self._in_flight = InFlight(self._buffer, lockstep=self._lockstep)
        self._tasks: set[asyncio.Task[None]] = set()
        self._rejected: Counter[str] = Counter()
        self._barren = 0
        self._failure: BaseException | None = None
        self._batches: set[tuple[int, int, int]] = set()
        self._entered = self._held_back = 0

    async def run(self, steps: int) -> Simulated:
        """Go round the ring."""
        clock = asyncio.get_running_loop().time
        records = []
        await self._publish()
        ended = clock()
        for _ in range(steps):
            began = clock()
            groups = await self._collect()
            collected = clock()
            samples, optimizer = await self._train(groups)
            trained = clock()
            self._buffer.version += 1
            await self._publish()
            synced = clock()
            await self._driver.work(self._setup.costs.between)
            self._begin(self._cores.work(self._setup.costs.group.driver_log * len(groups)))
            rejected, self._rejected = self._rejected, Counter()
            records.append(
                StepRecord(
                    seconds=clock() - ended,
                    phases={"rollout": collected - began, "train": trained - collected, "sync": synced - trained, "log": clock() - synced},
                    sampled_tokens=self._unit * sum(rollout.n_sampled for group in groups for rollout in group.rollouts),
                    optimizer_seconds=optimizer,
                    staleness=_staleness(samples, self._buffer.version - 1),
                    groups=len(groups),
                    rejected=rejected,
                )
            )
            ended = clock()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        busy = sum(replica.busy_seconds for replica in self._replicas)
        return Simulated(
            steps=tuple(records),
            busy=busy / (ended * len(self._replicas)),
            occupancy=sum(replica.sequence_seconds for replica in self._replicas) / busy if busy else 0.0,
            peak_positions=max(replica.peak_positions for replica in self._replicas),
            peak_sequences=max(replica.peak_sequences for replica in self._replicas),
            held_back=self._held_back / self._entered,
            batches=frozenset(self._batches),
        )

    async def _announce(self, jobs: Sequence[GroupJob]) -> None:
        for job in jobs:
            self._replica(job).expect(job.episodes)

    def _replica(self, job: GroupJob) -> Replica:
        return self._replicas[job.index % len(self._replicas)]

    async def _collect(self) -> tuple[RolloutGroup, ...]:
        while True:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            groups, stale = self._buffer.take()
            self._reject(stale)
            if groups:
                await self._admit()
                return groups
            await self._admit()
            await self._changed.wait()

    async def _admit(self) -> None:
        jobs = [self._next_job() for _ in range(self._in_flight.room)]
        for job in jobs:
            self._in_flight.start(job)
        if jobs:
            await self._room.expect(jobs if self._lockstep else ())
        for job in jobs:
            self._begin(self._run_job(job))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next_job(self) -> GroupJob:
        index, self._next_index = self._next_index, self._next_index + 1
        return GroupJob(
            group_id=f"{index:08d}",
            index=index,
            problem=_PROBLEM,
            split="train",
            n_samples=self._config.rollout.samples_per_prompt,
            dispatch_version=self._buffer.version,
            sampling=Sampling(max_tokens=self._config.sampling.max_tokens),
            seed=0,
        )

    async def _run_job(self, job: GroupJob) -> None:
        try:
            asked = asyncio.get_running_loop().time()
            await self._room.enter(job)
            self._entered += 1
            self._held_back += asyncio.get_running_loop().time() > asked
            group = await self._group(job)
            await self._room.leave(job)
            self._settle(self._in_flight.land(GroupOutcome(job=job, group=group)))
            if not self._lockstep:
                await self._admit()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = error
        self._changed.set()

    def _settle(self, landed: Sequence[GroupOutcome]) -> None:
        for outcome in landed:
            assert outcome.group is not None
            rejection = self._buffer.put(outcome.group)
            self._reject([rejection] if rejection else [])

    def _reject(self, rejections: Sequence[Rejection]) -> None:
        self._rejected.update(rejection.reason for rejection in rejections)
        self._barren += len(rejections)
        limit = 2 * self._config.filters.zero_variance_patience * self._config.rollout.prompts_per_step
        if self._barren >= limit:
            raise ValueError(
                f"the plan comes to no step: {self._barren} groups in a row are rejected ({dict(self._rejected)}); change filters, "
                "rollout.samples_per_prompt, or what is assumed of the solve rate"
            )

    async def _group(self, job: GroupJob) -> RolloutGroup:
        """What the driver and a rollout worker do with a job, in time."""
        costs, worker = self._setup.costs.group, self._workers[job.index % len(self._workers)]
        await self._driver.work(costs.driver_start)
        await worker.work(costs.worker_start)
        draws = self._setup.workload.group(job.index, job.n_samples)
        replica = self._replica(job)
        prompt = draws[0].turns[0].shown
        opening = await replica.generate(job.episodes, prompt=prompt, fresh=prompt, sampled=[draw.turns[0].sampled for draw in draws])
        # The worker gets the completions of a group together, when the last is done.
        rollouts = await asyncio.gather(
            *(self._episode(job, sample, draw, first) for sample, (draw, first) in enumerate(zip(draws, opening, strict=True)))
        )
        if self._lockstep:
            replica.release(job.episodes)
        self._begin(self._cores.work(costs.worker_log))
        await self._driver.work(costs.driver_end)
        return RolloutGroup(
            group_id=job.group_id,
            index=job.index,
            problem=job.problem,
            split=job.split,
            dispatch_version=job.dispatch_version,
            rollouts=tuple(rollouts),
        )

    async def _episode(self, job: GroupJob, sample: int, draw: EpisodeDraw, first: Sampled) -> Rollout:
        replica, episode = self._replica(job), job.episodes[sample]
        turns = [_turn(draw.turns[0].shown, first, unit=self._unit)]
        length = draw.turns[0].shown + draw.turns[0].sampled
        await asyncio.sleep(draw.turns[0].seconds)
        for turn in draw.turns[1:]:
            length += turn.shown
            fresh = turn.shown if self._keeps_prefixes else length
            (sampled,) = await replica.generate((episode,), prompt=length, fresh=fresh, sampled=[turn.sampled])
            turns.append(_turn(turn.shown, sampled, unit=self._unit))
            length += turn.sampled
            await asyncio.sleep(turn.seconds)
        if self._lockstep and self._config.rollout.max_turns > 1:
            replica.release((episode,))
        await self._workers[job.index % len(self._workers)].work(self._setup.costs.group.worker_end / job.n_samples)
        status = ScoreStatus.INFRA if draw.reward is None else ScoreStatus.OK if draw.passed else ScoreStatus.POLICY_FAIL
        return Rollout(
            rollout_id=episode,
            sample_index=sample,
            seed=0,
            turns=tuple(turns),
            messages=(),
            score=Score(reward=draw.reward, status=status),
            stop_reason=StopReason.DONE,
        )

    async def _train(self, groups: tuple[RolloutGroup, ...]) -> tuple[tuple[TrainSample, ...], float]:
        """Samples, and the seconds of the optimizer steps."""
        config = self._scaled
        per_group = advantages(config.objective, groups, max_tokens=config.sampling.max_tokens, unfit=self._unfit)
        samples = samples_of(groups, per_group)
        if not samples:
            return (), 0.0
        self._barren = 0
        batches = make_batches(samples, config=config, n_rollouts=sum(len(group.rollouts) for group in groups))
        batches = batches[:: sequence_ranks(config)]  # those that share sequences have the same ones
        optimizer = len(batches[0]) * self._setup.costs.optimizer
        seconds = self._setup.costs.train_step + optimizer + self._micro_batch_seconds(batches)
        await self._cores.work(seconds, threads=self._setup.learner_threads)
        return samples, optimizer

    def _micro_batch_seconds(self, batches: Sequence[Sequence[Batch]]) -> float:
        """Ranks run their micro-batches in step: the slowest of each round counts."""
        total = 0.0
        for of_step in zip(*batches, strict=True):
            for of_round in zip(*(batch.micro_batches for batch in of_step), strict=True):
                seconds = 0.0
                for micro_batch in of_round:
                    rows, length = micro_batch.token_ids_BL.shape
                    tokens, responses = rows * length * self._unit, len(micro_batch.targets_N) * self._unit
                    self._batches.add((tokens, length * self._unit, responses))
                    pairs = self._pairs(micro_batch)
                    seconds = max(seconds, self._setup.costs.train.seconds(tokens=tokens, pairs=pairs, responses=responses))
                total += seconds
        return total

    def _pairs(self, micro_batch: MicroBatch) -> float:
        """Of query and key, over all layers: of whole rows, or of what each token sees of its own document."""
        rows, length = micro_batch.token_ids_BL.shape
        if self._setup.costs.covers_rows:
            return float(self._setup.shape.layers * rows * (length * self._unit) ** 2)
        seen_F = (micro_batch.positions_BL[micro_batch.segments_BL >= 0] + 1) * self._unit
        kinds = Counter(self._setup.shape.windows).items()
        return float(self._unit * sum(count * (seen_F if window is None else np.minimum(seen_F, window)).sum() for window, count in kinds))

    async def _publish(self) -> None:
        await self._cores.work(self._setup.costs.publish)
        await asyncio.gather(*(replica.swap(self._buffer.version) for replica in self._replicas))


def _unit(setup: Setup) -> int:
    """Tokens that are counted as one: as many as make the first groups' batch about `_BATCH_UNITS` long."""
    rollout = setup.config.rollout
    groups = [setup.workload.group(index, rollout.samples_per_prompt) for index in range(min(8, rollout.prompts_per_step))]
    tokens = sum(turn.shown + turn.sampled for group in groups for draw in group for turn in draw.turns)
    return max(1, round(tokens * rollout.prompts_per_step / len(groups) / _BATCH_UNITS))


def _scaled(config: Config, unit: int) -> Config:
    """The configuration with its token counts in units."""

    def units(tokens: int) -> int:
        return max(1, tokens // unit)

    objective = config.objective
    return replace(
        config,
        sampling=replace(config.sampling, max_tokens=units(config.sampling.max_tokens)),
        learner=replace(config.learner, micro_batch_tokens=units(config.learner.micro_batch_tokens)),
        objective=replace(objective, overlong_buffer=min(units(objective.overlong_buffer), units(config.sampling.max_tokens)))
        if objective.overlong_buffer
        else objective,
    )


def _turn(shown: int, sampled: Sampled, *, unit: int) -> Turn:
    """The record of a turn, its tokens counted in units."""
    count = max(1, round(sampled.tokens / unit))
    versions, tokens = np.array(sampled.segments, dtype=np.int64).T
    middle_T = (np.arange(count) + 0.5) * sampled.tokens / count
    versions_T = versions[np.searchsorted(np.cumsum(tokens), middle_T, side="right")].astype(np.int32)
    ids_T, logprobs_T = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.float32)
    completion = Completion(token_ids_T=ids_T, logprobs_T=logprobs_T, versions_T=versions_T, stop_reason=StopReason.STOP_TOKEN)
    context_ids_P = np.zeros(max(1, round(shown / unit)), dtype=np.int32)
    return Turn(context_ids_P=context_ids_P, completion=completion, text="", started=0.0, ended=0.0)


def _staleness(samples: Sequence[TrainSample], version: int) -> Counter[int]:
    counts: Counter[int] = Counter()
    for sample in samples:
        ages, numbers = np.unique(version - sample.versions_T[sample.agent_mask_T], return_counts=True)
        counts.update(dict(zip(ages.tolist(), numbers.tolist(), strict=True)))
    return counts
