"""Where everything runs: starts Ray, and the logic classes as its actors, with the plan's thread counts.

What the loop sees are three plain objects, `learner`, `generators` and `rollouts`. Generators and rollout workers may come and go
(rl/crew.py); a dead learner ends the run. Beside `rl/remote.py` this is the only file that knows Ray.
"""

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# A private Ray listens on loopback only; Ray reads this when it is imported and knows no other switch for it.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rl.actors import ActorContext, GeneratorActor, LearnerActor, Report, RolloutActor
from rl.chaos.requests import FaultRequests
from rl.code_version import Sealed, check_code, code_version
from rl.crew import Crew, Member
from rl.engines.vllm_environment import runtime_environment
from rl.errors import PartDied, PartGone
from rl.generator_pool import GeneratorPool
from rl.learner_group import LearnerGroup
from rl.log.runs import RunPaths
from rl.places import Place, Places, check_machine, lacking
from rl.plan import Plan, containers_at_once, uses_containers
from rl.remote import Board, Remote, awaited, cause, first_line, last_line, live_nodes
from rl.rollout_pool import RolloutPool
from rl.status.watch import Watch
from rl.weight_groups import WeightGroups

RENDEZVOUS = ".rendezvous-"
"""Begins the name of the file in the run's folder by which learner ranks find each other; of no use after the run."""
_CONNECT_DEADLINE = 20.0
_CHECK_DEADLINE = 120.0
"""Seconds in which each node of a cluster must have started a process and looked at its code."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The running parts of one job."""

    learner: LearnerGroup | None
    generators: GeneratorPool
    rollouts: RolloutPool

    @property
    def watches(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """To be run beside whatever uses the parts: see rl/supervise.py."""
        return (self.generators.watch, self.rollouts.watch)

    async def close(self) -> None:
        """End everything that was started, in the order that loses nothing."""
        await self.rollouts.close()
        await self.generators.close()
        if self.learner is not None:
            await self.learner.close()


def start_ray(plan: Plan, places: Places, *, model_bytes: int) -> None:
    """Join the cluster that RAY_ADDRESS names, else start one on this machine that listens on loopback only.

    Raises ValueError when the cluster cannot be joined, or this machine lacks what the run asks for.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        _join_ray(os.environ["RAY_ADDRESS"])
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
        # Every part has an environment of its own, so processes that Ray starts ahead of time would serve nobody.
        _system_config={"prestart_worker_first_driver": False},
    )
    check_machine(places.total(plan), ray.cluster_resources())


def _join_ray(address: str) -> None:
    """Raises ValueError when nobody answers there, or a node has other code than this process."""
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT_DEADLINE).close()
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, RayError) as error:
        raise ValueError(
            f"RAY_ADDRESS is {address}, and no Ray cluster can be joined there: {first_line(error)}; start one with "
            "ray start --head, or unset it"
        ) from error
    _check_nodes()


def _check_nodes() -> None:
    """Let a process on each node compare its code with this one's. Raises ValueError."""
    remote: Any = ray.remote(num_cpus=0, max_retries=0)  # Ray's stubs know plain functions only
    check = remote(check_code)
    nodes = {
        node["NodeID"]: f"Ray node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in ray.nodes() if node["Alive"]
    }
    calls = {
        check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(dict(code_version()), who=where): where
        for node, where in nodes.items()
    }
    answered, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_CHECK_DEADLINE)
    for call, where in calls.items():
        if call not in answered:
            raise ValueError(f"{where} did not start a process within {_CHECK_DEADLINE:.0f} s: take it out of the cluster")
        try:
            ray.get(call)
        except RayTaskError as error:
            if isinstance(cause(error), ValueError):
                raise cause(error) from None
            raise ValueError(f"{where} cannot run this project, is it installed there? {last_line(error)}") from error
        except RayError as error:
            raise ValueError(f"{where} cannot run this project, is it installed there? {last_line(error)}") from error


def weight_bytes(model_path: Path) -> int:
    """Bytes of the model's weights on disk."""
    return sum(path.stat().st_size for path in model_path.glob("*.safetensors"))


def stop_ray(*, run_id: str) -> None:
    """Leave Ray, with nothing of this run in it; a private one is shut down with all its processes."""
    if ray.is_initialized():
        Board(run_id=run_id).clear()
    ray.shutdown()


def watch_parts(run: RunPaths, *, run_id: str, attempt: int) -> Watch:
    """Collects what the parts of a run say of themselves. Run its `run` beside everything else."""
    board = Board(run_id=run_id)
    board.clear()  # of an attempt that was killed, on a cluster that went on
    return Watch(run.status, attempt=attempt, read=board.read)


def _node_address() -> str:
    return str(ray.util.get_node_ip_address())


def _report(context: ActorContext, part: str) -> Report:
    name = f"{part}.{uuid.uuid4().hex[:8]}"
    return Report(part=part, name=name, address=_node_address, board=Board(run_id=context.run_id))


