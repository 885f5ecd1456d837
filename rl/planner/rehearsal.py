"""A rehearsal: the processes of a run, started as `rl train` starts them, do each piece of a step and are watched at it.

    learner      batches of several sizes, from finished groups to the statistics, timed from where the loop stands
    weight sync  versions handed over and taken in
    groups       a wave through driver, worker and generator; each process's own clock says what it spent before the first token and after
    log          what the driver writes of a step
    memory       of every process, once it has done all that

Clocks of processes count processor time, so they hold when others have the cores for a while. Tasks are stand-ins: what environments and
graders take is the workload's. Heavy imports happen inside; call it in a process of its own.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from configs.schema import Config, TaskConfig
from rl.plan import Plan
from rl.planner.costs import GroupCost
from rl.planner.shape import ModelShape
from rl.planner.stand_in import group_of, job_of, prompt_text
from rl.planner.timing import Timing

if TYPE_CHECKING:
    from rl.placement import Cluster
    from rl.records import Batch, RolloutGroup, StepStats, TrainSample
    from rl.status.watch import Watch

_REPEATS = 3
_PATIENCE = 4.0
"""Seconds of one shape of batch, after which it is not repeated."""
_BATCH = 4
"""Micro-batches a rank of the largest batch that is timed."""
_LEAST_GROUPS, _MOST_GROUPS = 8, 32
"""Of a wave."""
_SAMPLED = 16
"""Most tokens that are sampled in a wave."""
_LONG = 256
"""Most tokens of a sample that is there to keep a replica busy."""
_LOOK = 0.03
"""Seconds between two looks at the clocks."""
_STILL = 0.002
"""Processor seconds between two looks, under which nobody is at work."""
_STEPS = 4
"""That are written down."""
_CPU_CLOCK = 2
"""Linux: the kind of a process's clock that counts what the scheduler gave it (`clock_getcpuclockid`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """Work that sizes the memory of a process."""

    batches: frozenset[tuple[int, int, int]]
    """As in `Simulated`."""
    positions: float
    sequences: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsed:
    """What was seen."""

    train: tuple[Timing, ...]
    """Work: optimizer steps, micro-batches, tokens, pairs of whole rows summed over layers, response tokens; of the rank with the most."""
    publish: float
    """Seconds until the learner has handed over a version."""
    load: float
    """Seconds until all replicas sample with it."""
    group: GroupCost
    between: float
    """Seconds in which the loop writes a step of the whole batch down."""
    background: float
    """Cores that all processes take while nothing is asked of them."""
    beside: float
    """How many times longer a batch takes to train while a replica samples, on cores of its own; 1 where they take turns."""
    memory: Mapping[str, float]
    """Proportional bytes by kind of process: driver, ray, worker, learner, generator."""
    peak: Peak
    """The work after which they were taken."""


def rehearse(config: Config, *, folder: Path, shape: ModelShape, plan: Plan, prompt: int, response: int) -> Rehearsed:
    """`prompt` and `response`: tokens of a usual sample. Takes some twenty seconds, mostly to start the processes."""
    import os

    os.environ.pop("RAY_ADDRESS", None)  # this machine is what is measured
    import rl.train  # noqa: F401  # this process holds what the driver of a run holds

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends: the progress of a run is shown there
    with tempfile.TemporaryDirectory(prefix="rl-plan-") as scratch:
        stand_in = replace(
            config,
            run=replace(config.run, name="rehearsal", dir=scratch, plugins=()),
            tasks={"stand-in": TaskConfig(kind="programs", env="math", options={"kind": "arithmetic"})},
            generator=replace(config.generator, engine="torch"),
            rollout=replace(config.rollout, max_staleness=0),
            log=replace(config.log, tensorboard=False, wandb=False),
            checkpoint=replace(config.checkpoint, every=1000),
        )
        overlaps = config.rollout.max_staleness > 0
        return asyncio.run(_started(stand_in, folder=folder, shape=shape, plan=plan, prompt=prompt, response=response, overlaps=overlaps))


