"""The memory of a whole run on one machine without cards: all its processes together, pages that they share counted once.

What a model, a batch and running sequences take is computed. What the processes hold besides, Python, torch, DeepSpeed, Ray and the pages
that their allocators keep, is what a rehearsal measured, less what is computed for the work that it did.
"""

from collections.abc import Collection
from dataclasses import dataclass

from configs.schema import Config
from rl.eager_scores import EAGER_SCORES
from rl.planner.memory import Part, ProcessMemory, activation_bytes, most
from rl.planner.rehearsal import Peak, Rehearsed
from rl.planner.shape import DTYPE_BYTES, ModelShape
from rl.planner.simulate import Simulated

_SCORE_BYTES = 10
"""A score and layer, until the backward pass."""
_LEARNER_SUB_GROUP = 4_000_000
"""Elements that the learner's optimizer updates at a time on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostMemory:
    """Bytes of processes besides what is computed, all of a kind together."""

    driver: float
    ray: float
    worker: float
    learner: float
    generator: float


def at_rest(config: Config, *, shape: ModelShape, seen: Rehearsed) -> HostMemory:
    """What a rehearsal's processes hold besides their work."""
    learner = sum(part.bytes for part in _learner(config, shape=shape, batches=seen.peak.batches))
    generator = sum(part.bytes for part in _replicas(config, shape=shape, peak=seen.peak))
    measured = seen.memory
    return HostMemory(
        driver=measured["driver"],
        ray=measured["ray"],
        worker=measured["worker"],
        learner=max(0.0, measured["learner"] - learner),
        generator=max(0.0, measured["generator"] - generator),
    )


def host_memory(config: Config, *, shape: ModelShape, simulated: Simulated, at_rest: HostMemory, available: float) -> ProcessMemory:
    """Peak of the sum over the processes, in bytes. `available`: the machine's memory."""
    peak = Peak(batches=simulated.batches, positions=simulated.peak_positions, sequences=simulated.peak_sequences)
    parts = [
        Part(name="driver and Ray", bytes=at_rest.driver + at_rest.ray),
        Part(name="rollout workers", bytes=at_rest.worker, change="lower rollout.workers"),
        Part(name="learner processes", bytes=at_rest.learner),
        Part(name="generator processes", bytes=at_rest.generator),
        *_learner(config, shape=shape, batches=peak.batches),
        *_replicas(config, shape=shape, peak=peak),
    ]
    return ProcessMemory(kind="machine", count=1, parts=tuple(parts), available=available)


def _learner(config: Config, *, shape: ModelShape, batches: Collection[tuple[int, int, int]]) -> list[Part]:
    """All ranks together."""
    learner, width = config.learner, DTYPE_BYTES[config.model.dtype]
    masters = 4 if width == 2 else 0
    whole = 1 if learner.zero_stage == 3 else learner.ranks
    return [
        Part(name="parameters", bytes=width * shape.parameters * whole),
        Part(name="master weights and moments", bytes=(masters + 8) * shape.parameters, change="take a smaller model"),
        Part(name="gradients", bytes=4 * shape.parameters),
        Part(name="optimizer's working copy", bytes=learner.ranks * 4 * min(shape.parameters, _LEARNER_SUB_GROUP)),
        *most([_batch(config, shape=shape, batch=batch) for batch in batches]),
    ]


def _batch(config: Config, *, shape: ModelShape, batch: tuple[int, int, int]) -> list[Part]:
    """A micro-batch of each rank."""
    learner, dtype = config.learner, config.model.dtype
    width, (tokens, length, responses) = DTYPE_BYTES[dtype], batch
    rows = max(1, tokens // max(1, length))
    scores = shape.heads * rows * length * length
    kept = scores * _SCORE_BYTES * shape.layers if scores <= EAGER_SCORES else 0
    layers = (1 if learner.activation_checkpointing else shape.layers) * activation_bytes(shape, dtype=dtype) * tokens + kept
    chunk = min(responses, learner.head_chunk_tokens)
    head = chunk * shape.vocab * (2 * width + 8) + width * shape.head_parameters
    change = "lower learner.micro_batch_tokens" + (
        "" if learner.activation_checkpointing else ", or set learner.activation_checkpointing=true"
    )
    return [
        Part(name="activations", bytes=learner.ranks * layers, change=change),
        Part(name="output head", bytes=learner.ranks * head, change="lower learner.head_chunk_tokens"),
    ]


def _replicas(config: Config, *, shape: ModelShape, peak: Peak) -> list[Part]:
    """All replicas together."""
    dtype = config.generator.dtype or config.model.dtype
    width, replicas = DTYPE_BYTES[dtype], config.generator.replicas
    # In bfloat16 the matrices are kept in a second layout (`rl/engines/decoder.py`).
    matrices = shape.layers * shape.layer_matrices + shape.head_parameters
    weights = width * shape.parameters + (width * matrices if dtype == "bfloat16" else 0)
    cache = peak.positions * shape.kv_bytes_of_position(dtype=dtype)
    return [
        Part(name="weights of the generators", bytes=replicas * weights, change="lower generator.replicas"),
        Part(name="KV cache", bytes=replicas * cache, change="lower generator.slots or model.context_length"),
        Part(name="logits", bytes=replicas * peak.sequences * shape.vocab * 8),
    ]
