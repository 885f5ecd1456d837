"""What pieces of a step take on this machine: the product's own engine, learner, weight sync and rollout worker, each alone.

Each function runs in a process of its own with the threads that the part will have (`rl/planner/measure.py`) and returns plain records.
The model's weights do not matter, only its shape. Heavy imports happen inside.
"""

import asyncio
import pickle
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.schema import Config
from rl.planner.shape import ModelShape

if TYPE_CHECKING:
    from rl.engines.torch_engine import TorchEngine
    from rl.records import Batch, TrainSample

_REPEATS = 3
_JOURNEYS = 2
_SAMPLED = 12
"""Tokens of each sequence while decode steps are timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One measurement: how much work of each kind, and the seconds it took."""

    work: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorTimings:
    """Of one replica."""

    decode: tuple[Timing, ...]
    """Work: 1, sequences, cached positions summed over sequences and layers."""
    prefill: tuple[Timing, ...]
    """Work: 1, tokens, pairs summed over layers, prompts."""
    load: float
    """Seconds of writing all weights and putting them to use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerTimings:
    """Of one rank."""

    train: tuple[Timing, ...]
    """Work of a training step: optimizer steps, micro-batches, tokens, pairs of whole rows summed over layers, response tokens."""
    publish: float
    """Seconds of cutting and copying all weights."""


def probe_generator(config: Config, *, folder: Path, shape: ModelShape, threads: int, prompt: int) -> GeneratorTimings:
    """Time an engine with about `prompt` tokens a prompt."""
    import torch

    from rl.engines.torch_engine import TorchEngine

    torch.set_num_threads(threads)
    dtype = getattr(torch, config.generator.dtype or config.model.dtype)
    slots, samples = config.generator.slots, config.rollout.samples_per_prompt
    engine = TorchEngine(folder, dtype=dtype, slots=slots, context_length=4 * prompt + 2 * _SAMPLED)
    most = min(slots, config.rollout.prompts_per_step * samples)
    decode, prefill = [], []
    for rows in sorted({1, max(1, most // 8), max(1, most // 2), most}):
        for length in (prompt, 3 * prompt):
            _run(engine, rows=rows, samples=samples, prompt=length)  # touches the memory
            for _ in range(_REPEATS):
                before = engine.stats()
                _run(engine, rows=rows, samples=samples, prompt=length)
                after = engine.stats()
                steps, prompts = after.decode_steps - before.decode_steps, after.prompts - before.prompts
                positions = rows * shape.seen(length + _SAMPLED / 2)
                decode.append(Timing(work=(1, rows, positions), seconds=(after.decode_seconds - before.decode_seconds) / steps))
                work = (1, prompts * length, prompts * shape.attended(length), prompts)
                prefill.append(Timing(work=work, seconds=after.prefill_seconds - before.prefill_seconds))
    return GeneratorTimings(decode=_medians(decode), prefill=_medians(prefill), load=_load_seconds(engine))


def _run(engine: "TorchEngine", *, rows: int, samples: int, prompt: int) -> None:
    from rl.records import GenerateRequest, Sampling

    rng = np.random.default_rng(rows)
    for first in range(0, rows, samples):
        count = min(samples, rows - first)
        request = GenerateRequest(
            key=str(first),
            episodes=tuple(f"{first}-{i}" for i in range(count)),
            prompt_ids_P=rng.integers(0, engine.shape.vocab, prompt).astype(np.int32),
            seeds=tuple(range(count)),
            sampling=Sampling(max_tokens=_SAMPLED),
        )
        engine.submit(request)
    while engine.busy:
        engine.step()


def _load_seconds(engine: "TorchEngine") -> float:
    from rl.weight_sync import Piece, WeightReceiver, pack

    parameters = engine.parameters()
    dtype = "bfloat16" if next(iter(parameters.values())).element_size() == 2 else "float32"
    pieces = [Piece(name=name, start=0, values=values.clone().view(-1)) for name, values in parameters.items()]
    receiver, seconds = WeightReceiver(parameters), []
    for version in range(_REPEATS):
        buckets = list(pack(pieces, version=version, rank=0, dtype=dtype, bucket_bytes=64 << 20))
        began = time.perf_counter()
        receiver.begin(version)
        for bucket in buckets:
            receiver.apply(bucket)
        receiver.finish()
        engine.version = version
        _run(engine, rows=1, samples=1, prompt=8)  # the first step takes the weights over
        loaded = time.perf_counter()
        _run(engine, rows=1, samples=1, prompt=8)
        seconds.append(2 * loaded - began - time.perf_counter())
    return max(0.0, statistics.median(seconds))


def probe_learner(config: Config, *, folder: Path, shape: ModelShape, threads: int, prompt: int, response: int) -> LearnerTimings:
    """Time a rank on batches of about `prompt` and `response` tokens a sample."""
    import os

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    from dataclasses import replace

    from rl.learner import Learner

    config = replace(config, learner=replace(config.learner, ranks=1))
    with tempfile.TemporaryDirectory() as scratch:
        learner = Learner(config, model_path=folder, rank=0, world_size=1, init_method=f"file://{scratch}/rendezvous", threads=threads)
        whole = max(1, config.learner.micro_batch_tokens // (prompt + response))
        timings = []
        half = max(1, whole // 2)
        for groups, samples, answer in ((1, 2, 2), (1, 2, response), (half, 2, response), (whole, 2, response), (whole, 4, response)):
            batch = _batch(config, groups=groups, samples=samples, prompt=prompt, answer=answer)
            learner.train_step([batch])
            for _ in range(_REPEATS):
                timings.append(Timing(work=_work(batch, shape), seconds=learner.train_step([batch]).seconds))
        seconds = []
        for version in range(_REPEATS):
            began = time.perf_counter()
            for bucket in learner.buckets(version):
                for piece in bucket.slices:
                    piece.values.copy()
            seconds.append(time.perf_counter() - began)
        learner.close()
    return LearnerTimings(train=_medians(timings), publish=statistics.median(seconds))


def _batch(config: Config, *, groups: int, samples: int, prompt: int, answer: int) -> "Batch":
    from rl.batch import make_batches

    made = [_sample(group, sample, prompt=prompt, answer=answer) for group in range(groups) for sample in range(samples)]
    return make_batches(made, config=config, n_rollouts=len(made))[0][0]


def _sample(group: int, sample: int, *, prompt: int, answer: int) -> "TrainSample":
    from rl.records import TrainSample

    length = prompt + answer
    agent_T = np.arange(length) >= prompt
    return TrainSample(
        rollout_id=f"{group}-{sample}",
        group_index=group,
        token_ids_T=np.full(length, 3, dtype=np.int32),
        agent_mask_T=agent_T,
        behaviour_logprobs_T=np.where(agent_T, -1.0, 0.0).astype(np.float32),
        versions_T=np.where(agent_T, 0, -1).astype(np.int32),
        advantage=1.0 if sample % 2 else -1.0,
        prompt_len=prompt,
    )


def _work(batch: "Batch", shape: ModelShape) -> tuple[float, ...]:
    shapes = [micro_batch.token_ids_BL.shape for micro_batch in batch.micro_batches]
    tokens = sum(rows * length for rows, length in shapes)
    pairs = shape.layers * sum(rows * length * length for rows, length in shapes)
    return 1, len(shapes), tokens, pairs, batch.n_tokens


def _medians(timings: Sequence[Timing]) -> tuple[Timing, ...]:
    """One timing for each kind of work."""
    seconds: dict[tuple[float, ...], list[float]] = {}
    for timing in timings:
        seconds.setdefault(timing.work, []).append(timing.seconds)
    return tuple(Timing(work=work, seconds=statistics.median(values)) for work, values in seconds.items())


def probe_worker(config: Config, *, folder: Path, prompt: int, response: int) -> float:
    """Seconds of a rollout worker for one rollout besides what it waits for: rendering, decoding, records, the log, messages."""
    return asyncio.run(_worker_seconds(config, folder=folder, prompt=prompt, response=response))


async def _worker_seconds(config: Config, *, folder: Path, prompt: int, response: int) -> float:
    from environments.records import Message, Problem, StopReason, Task
    from environments.registry import load_plugins
    from rl.log.flags import Flags
    from rl.log.spans import SpanWriter
    from rl.log.tables import Provenance
    from rl.log.writer import RolloutWriter
    from rl.prompt import Renderer, load_tokenizer
    from rl.records import Completion, GenerateRequest, Sampling
    from rl.rollout import GroupJob, RolloutWorker

    load_plugins(config.run.plugins)

    class AtOnce:
        """A generator that takes no time."""

        async def generate(self, request: GenerateRequest) -> tuple[Completion, ...]:
            ids_T = np.full(response, 3, dtype=np.int32)
            zeros_T = np.zeros(response, dtype=np.float32)
            one = Completion(token_ids_T=ids_T, logprobs_T=zeros_T, versions_T=ids_T, stop_reason=StopReason.STOP_TOKEN)
            return (one,) * len(request.seeds)

        async def release(self, episodes: Sequence[str]) -> None:
            return None

    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = load_tokenizer(folder)
        provenance = Provenance(tokenizer_hash="", template_hash="", logprob_kind="raw")
        writer = RolloutWriter(
            Path(scratch), run_id="probe", attempt=1, writer="w0", tokens=config.log.tokens, provenance=provenance, flagger=Flags()
        )
        spans = SpanWriter(Path(scratch), attempt=1, actor="w0")
        worker = RolloutWorker(
            config, renderer=Renderer(tokenizer), generators=[AtOnce()], write_group=writer.write_group, record_span=spans.record
        )
        text = tokenizer.decode([3] * prompt)
        task = Task(id="t", env="math", prompt=(Message(role="user", content=text),))
        problem = Problem(task=task, reference={"answer": "1"}, source=next(iter(config.tasks)))
        jobs = [
            GroupJob(
                group_id=f"{index:08d}",
                index=index,
                problem=problem,
                split="train",
                n_samples=config.rollout.samples_per_prompt,
                dispatch_version=0,
                sampling=Sampling(max_tokens=response),
                seed=0,
            )
            for index in range(2 * config.rollout.prompts_per_step)
        ]
        half = config.rollout.prompts_per_step
        await asyncio.gather(*(worker.run_group(job) for job in jobs[:half]))
        began = time.process_time()
        outcomes = await asyncio.gather(*(worker.run_group(job) for job in jobs[half:]))
        for outcome in outcomes:
            # Completions on their way from the generator, and groups on their way to the loop, are packed and unpacked.
            for _ in range(_JOURNEYS):
                pickle.loads(pickle.dumps(outcome, protocol=pickle.HIGHEST_PROTOCOL))
        seconds = time.process_time() - began
        await worker.close()
        spans.close()
        writer.close()
    return seconds / (half * config.rollout.samples_per_prompt)