async def _started(config: Config, *, folder: Path, shape: ModelShape, plan: Plan, prompt: int, response: int, overlaps: bool) -> Rehearsed:
    from rl.actors import ActorContext
    from rl.log.runs import RunPaths, prepare_run
    from rl.placement import start_cluster, start_ray, stop_ray, watch_parts, weight_bytes
    from rl.places import Places
    from rl.progress import redirect_library_noise
    from rl.supervise import supervised

    paths = RunPaths(root=Path(config.run.dir) / config.run.name)
    identity = prepare_run(paths.root)
    redirect_library_noise(paths.library_log)
    try:
        start_ray(plan, Places.of(config, plan), model_bytes=weight_bytes(folder))
        watch = watch_parts(paths, run_id=identity.run_id, attempt=identity.attempt)
        context = ActorContext(config=config, model_path=folder, run_dir=paths.root, run_id=identity.run_id, attempt=identity.attempt)
        async with supervised([watch.run]):
            cluster = await start_cluster(context, plan=plan, watch=watch, with_learner=True, say=lambda message: None)
            try:
                async with supervised(cluster.watches):
                    stage = _Stage(config, folder=folder, shape=shape, cluster=cluster, watch=watch, prompt=prompt, response=response)
                    seen, trained = await stage.play()
                    if overlaps:
                        shared = max(1.0, (plan.learner_threads + plan.generator_threads) / plan.cores)
                        seen = replace(seen, beside=max(1.0, await stage.beside(trained, alone=seen.train[-1].seconds) / shared))
            finally:
                await cluster.close()
    finally:
        stop_ray(run_id=identity.run_id)
    between, log = _written(config, trained)
    return replace(seen, between=between, group=replace(seen.group, driver_log=log))


