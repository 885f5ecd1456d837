"""The processes of a run, as plain classes: what each of them builds, and which calls it answers.

`rl/placement.py` turns them into Ray actors. Heavy imports happen inside the constructors, in the process that needs them.
"""

import asyncio
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import Config
from rl.errors import BroadcastFailed
from rl.generator_client import GeneratorRouter
from rl.generator_pool import Serving
from rl.records import Batch, Completion, GenerateRequest, RolloutGroup, StepStats, WeightBucket
from rl.rollout import GroupJob, GroupOutcome
from rl.status.reporter import Reporter
from rl.weight_store import Place

if TYPE_CHECKING:
    from rl.generator import Generator
    from rl.weight_broadcast import WeightBroadcast


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorContext:
    """What every actor needs to build its logic class."""

    config: Config
    model_path: Path
    run_dir: Path
    run_id: str
    attempt: int
    weights_from_disk: bool = False
    """True without a learner: generators answer with the checkpoint's own weights."""


_IDLE = "waits for the loop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """How a process tells the run what it does."""

    part: str
    address: Callable[[], str]
    """Of the node that the process finds itself on."""
    board: Callable[..., bool]
    """Takes a record and the process's name; False when the run has given it up."""
    name: str
    """Of this process, which another of the same part does not have."""

    def start(self) -> Reporter:
        """Begin to beat."""
        return Reporter(self.part, mailbox=partial(self.board, name=self.name), address=self.address())