async def run_remotely(
    function: Callable[..., Any], /, *, part: str, context: ActorContext, watch: Watch, place: Place, **arguments: Any
) -> Any:
    """Call a function in a process of its own, at a place like this, which ends with it: its memory is given back.

    It is also given `note`, which takes what it is doing. Raises PartDied when the process dies, falls silent, or is stuck at one thing.
    """
    remote: Any = ray.remote(max_calls=1, max_retries=0, **_options(place))
    task = remote(_reported)
    watch.expect(part, partial(_waits_for, place))
    reference = task.remote(Sealed(_report(context, part), who=part), function, arguments)
    call = asyncio.ensure_future(awaited(reference))
    limits, begun = context.config.cluster, time.monotonic()
    while not call.done():
        await asyncio.wait({call}, timeout=1.0)
        record, silent = watch.record(part), watch.silent_for(part)
        late = (
            ""
            if record or time.monotonic() - begun < limits.start_timeout
            else f"did not start within {limits.start_timeout:.0f} s; {_room()}"
        )
        late = late or (f"has given no sign of life for {silent:.0f} s: {watch.told(part)}" if silent > limits.part_timeout else "")
        if record and time.time() - record.since > context.config.rollout.timeout:
            late = late or f"got no further within rollout.timeout={context.config.rollout.timeout:.0f} s: {watch.told(part)}"
        if late and not call.done():
            ray.cancel(reference, force=True)
            call.cancel()
            raise PartDied(f"the {part} process {late}")
    try:
        return call.result()
    except RayTaskError as error:
        raise cause(error) from error
    except RayError as error:
        raise PartDied(f"the {part} process died: {last_line(error)}") from error
    finally:
        watch.forget(part)