class _Stage:
    """The running parts and what is asked of them."""

    def __init__(
        self, config: Config, *, folder: Path, shape: ModelShape, cluster: "Cluster", watch: "Watch", prompt: int, response: int
    ) -> None:
        self._config, self._folder, self._shape = config, folder, shape
        self._cluster, self._watch = cluster, watch
        self._prompt, self._response = prompt, response
        self._version = 0
        self._batches: set[tuple[int, int, int]] = set()

    async def play(self) -> "tuple[Rehearsed, _Trained]":
        """Everything but the log, one after the other; and the last batch."""
        await self._sync()
        kinds = await self._kinds()
        train, last = await self._train()
        synced = [await self._sync() for _ in range(_REPEATS)]
        background = await self._background(kinds)
        group, sampled = await self._waves(kinds)
        rows = min(self._config.generator.slots, sampled * self._config.rollout.samples_per_prompt)
        positions = rows * self._shape.seen(self._prompt + min(self._response, _SAMPLED) / 2)
        seen = Rehearsed(
            train=train,
            publish=statistics.median(publish for publish, _ in synced),
            load=statistics.median(load for _, load in synced),
            group=group,
            between=0.0,
            background=background,
            beside=1.0,
            memory=_memory(kinds),
            peak=Peak(batches=frozenset(self._batches), positions=positions / self._config.generator.replicas, sequences=rows),
        )
        return seen, last

    async def beside(self, batch: "_Trained", *, alone: float) -> float:
        """How many times longer a batch takes while a replica samples. `alone`: its seconds."""
        config, done = self._config, asyncio.Event()
        tokens = max(2, min(_LONG, config.model.context_length - config.model.max_prompt_tokens))
        text = self._text()

        async def sample() -> None:
            index = 10_000
            while not done.is_set():
                job = job_of(index, text=text, samples=config.rollout.samples_per_prompt, tokens=tokens)
                await self._cluster.rollouts.expect([job])
                await self._cluster.rollouts.run(job)
                index += 1

        sampling = asyncio.create_task(sample())
        try:
            return await self._timed(batch.groups) / alone
        finally:
            done.set()
            await sampling

    def _text(self) -> str:
        """A prompt of the usual length."""
        return prompt_text(self._folder, tokens=min(self._prompt, self._config.model.max_prompt_tokens))

    async def _kinds(self) -> dict[str, tuple[psutil.Process, ...]]:
        """Processes by kind; waits for the first sign of life of all parts."""
        config = self._config
        counts = {"learner": config.learner.ranks, "generator": config.generator.replicas, "worker": config.rollout.workers}
        names = {kind: [f"{kind}-{number}" for number in range(count)] for kind, count in counts.items()}
        while any(self._watch.record(name) is None for of_kind in names.values() for name in of_kind):
            await asyncio.sleep(_LOOK)
        records = {kind: [self._watch.record(name) for name in of_kind] for kind, of_kind in names.items()}
        kinds = {kind: tuple(psutil.Process(record.pid) for record in of_kind if record) for kind, of_kind in records.items()}
        driver = psutil.Process()
        parts = {process.pid for of_kind in kinds.values() for process in of_kind}
        ray = tuple(process for process in driver.children(recursive=True) if process.pid not in parts)
        return {"driver": (driver,), "ray": ray, **kinds}

    async def _sync(self) -> tuple[float, float]:
        """Seconds in which a version leaves the learner, and in which the replicas take it in."""
        assert self._cluster.learner is not None
        began = time.perf_counter()
        publication = await self._cluster.learner.publish(self._version)
        published = time.perf_counter()
        await self._cluster.generators.load(publication)
        self._version += 1
        return published - began, time.perf_counter() - published

    async def _train(self) -> tuple[tuple[Timing, ...], "_Trained"]:
        config, samples = self._config, self._config.rollout.samples_per_prompt
        tokens = self._prompt + samples * self._response
        most = _BATCH * config.learner.micro_batch_tokens * config.learner.ranks
        whole = max(1, min(config.rollout.prompts_per_step, most // tokens))
        shapes = [(1, 2, 2), (1, samples, self._response), (max(1, whole // 2), samples, self._response), (whole, 2, self._response)]
        timings = []
        for groups, of_group, answer in dict.fromkeys([*shapes, (whole, samples, self._response)]):
            given = [group_of(index, samples=of_group, prompt=self._prompt, answer=answer) for index in range(groups)]
            trained = await self._trained(given)  # touches the memory
            seconds = await self._timed(given)
            timings.append(Timing(work=self._work(trained.batches), seconds=seconds))
        return tuple(timings), trained

    async def _timed(self, groups: "Sequence[RolloutGroup]") -> float:
        """Median seconds of a batch of groups, repeated while it is worth the wait."""
        began, seconds = time.perf_counter(), list[float]()
        while len(seconds) < _REPEATS and (not seconds or time.perf_counter() - began < _PATIENCE):
            seconds.append((await self._trained(groups)).seconds)
        return statistics.median(seconds)

    async def _trained(self, groups: "Sequence[RolloutGroup]") -> "_Trained":
        """What the loop does with a batch of groups, and its seconds."""
        from rl.advantage import advantages
        from rl.batch import make_batches
        from rl.filters import unfit_rollout
        from rl.samples import samples_of

        assert self._cluster.learner is not None
        config, began = self._config, time.perf_counter()
        unfit = unfit_rollout(config.filters, vocab_size=self._shape.vocab)
        per_group = advantages(config.objective, groups, max_tokens=config.sampling.max_tokens, unfit=unfit)
        samples = samples_of(groups, per_group)
        batches = make_batches(samples, config=config, n_rollouts=sum(len(group.rollouts) for group in groups))
        stats = await self._cluster.learner.train_step(batches)
        seconds = time.perf_counter() - began
        return _Trained(groups=tuple(groups), samples=samples, batches=batches, stats=tuple(stats), seconds=seconds)

    def _work(self, batches: "Sequence[Sequence[Batch]]") -> tuple[float, ...]:
        """Of the rank with the most tokens."""
        by_rank = []
        for of_rank in batches:
            micro_batches = [micro_batch for batch in of_rank for micro_batch in batch.micro_batches]
            shapes = [micro_batch.token_ids_BL.shape for micro_batch in micro_batches]
            for (rows, length), micro_batch in zip(shapes, micro_batches, strict=True):
                self._batches.add((rows * length, length, len(micro_batch.targets_N)))
            pairs = self._shape.layers * sum(rows * length * length for rows, length in shapes)
            tokens, answers = sum(rows * length for rows, length in shapes), sum(len(one.targets_N) for one in micro_batches)
            by_rank.append((tokens, (len(of_rank), len(micro_batches), tokens, pairs, answers)))
        return max(by_rank)[1]

    async def _background(self, kinds: "_Kinds") -> float:
        await self._still(kinds)
        before, began = _clocks(kinds), time.perf_counter()
        await asyncio.sleep(1.0)
        return sum(_spent(kinds, since=before).values()) / (time.perf_counter() - began)

    async def _waves(self, kinds: "_Kinds") -> tuple[GroupCost, int]:
        """Processor seconds of a group by process, and how many groups ran together."""
        config, tokens = self._config, min(self._response, _SAMPLED)
        text = self._text()
        count = max(_LEAST_GROUPS, min(config.rollout.prompts_per_step, _MOST_GROUPS))
        spent = [await self._wave(kinds, text=text, count=count, tokens=tokens, first=1000 * wave) for wave in range(3)]
        first, last = spent[1], spent[2]  # the one before them warmed up
        return GroupCost(**{name: (getattr(first, name) + getattr(last, name)) / 2 for name in GroupCost.__slots__}), count

    async def _wave(self, kinds: "_Kinds", *, text: str, count: int, tokens: int, first: int) -> GroupCost:
        """In lockstep the generators wait for every group that was announced: the last one of each is held back until all others have
        asked, so that what comes before the first token can be told from what comes after it."""
        samples, held = self._config.rollout.samples_per_prompt, self._config.generator.replicas
        jobs = [job_of(first + index, text=text, samples=samples, tokens=tokens) for index in range(count + held)]
        rollouts = self._cluster.rollouts
        await rollouts.expect(jobs)
        await self._still(kinds)
        before = _clocks(kinds)
        running = [asyncio.create_task(rollouts.run(job)) for job in jobs[:count]]
        await self._still(kinds)
        start = {kind: seconds / count for kind, seconds in _spent(kinds, since=before).items()}
        running += [asyncio.create_task(rollouts.run(job)) for job in jobs[count:]]
        outcomes = await asyncio.gather(*running)
        assert all(outcome.group is not None for outcome in outcomes), "a stand-in was dropped"
        await self._still(kinds)
        end = {kind: max(0.0, seconds / len(jobs) - start[kind]) for kind, seconds in _spent(kinds, since=before).items()}
        ended = _clocks(kinds)
        await rollouts.flush()
        await self._still(kinds)
        return GroupCost(
            driver_start=start["driver"],
            driver_end=end["driver"],
            worker_start=start["worker"],
            worker_end=end["worker"],
            worker_log=_spent(kinds, since=ended)["worker"] / len(jobs),
            generator=start["generator"],
        )

    async def _still(self, kinds: "_Kinds") -> None:
        """Returns when nobody has worked for three looks."""
        looks, before = 0, sum(_clocks(kinds).values())
        while looks < 3:
            await asyncio.sleep(_LOOK)
            now = sum(_clocks(kinds).values())
            looks, before = looks + 1 if now - before < _STILL else 0, now


_Kinds = Mapping[str, Sequence[psutil.Process]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trained:
    """A batch that was trained."""

    groups: "tuple[RolloutGroup, ...]"
    samples: "tuple[TrainSample, ...]"
    batches: "Sequence[Sequence[Batch]]"
    stats: "tuple[StepStats, ...]"
    seconds: float


def _clocks(kinds: _Kinds) -> dict[str, float]:
    """Processor seconds of all threads so far, by kind."""
    return {kind: sum(time.clock_gettime(~process.pid << 3 | _CPU_CLOCK) for process in of_kind) for kind, of_kind in kinds.items()}


def _spent(kinds: _Kinds, *, since: Mapping[str, float]) -> dict[str, float]:
    return {kind: seconds - since[kind] for kind, seconds in _clocks(kinds).items()}


def _memory(kinds: _Kinds) -> dict[str, float]:
    return {kind: float(sum(process.memory_full_info().pss for process in of_kind)) for kind, of_kind in kinds.items()}


def _written(config: Config, trained: _Trained) -> tuple[float, float]:
    """Seconds in which the loop writes a step of a whole batch down, and processor seconds of a group afterwards."""
    from rl.log.runs import RunIdentity, RunPaths
    from rl.loop import StepResult
    from rl.observer import RunObserver

    paths = RunPaths(root=Path(config.run.dir) / config.run.name)
    seconds, before = [], time.process_time()
    with RunObserver(config, run=paths, identity=RunIdentity(run_id="rehearsal", attempt=2), restored_step=0) as observer:
        for step in range(1, _STEPS + 1):
            began = time.perf_counter()
            observer.step(
                StepResult(
                    step=step,
                    groups=trained.groups,
                    samples=trained.samples,
                    dropped=Counter(),
                    stats=trained.stats,
                    phases={"rollout": 0.0, "train": trained.seconds, "sync": 0.0},
                    checksum="",
                    sync_bytes=0,
                    broadcasts_failed=0,
                )
            )
            seconds.append(time.perf_counter() - began)
        observer.flush()
        afterwards = time.process_time() - before - sum(seconds)
    share = len(trained.groups) / config.rollout.prompts_per_step
    return statistics.median(seconds) / share, max(0.0, afterwards) / (_STEPS * len(trained.groups))
