"""Where everything runs: the only file that knows Ray.

It wraps the logic classes into actors, starts them with the plan's thread counts, restarts rollout workers and
generators that die, and turns a dead learner into an error. The loop sees three plain objects: `learner`, `generators`
and `rollouts`.
"""

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A private Ray listens on loopback only; Ray reads this when it is imported and knows no other switch for it.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from rl.actors import ActorContext, GeneratorActor, LearnerActor, RolloutActor
from rl.engines.vllm_environment import runtime_environment
from rl.errors import PartDied
from rl.plan import Plan, containers_at_once, uses_containers
from rl.records import Batch, Completion, GenerateRequest, Publication, StepStats
from rl.rollout import GroupJob, GroupOutcome
from rl.room import Room
from rl.weight_sync import BaseMissing

RENDEZVOUS = ".rendezvous-"
"""Begins the name of the file in the run's folder by which learner ranks find each other; of no use after the run."""
_START_DEADLINE = 300.0
_RESTARTS = 3
"""How often one part may be restarted before the run is given up."""
_RESTART_DEADLINE = 120.0
"""Seconds in which a restarted generator must answer again."""
_DELTAS_SHARE = 0.5
"""Of the bytes of a whole version: when the deltas on it have as many, the next version is sent whole. They wait in the object store."""
_NOISE_OFF = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def _threads_environment(threads: int) -> dict[str, str]:
    count = str(threads)
    # The ranks of a private Ray talk to each other over loopback.
    local = {} if os.environ.get("RAY_ADDRESS") else {"GLOO_SOCKET_IFNAME": "lo"}
    # Threads that spin while they wait slow down whoever shares the cores: 5 to 10 times, measured on two of them.
    threads_environment = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}
    return {**threads_environment, **_NOISE_OFF, **local}


class RemoteGenerator:
    """A generator as rollout workers see it: calls are repeated while the actor is being restarted."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def generate(self, request: GenerateRequest) -> tuple[Completion, ...]:
        """Sample; survives restarts of the actor. Raises what the generator raised: it is written down as the rollout's reason."""
        try:
            return await _through_restarts(lambda: self._actor.generate.remote(request))
        except RayTaskError as error:
            raise _cause(error) from None

    async def release(self, episodes: Sequence[str]) -> None:
        """Tell the actor that these episodes have ended."""
        await _through_restarts(lambda: self._actor.release.remote(episodes))