def _reported(report: Report, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    reporter = report.start()
    try:
        return function(note=reporter.doing, **arguments)
    finally:
        reporter.close()


def _options(place: Place, *, runtime: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Of an actor."""
    cpus = int(place.amounts["CPU"])
    return {
        "num_cpus": cpus,
        "num_gpus": place.amounts.get("GPU", 0),
        "resources": {name: amount for name, amount in place.amounts.items() if name not in ("CPU", "GPU")},
        "runtime_env": runtime or {"env_vars": _threads_environment(cpus)},
    }


def _waits_for(place: Place, remote: Remote | None = None) -> str:
    """What a process waits for that has not been heard of, for a person."""
    if remote is not None and remote.placed():
        return "its process has a place and is being started"
    reason = lacking(place, live_nodes())
    return f"waits for a place: {place.told()}; {reason}" if reason else f"has found a place: {place.told()}"


def _room() -> str:
    """What the cluster has."""
    total, free = ray.cluster_resources(), ray.available_resources()
    own = ("node:", "object_store", "memory")  # and what Ray counts by placement group
    names = sorted(name for name in total if not name.startswith(own) and "_group_" not in name)
    return "free in the cluster: " + ", ".join(f"{free.get(name, 0):g} of {total[name]:g} {name}" for name in names)


async def start_cluster(context: ActorContext, *, plan: Plan, watch: Watch, with_learner: bool, say: Callable[[str], None]) -> Cluster:
    """Start all actors and wait until those that are needed are built. `start_ray` must have run, and `watch` be running.

    `say` hears about parts that come and go. Raises PartDied when one does not start.
    """
    places = Places.of(context.config, plan)
    return await _Start(context=context, plan=plan, places=places, watch=watch, say=say).cluster(with_learner=with_learner)


def _neighbourhoods(place: Place, *, processes: int) -> list[dict[str, Any]]:
    """Options that put each process, by its number, on one node with its neighbours; a run's groups end with it."""
    if place.neighbours == 1:
        return [{} for _ in range(processes)]
    options: list[dict[str, Any]] = []
    for _ in range(processes // place.neighbours):
        group = placement_group([dict(place.amounts)] * place.neighbours, strategy="STRICT_PACK")
        options += [
            {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)}
            for i in range(place.neighbours)
        ]
    return options


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The start of one job's parts."""

    context: ActorContext
    plan: Plan
    places: Places
    watch: Watch
    say: Callable[[str], None]

    async def cluster(self, *, with_learner: bool) -> Cluster:
        config = self.context.config
        lockstep = config.rollout.max_staleness == 0
        # Nothing waits for the ranks before the end of this method.
        ranks = self._ranks() if with_learner else []
        group = None
        if with_learner:
            group = LearnerGroup(
                ranks,
                health=self.watch,
                timeout=max(config.rollout.timeout, config.cluster.start_timeout),
                part_timeout=config.cluster.part_timeout,
                deltas=config.learner.weight_sync == "delta",
            )
        generator_crew = self._crew(
            "generator", self._generator, needed=self.plan.replicas, most=config.cluster.most_generators or self.plan.replicas
        )
        pool = GeneratorPool(
            generator_crew,
            slots=config.cluster.most_generators or self.plan.replicas,
            lockstep=lockstep,
            timeout=config.rollout.timeout,
            faults=FaultRequests(run_dir=self.context.run_dir),
            say=self.say,
            groups=self._weight_groups(group),
        )
        worker_crew = self._crew(
            "worker", partial(self._worker, pool), needed=self.plan.workers, most=config.cluster.most_workers or self.plan.workers
        )
        rollouts = RolloutPool(
            worker_crew,
            generators=pool,
            lockstep=lockstep,
            live_episodes=containers_at_once(config) if uses_containers(config) else None,
            part_timeout=config.cluster.part_timeout,
        )
        begins = [asyncio.ensure_future(begin) for begin in (generator_crew.begin(), worker_crew.begin(), self._built(ranks))]
        try:
            await asyncio.gather(*begins)
        except BaseException:
            for begin in begins:
                begin.cancel()
            await asyncio.gather(*begins, return_exceptions=True)
            await asyncio.gather(generator_crew.close(), worker_crew.close())
            raise
        return Cluster(learner=group, generators=pool, rollouts=rollouts)

    def _weight_groups(self, learner: LearnerGroup | None) -> WeightGroups | None:
        config = self.context.config
        if learner is None or config.learner.weight_transport != "collective":
            return None
        return WeightGroups(
            learner,
            address=_node_address(),
            backend="nccl" if config.cluster.gpus and config.generator.engine == "vllm" else "gloo",
            # What a failed broadcast leaves of rollout.timeout is for the object store.
            timeout=min(config.cluster.part_timeout, config.rollout.timeout / 2),
            say=self.say,
        )

    def _crew(self, kind: str, start: Callable[[int], Remote], *, needed: int, most: int) -> Crew:
        board, limits = Board(run_id=self.context.run_id), self.context.config.cluster

        def gave_up(member: Member) -> None:
            self.watch.lose(member.part, member.why)
            board.give_up(part=member.part, name=member.remote.name)
            self.watch.expect(member.part, lambda: f"will be asked for again; it was given up: {member.why}")

        return Crew(
            kind,
            start=start,
            needed=needed,
            most=most,
            start_timeout=limits.start_timeout,
            part_timeout=limits.part_timeout,
            health=self.watch,
            gave_up=gave_up,
            say=self.say,
            room=_room,
        )

    def _generator(self, slot: int) -> Remote:
        threads = self.plan.generator_threads
        # Ray's stubs do not know actor classes made without the decorator.
        config = self.context.config
        runtime = runtime_environment(config, variables=_threads_environment(threads))
        options = _options(self.places.generator, runtime=runtime)
        actor: Any = ray.remote(GeneratorActor).options(max_concurrency=1000, **options)
        report = _report(self.context, f"generator-{slot}")
        return self._expected(report, actor.remote(self._sealed(report), report, threads), self.places.generator)

    def _worker(self, pool: GeneratorPool, slot: int) -> Remote:
        actor: Any = ray.remote(RolloutActor).options(max_concurrency=1000, **_options(self.places.worker))
        report = _report(self.context, f"worker-{slot}")
        handle = actor.remote(self._sealed(report), report, pool.serving(), report.name.replace("worker-", "w"))
        return self._expected(report, handle, self.places.worker)

    def _expected(self, report: Report, handle: Any, place: Place) -> Remote:
        """The process that was asked for; `rl status` tells what it waits for until it is heard."""
        remote = Remote(handle, name=report.name)
        self.watch.expect(report.part, partial(_waits_for, place, remote))
        return remote

    def _ranks(self) -> list[Remote]:
        plan = self.plan
        actor: Any = ray.remote(LearnerActor)
        # A file in the run's folder, which all nodes share anyway: nothing listens for the rendezvous.
        init_method = f"file://{(self.context.run_dir / f'{RENDEZVOUS}{uuid.uuid4().hex}').resolve()}"
        ranks = []
        for rank, where in enumerate(_neighbourhoods(self.places.rank, processes=plan.ranks)):
            report = _report(self.context, f"learner-{rank}")
            handle = actor.options(**_options(self.places.rank), **where).remote(
                self._sealed(report), report, rank, plan.ranks, init_method, plan.learner_threads, ray.put
            )
            ranks.append(self._expected(report, handle, self.places.rank))
        return ranks

    async def _built(self, ranks: Sequence[Remote]) -> None:
        """Returns when all learner ranks are built; the first failure counts, since the others wait for it."""
        timeout = self.context.config.cluster.start_timeout

        async def built(rank: int) -> None:
            try:
                await ranks[rank].call("ready", timeout=timeout)
            except PartGone as error:
                told = self.watch.told(f"learner-{rank}") or self.watch.waits_for(f"learner-{rank}")
                raise PartDied(f"learner rank {rank} could not start: {error}{f' ({told})' if told else ''}; {_room()}") from error

        await asyncio.gather(*map(built, range(len(ranks))))

    def _sealed(self, report: Report) -> Sealed:
        return Sealed(self.context, who=report.part)