class LearnerActor:
    """One ZeRO rank."""

    def __init__(
        self,
        context: ActorContext,
        report: Report,
        rank: int,
        world_size: int,
        init_method: str,
        threads: int,
        put: Callable[[WeightBucket], Any],
    ) -> None:
        """`put` places a bucket where generators can read it and returns a reference."""
        self._reporter = report.start()
        self._reporter.doing("imports, loads the model, and waits for the other ranks")
        _check_gpu(context.config)
        from rl.learner import Learner

        self._put, self._address = put, report.address()
        self._broadcast: WeightBroadcast | None = None
        self._learner = Learner(
            context.config,
            model_path=context.model_path,
            rank=rank,
            world_size=world_size,
            init_method=init_method,
            threads=threads,
            note=self._reporter.doing,
        )
        self._reporter.doing(_IDLE)

    def ready(self) -> bool:
        """Answers once the engine is built."""
        return True

    def train_step(self, batches: Sequence[Batch]) -> StepStats:
        """One optimizer step for each batch."""
        with self._reporter.phase("training step", then=_IDLE):
            return self._learner.train_step(batches)

    def publish(self, version: int, delta: bool) -> tuple[list[Any], int]:
        """Hand this rank's partition over bucket by bucket; the references, and how many bytes they stand for."""
        references, nbytes = [], 0
        with self._reporter.phase(f"handing over the weights of version {version}", then=_IDLE):
            for bucket in self._learner.buckets(version, delta=delta):
                references.append(self._put(bucket))
                nbytes += bucket.nbytes
        return references, nbytes

    def meet(self, place: Place) -> str:
        """Take a place in a group that broadcasts weights, and leave the one before; why it could not, or nothing."""
        from rl.weight_broadcast import WeightBroadcast

        if self._broadcast is not None:
            self._broadcast.leave()
        self._broadcast = None
        try:
            self._broadcast = WeightBroadcast(place, address=self._address, note=self._reporter.doing)
        except BroadcastFailed as error:
            return str(error)
        finally:
            self._reporter.doing(_IDLE)
        return ""

    def broadcast(self, version: int, *buckets: WeightBucket) -> str:
        """Send this rank's buckets of a version when it is its turn; why it could not, or nothing."""
        if self._broadcast is None:
            return "this rank is in no group"
        try:
            with self._reporter.phase(f"broadcasting the weights of version {version}", then=_IDLE):
                self._broadcast.send_in_turn(buckets)
        except BroadcastFailed as error:
            return str(error)
        return ""

    def save(self, folder: Path) -> None:
        """Write this rank's state for an exact resume."""
        with self._reporter.phase("writing its checkpoint", then=_IDLE):
            self._learner.save(folder)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        with self._reporter.phase("reading its checkpoint", then=_IDLE):
            self._learner.load(folder)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face checkpoint (all ranks take part, rank 0 writes)."""
        with self._reporter.phase("exporting the model", then=_IDLE):
            self._learner.export(folder)

    def close(self) -> None:
        """Leave the process group."""
        self._learner.close()
        self._reporter.close()


class GeneratorActor:
    """One generator replica. It answers requests only once weights have reached it."""

    def __init__(self, context: ActorContext, report: Report, threads: int) -> None:
        self._reporter = report.start()
        self._reporter.doing("imports and loads the model")
        import torch

        from rl.weight_listener import WeightListener

        torch.set_num_threads(threads)
        self._generator = _make_generator(context)
        self._listener = WeightListener(self._generator, address=report.address())
        self._reporter.describe_by(self._listener.describe)
        self._seeded = asyncio.Event()
        if context.weights_from_disk:
            self._seeded.set()

    async def ready(self) -> bool:
        """Answers once the model is loaded, and while the process is alive."""
        return True

    async def stay(self) -> None:
        """Is never answered: whoever calls it hears of the end of the process."""
        await asyncio.Event().wait()

    async def generate(self, request: GenerateRequest) -> tuple[Completion, ...]:
        """See Generator.generate."""
        await self._seeded.wait()
        completions = await self._generator.generate(request)
        self._reporter.event(f"answered request {request.key}")
        return completions

    async def expect(self, episodes: Sequence[str]) -> None:
        """See Generator.expect."""
        await self._generator.expect(episodes)

    async def release(self, episodes: Sequence[str]) -> None:
        """See Generator.release."""
        await self._generator.release(episodes)

    async def begin_weights(self, version: int, base: int | None) -> None:
        """See Generator.begin_weights."""
        await self._generator.begin_weights(version, base=base)

    async def load_bucket(self, bucket: WeightBucket) -> None:
        """See Generator.load_bucket; the bucket is a view into the object store, not a copy."""
        await self._generator.load_bucket(bucket)

    async def commit_weights(self, version: int) -> str:
        """See Generator.commit_weights."""
        checksum = await self._generator.commit_weights(version)
        self._took(version)
        return checksum

    async def meet(self, place: Place) -> None:
        """See WeightListener.meet."""
        await self._listener.meet(place)

    async def take_broadcast(self, version: int, base: int | None, lose_first: bool) -> str:
        """See WeightListener.take."""
        checksum = await self._listener.take(version, base, lose_first=lose_first)
        self._took(version)
        return checksum

    def _took(self, version: int) -> None:
        self._seeded.set()
        self._reporter.event(f"took the weights of version {version}")


def _check_gpu(config: Config) -> None:
    """Raise ValueError when this process should run on a GPU and cannot: it would be thousands of times slower, and not say why."""
    import torch

    if config.cluster.gpus and not torch.cuda.is_available():
        raise ValueError(
            f"cluster.gpus is true, and torch {torch.__version__} of {sys.executable} on {socket.gethostname()} finds no CUDA device: "
            "install torch for CUDA and the driver there, or set cluster.gpus=false"
        )


def _make_generator(context: ActorContext) -> "Generator":
    config = context.config
    lockstep, context_length = config.rollout.max_staleness == 0, config.model.context_length
    if config.generator.engine == "scripted":
        from rl.generator import Generator
        from rl.prompt import load_tokenizer
        from rl.scripted import ScriptedEngine, read_script
        from rl.weight_sync import DiscardedWeights

        script = read_script(config.generator.script or "")
        scripted = ScriptedEngine(script, tokenizer=load_tokenizer(context.model_path), context_length=context_length)
        return Generator(scripted, lockstep=lockstep, receiver=DiscardedWeights())
    from rl.generator import Generator

    dtype, slots = config.generator.dtype or config.model.dtype, config.generator.slots
    if config.generator.engine == "vllm":
        _check_gpu(config)
        from rl.engines.vllm_engine import VllmEngine

        engine = VllmEngine(context.model_path, dtype=dtype, slots=slots, context_length=context_length, settings=config.vllm)
        return Generator(engine, lockstep=lockstep)
    import torch

    from rl.engines.torch_engine import TorchEngine

    embedded = TorchEngine(context.model_path, dtype=getattr(torch, dtype), slots=slots, context_length=context_length)
    return Generator(embedded, lockstep=lockstep)


class RolloutActor:
    """One rollout worker process."""

    def __init__(self, context: ActorContext, report: Report, serving: Serving, writer: str) -> None:
        self._reporter = report.start()
        self._reporter.doing("imports, and starts its graders")
        from environments.containers.make import use_containers
        from environments.registry import load_plugins
        from environments.sandbox.make import use_sandbox
        from rl.log.flags import Flags
        from rl.log.spans import SpanWriter
        from rl.log.tables import Provenance
        from rl.log.writer import RolloutWriter
        from rl.prompt import Renderer, load_tokenizer, tokenizer_hashes
        from rl.rollout import RolloutWorker

        config = context.config
        load_plugins(config.run.plugins)
        use_sandbox(config.sandbox)
        use_containers(config.containers)
        tokenizer_hash, template_hash = tokenizer_hashes(context.model_path)
        self._writer = RolloutWriter(
            context.run_dir,
            run_id=context.run_id,
            attempt=context.attempt,
            writer=writer,
            tokens=config.log.tokens,
            provenance=Provenance(
                tokenizer_hash=tokenizer_hash,
                template_hash=template_hash,
                logprob_kind="none" if config.generator.engine == "scripted" else "raw",
            ),
            flagger=Flags(),
        )
        self._spans = SpanWriter(context.run_dir, attempt=context.attempt, actor=writer)
        self._router = GeneratorRouter(serving, start_timeout=config.cluster.start_timeout, part_timeout=config.cluster.part_timeout)
        self._worker = RolloutWorker(
            config,
            renderer=Renderer(load_tokenizer(context.model_path)),
            generators=self._router.clients,
            write_group=self._writer.write_group,
            record_span=self._spans.record,
        )
        self._reporter.describe_by(self._describe)

    def _describe(self) -> tuple[str, float]:
        from environments.sandbox.client import PoolClient

        what, since = self._worker.describe()
        return f"{what}; {PoolClient.in_flight} programs in the sandbox" if PoolClient.in_flight else what, since

    async def run_group(self, job: GroupJob) -> tuple[GroupOutcome, tuple[str, ...]]:
        """Collect one group; it, and the ids of the groups that have become durable in the log since the last answer."""
        outcome = await self._worker.run_group(job)
        self._reporter.event(f"finished group {job.group_id}")
        return outcome, self._writer.take_sealed()

    async def log_again(self, groups: Sequence[RolloutGroup]) -> None:
        """Write groups that another worker finished and may not have written before it was lost."""
        for group in groups:
            self._writer.write_group(group)

    async def serve(self, serving: Serving) -> None:
        """From now on these generators serve."""
        self._router.update(serving)

    async def stay(self) -> None:
        """Is never answered: whoever calls it hears of the end of the process."""
        await asyncio.Event().wait()

    async def flush(self) -> None:
        """Make every finished group durable in the log."""
        self._writer.flush()

    async def close(self) -> None:
        """End graders and the writer."""
        await self._worker.close()
        self._spans.close()
        self._writer.close()
        self._reporter.close()

    async def ready(self) -> bool:
        """Answers once the worker is built."""
        return True