async def _through_restarts(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call while the actor is down; a call that fails for its own reasons raises at once."""
    deadline = time.monotonic() + _RESTART_DEADLINE
    while True:
        try:
            return await call()
        except RayActorError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(1.0)


def _cause(error: BaseException) -> BaseException:
    """The exception inside a RayTaskError."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) else error


class LearnerGroup:
    """All ZeRO ranks as one learner."""

    def __init__(self, actors: Sequence[Any], *, timeout: float, deltas: bool) -> None:
        """`deltas`: publish what has changed where that is enough."""
        self._actors = actors
        self._timeout = timeout
        self._deltas = deltas
        self._version: int | None = None
        self._whole_bytes = self._delta_bytes = 0

    async def train_step(self, batches: Sequence[Sequence[Batch]]) -> tuple[StepStats, ...]:
        """`batches[rank][optimizer step]`; the statistics of every rank."""
        stats = await self._all("train_step", [actor.train_step.remote(b) for actor, b in zip(self._actors, batches, strict=True)])
        return tuple(stats)

    async def publish(self, version: int) -> Publication:
        """References to every rank's buckets of this version: whole, or against the version published before."""
        base = self._version if self._deltas and self._delta_bytes < _DELTAS_SHARE * self._whole_bytes else None
        per_rank = await self._all("publish", [actor.publish.remote(version, base is not None) for actor in self._actors])
        nbytes = sum(size for _, size in per_rank)
        self._version = version
        if base is None:
            self._whole_bytes, self._delta_bytes = nbytes, 0
        else:
            self._delta_bytes += nbytes
        buckets = tuple(reference for references, _ in per_rank for reference in references)
        return Publication(version=version, base=base, buckets=buckets, nbytes=nbytes)

    async def save(self, folder: Path) -> None:
        """Write every rank's state."""
        await self._all("save", [actor.save.remote(folder) for actor in self._actors])

    async def load(self, folder: Path) -> None:
        """Restore every rank's state. Raises ValueError when the checkpoint is damaged."""
        await self._all("load", [actor.load.remote(folder) for actor in self._actors])

    async def export(self, folder: Path) -> None:
        """Write a Hugging Face checkpoint."""
        await self._all("export", [actor.export.remote(folder) for actor in self._actors])

    async def close(self) -> None:
        """Leave the process group; best effort."""
        with contextlib.suppress(PartDied, RayError):
            await self._all("close", [actor.close.remote() for actor in self._actors])

    async def _all(self, action: str, references: Sequence[Any]) -> list[Any]:
        """Wait for every rank; the first failure counts at once, since the other ranks then wait in a collective forever."""
        tasks = [asyncio.ensure_future(_await(reference)) for reference in references]
        done, pending = await asyncio.wait(tasks, timeout=self._timeout, return_when=asyncio.FIRST_EXCEPTION)
        for task in pending:
            task.cancel()
        for rank, task in enumerate(tasks):
            error = task.exception() if task in done else None
            if isinstance(error, RayActorError):
                raise PartDied(f"learner rank {rank} died during {action}: {_first_line(error)}") from error
            if error is not None:
                raise _cause(error)
        if pending:
            silent = [rank for rank, task in enumerate(tasks) if task in pending]
            raise PartDied(f"learner ranks {silent} did not finish {action} within {self._timeout:.0f} s")
        return [task.result() for task in tasks]


async def _await(reference: Any) -> Any:
    return await reference


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class GeneratorPool:
    """All generator replicas: publishes weights, and brings a restarted replica up to date."""

    def __init__(self, actors: Sequence[Any], *, timeout: float, say: Callable[[str], None]) -> None:
        self._actors = actors
        self._timeout = timeout
        self._say = say
        self._chain: list[Publication] = []
        """A whole version and the deltas on it, which make the current one."""
        self._incarnations: list[str] = [""] * len(actors)
        self._expected: list[set[str]] = [set() for _ in actors]
        self._load_lock = asyncio.Lock()

    async def load(self, publication: Publication) -> str:
        """Swap the weights of all replicas; returns the checksum of the version.

        The buckets stay in the object store until the next whole version, to seed replicas that restart.
        """
        async with self._load_lock:
            self._chain = [*self._chain, publication] if publication.base is not None else [publication]
            sums = await asyncio.gather(*(self._load_one(i) for i in range(len(self._actors))))
        if len(set(sums)) != 1:
            raise PartDied(f"generators disagree on the weights of version {publication.version}: checksums {sorted(set(sums))}")
        return sums[0]

    async def expect(self, jobs: Sequence[GroupJob]) -> None:
        """Announce the episodes of these jobs to the replicas that will serve them."""
        for i, actor in enumerate(self._actors):
            mine = [episode for job in jobs if job.index % len(self._actors) == i for episode in job.episodes]
            self._expected[i].update(mine)
            if mine:
                await self._deadline(_through_restarts(lambda actor=actor, mine=mine: actor.expect.remote(mine)), f"generator {i}")  # type: ignore[misc]

    def finished(self, job: GroupJob) -> None:
        """These episodes need not be announced again after a restart."""
        self._expected[job.index % len(self._actors)].difference_update(job.episodes)

    async def watch(self) -> None:
        """Runs until cancelled: a replica that was restarted gets the current weights and its live episodes again."""
        while True:
            await asyncio.sleep(1.0)
            for i, actor in enumerate(self._actors):
                incarnation = await self._deadline(_through_restarts(actor.incarnation.remote), f"generator {i}")
                if incarnation != self._incarnations[i]:
                    async with self._load_lock:
                        await self._load_one(i)
                    self._say(f"generator {i} died and was restarted with the weights of version {self._chain[-1].version}")

    async def _load_one(self, i: int) -> str:
        async def load() -> str:
            actor = self._actors[i]
            self._incarnations[i] = await actor.incarnation.remote()
            if self._expected[i]:
                await actor.expect.remote(sorted(self._expected[i]))
            try:
                await _send(self._chain[-1:], actor)
            except RayTaskError as error:
                if len(self._chain) == 1 or not isinstance(error.cause, BaseMissing):
                    raise
                await _send(self._chain, actor)
            return str(await actor.commit_weights.remote(version))

        version = self._chain[-1].version
        return str(await self._deadline(_through_restarts(load), f"generator {i} (weights of version {version})"))

    async def _deadline(self, call: Awaitable[Any], what: str) -> Any:
        try:
            return await asyncio.wait_for(call, self._timeout)
        except TimeoutError:
            raise PartDied(f"{what} did not answer within rollout.timeout={self._timeout:.0f} s") from None
        except RayActorError as error:
            raise PartDied(f"{what} died and could not be restarted: {_first_line(error)}") from error
        except RayTaskError as error:
            raise _cause(error) from error


async def _send(publications: Sequence[Publication], generator: Any) -> None:
    for publication in publications:
        await generator.begin_weights.remote(publication.version, publication.base)
        for bucket in publication.buckets:
            await generator.load_bucket.remote(bucket)


class RolloutPool:
    """All rollout workers: sends each job to the least busy one and replaces workers that die."""

    def __init__(
        self,
        make_actor: Callable[[str], Any],
        *,
        count: int,
        generators: GeneratorPool,
        say: Callable[[str], None],
        lockstep: bool,
        live_episodes: int | None,
    ) -> None:
        """`live_episodes`: most that run at a time; None means any number."""
        self._make_actor = make_actor
        self._room = Room(episodes=live_episodes, lockstep=lockstep, announce=generators.expect)
        self._say = say
        self._generators = generators
        self._actors = [make_actor(f"w{i}") for i in range(count)]
        self._load = [0] * count
        self._restarts = 0

    @property
    def actors(self) -> Sequence[Any]:
        """The current actor handles."""
        return tuple(self._actors)

    async def expect(self, jobs: Sequence[GroupJob]) -> None:
        """Announce jobs before the first of them is run (strictly on-policy runs start a whole wave together)."""
        await self._room.expect(jobs)

    async def run(self, job: GroupJob) -> GroupOutcome:
        """Collect one group; started again on another worker when its worker dies."""
        try:
            await self._room.enter(job)
            return await self._run(job)
        finally:
            await self._room.leave(job)

    async def _run(self, job: GroupJob) -> GroupOutcome:
        for attempt in range(_RESTARTS + 1):
            i = min(range(len(self._actors)), key=lambda k: self._load[k])
            actor = self._actors[i]
            self._load[i] += 1
            try:
                outcome: GroupOutcome = await actor.run_group.remote(job)
                self._generators.finished(job)
                return outcome
            except RayActorError as error:
                if attempt == _RESTARTS:
                    raise PartDied(f"rollout worker {i} died {attempt + 1} times on group {job.group_id}: {_first_line(error)}") from error
                if self._actors[i] is actor:
                    self._restarts += 1
                    self._actors[i] = self._make_actor(f"w{i}r{self._restarts}")
                    self._say(f"rollout worker {i} died and was restarted; its unfinished groups start again")
            except RayTaskError as error:
                raise _cause(error) from error
            finally:
                self._load[i] -= 1
        raise AssertionError("unreachable")

    async def flush(self) -> None:
        """Make every finished group durable."""
        for actor in self._actors:
            with contextlib.suppress(RayActorError):
                await actor.flush.remote()

    async def close(self) -> None:
        """End graders and writers; best effort."""
        for actor in self._actors:
            with contextlib.suppress(RayError):
                await actor.close.remote()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The running parts of one job."""

    learner: LearnerGroup | None
    generators: GeneratorPool
    rollouts: RolloutPool

    async def close(self) -> None:
        """End everything that was started, in the order that loses nothing."""
        await self.rollouts.close()
        if self.learner is not None:
            await self.learner.close()


def start_ray(plan: Plan, *, model_bytes: int) -> None:
    """Join the cluster that RAY_ADDRESS names, else start one on this machine that listens on loopback only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    logical = plan.ranks * plan.learner_threads + plan.replicas * plan.generator_threads + plan.workers
    ray.init(
        address="local",  # never another run's Ray on this machine, nor what a killed one has left
        num_cpus=logical,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
        # Two versions of the weights (the one being swapped in and the one that seeds restarts) and the rollouts in flight.
        object_store_memory=int(2.5 * model_bytes) + (256 << 20),
    )


def weight_bytes(model_path: Path) -> int:
    """Bytes of the model's weights on disk."""
    return sum(path.stat().st_size for path in model_path.glob("*.safetensors"))


def stop_ray() -> None:
    """Leave Ray; a private one is shut down with all its processes."""
    ray.shutdown()


async def run_remotely(function: Callable[..., Any], /, *, threads: int, **arguments: Any) -> Any:
    """Call a function in a process of its own, which ends with it: its memory is given back."""
    task = ray.remote(num_cpus=threads, max_calls=1, max_retries=0, runtime_env={"env_vars": _threads_environment(threads)})(function)
    try:
        return await task.remote(**arguments)
    except RayTaskError as error:
        raise _cause(error) from error


async def start_cluster(context: ActorContext, *, plan: Plan, with_learner: bool, say: Callable[[str], None]) -> Cluster:
    """Start all actors and wait until the generators and learner ranks are built. `start_ray` must have run.

    `say` hears about parts that were restarted.
    """
    config = context.config
    timeout = config.rollout.timeout
    # Ray's stubs do not know actor classes made without the decorator.
    generator_class: Any = ray.remote(GeneratorActor).options(
        num_cpus=plan.generator_threads,
        max_restarts=_RESTARTS,
        max_concurrency=1000,
        runtime_env=runtime_environment(config, variables=_threads_environment(plan.generator_threads)),
    )
    generators = tuple(generator_class.remote(context, plan.generator_threads) for _ in range(plan.replicas))
    learners: tuple[Any, ...] = ()
    if with_learner:
        learner_class: Any = ray.remote(LearnerActor).options(
            num_cpus=plan.learner_threads, runtime_env={"env_vars": _threads_environment(plan.learner_threads)}
        )
        # A file in the run's folder, which all nodes share anyway: nothing listens for the rendezvous.
        init_method = f"file://{(context.run_dir / f'{RENDEZVOUS}{uuid.uuid4().hex}').resolve()}"
        learners = tuple(
            learner_class.remote(context, rank, plan.ranks, init_method, plan.learner_threads, ray.put) for rank in range(plan.ranks)
        )
    worker_class: Any = ray.remote(RolloutActor).options(
        num_cpus=1, max_concurrency=1000, runtime_env={"env_vars": _threads_environment(1)}
    )
    clients = [RemoteGenerator(actor) for actor in generators]
    pool = GeneratorPool(generators, timeout=timeout, say=say)
    rollouts = RolloutPool(
        lambda name: worker_class.remote(context, clients, name),
        count=plan.workers,
        generators=pool,
        say=say,
        lockstep=config.rollout.max_staleness == 0,
        live_episodes=containers_at_once(config) if uses_containers(config) else None,
    )
    deltas = config.learner.weight_sync == "delta"
    group = LearnerGroup(learners, timeout=max(timeout, _START_DEADLINE), deltas=deltas) if with_learner else None
    cluster = Cluster(learner=group, generators=pool, rollouts=rollouts)
    await _started("generator", [actor.incarnation.remote() for actor in generators])
    await _started("learner rank", [actor.ready.remote() for actor in learners])
    await _started("rollout worker", [actor.pid.remote() for actor in rollouts.actors])
    return cluster


async def _started(what: str, references: Sequence[Any]) -> None:
    for i, reference in enumerate(references):
        try:
            await asyncio.wait_for(_await(reference), _START_DEADLINE)
        except TimeoutError:
            raise PartDied(f"{what} {i} did not start within {_START_DEADLINE:.0f} s") from None
        except RayTaskError as error:
            raise _cause(error) from error
        except RayActorError as error:
            # Ray hands over what the constructor raised as the last line of a report.
            raise PartDied(f"{what} {i} could not start: {str(error).strip().splitlines()[-1]}") from error
