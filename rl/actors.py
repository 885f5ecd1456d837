"""The processes of a run, as plain classes: what each of them builds, and which calls it answers.

`rl/placement.py` turns them into Ray actors. Heavy imports happen inside the constructors, in the process that needs them.
"""

import asyncio
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import Config
from rl.records import Batch, Completion, GenerateRequest, RolloutGroup, StepStats, WeightBucket
from rl.rollout import GeneratorClient, GroupJob, GroupOutcome

if TYPE_CHECKING:
    from rl.generator import Generator


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


class LearnerActor:
    """One ZeRO rank."""

    def __init__(
        self, context: ActorContext, rank: int, world_size: int, init_method: str, threads: int, put: Callable[[WeightBucket], Any]
    ) -> None:
        """`put` places a bucket where generators can read it and returns a reference."""
        from rl.learner import Learner

        self._put = put
        self._learner = Learner(
            context.config, model_path=context.model_path, rank=rank, world_size=world_size, init_method=init_method, threads=threads
        )

    def ready(self) -> bool:
        """Answers once the engine is built."""
        return True

    def train_step(self, batches: Sequence[Batch]) -> StepStats:
        """One optimizer step for each batch."""
        return self._learner.train_step(batches)

    def publish(self, version: int, delta: bool) -> tuple[list[Any], int]:
        """Hand this rank's partition over bucket by bucket; the references, and how many bytes they stand for."""
        references, nbytes = [], 0
        for bucket in self._learner.buckets(version, delta=delta):
            references.append(self._put(bucket))
            nbytes += bucket.nbytes
        return references, nbytes

    def save(self, folder: Path) -> None:
        """Write this rank's state for an exact resume."""
        self._learner.save(folder)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        self._learner.load(folder)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face checkpoint (all ranks take part, rank 0 writes)."""
        self._learner.export(folder)

    def close(self) -> None:
        """Leave the process group."""
        self._learner.close()


class GeneratorActor:
    """One generator replica. After a restart it answers only once the current weights have reached it."""

    def __init__(self, context: ActorContext, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._generator = _make_generator(context)
        self._incarnation = uuid.uuid4().hex
        self._seeded = asyncio.Event()
        if context.weights_from_disk:
            self._seeded.set()

    async def incarnation(self) -> str:
        """Changes when the actor was restarted."""
        return self._incarnation

    async def generate(self, request: GenerateRequest) -> tuple[Completion, ...]:
        """See Generator.generate."""
        await self._seeded.wait()
        return await self._generator.generate(request)

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
        self._seeded.set()
        return checksum


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
        from rl.engines.vllm_engine import VllmEngine

        engine = VllmEngine(context.model_path, dtype=dtype, slots=slots, context_length=context_length, settings=config.vllm)
        return Generator(engine, lockstep=lockstep)
    import torch

    from rl.engines.torch_engine import TorchEngine

    embedded = TorchEngine(context.model_path, dtype=getattr(torch, dtype), slots=slots, context_length=context_length)
    return Generator(embedded, lockstep=lockstep)


class RolloutActor:
    """One rollout worker process."""

    def __init__(self, context: ActorContext, generators: Sequence[GeneratorClient], writer: str) -> None:
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
        self._worker = RolloutWorker(
            config,
            renderer=Renderer(load_tokenizer(context.model_path)),
            generators=generators,
            write_group=self._write,
            record_span=self._spans.record,
        )

    def _write(self, group: RolloutGroup) -> None:
        self._writer.write_group(group)

    async def run_group(self, job: GroupJob) -> GroupOutcome:
        """Collect one group."""
        return await self._worker.run_group(job)

    async def flush(self) -> None:
        """Make every finished group durable in the log."""
        self._writer.flush()

    async def close(self) -> None:
        """End graders and the writer."""
        await self._worker.close()
        self._spans.close()
        self._writer.close()

    async def pid(self) -> int:
        """Process id; answers once the worker is built."""
        return os.getpid()
