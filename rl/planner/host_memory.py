"""The memory of a whole run on one machine without cards: all its processes together, pages that they share counted once."""

from configs.schema import Config
from rl.planner.memory import Part, ProcessMemory, activation_bytes
from rl.planner.shape import DTYPE_BYTES, ModelShape
from rl.planner.simulate import Simulated

_MIB = 1 << 20
_DRIVER, _RAY, _WORKER, _LEARNER, _REPLICA = (size * _MIB for size in (450, 330, 290, 440, 400))
"""Proportional set sizes of processes that hold nothing yet: Python, torch, Ray. Measured (docs/results/plan.md)."""
_EAGER_SCORES = 16_000_000
"""`rl/policy.py`: with more attention scores a layer, none are kept."""
_SCORE_BYTES = 10
"""A score and layer, until the backward pass."""
_LEARNER_SUB_GROUP = 4_000_000
"""Elements that the learner's optimizer updates at a time on a CPU."""


def host_memory(config: Config, *, shape: ModelShape, simulated: Simulated, available: float) -> ProcessMemory:
    """Peak of the sum over the processes, in bytes. `available`: the machine's memory."""
    learner, replicas = config.learner, config.generator.replicas
    parts = [
        Part(name="driver and Ray", bytes=_DRIVER + _RAY),
        Part(name="rollout workers", bytes=_WORKER * config.rollout.workers, change="lower rollout.workers"),
        Part(name="learner processes", bytes=_LEARNER * learner.ranks),
        Part(name="generator processes", bytes=_REPLICA * replicas),
        *_learner(config, shape=shape, batch=simulated.peak_batch),
        *_replicas(config, shape=shape, simulated=simulated),
    ]
    return ProcessMemory(kind="machine", count=1, parts=tuple(parts), available=available)


def _learner(config: Config, *, shape: ModelShape, batch: tuple[int, int, int]) -> list[Part]:
    learner, dtype = config.learner, config.model.dtype
    width, (tokens, length, responses) = DTYPE_BYTES[dtype], batch
    masters = 4 if width == 2 else 0
    whole = 1 if learner.zero_stage == 3 else learner.ranks
    rows = max(1, tokens // max(1, length))
    scores = shape.heads * rows * length * length
    kept = scores * _SCORE_BYTES * shape.layers if scores <= _EAGER_SCORES else 0
    layer = activation_bytes(shape, dtype=dtype) * tokens
    chunk = min(responses, learner.head_chunk_tokens)
    head = chunk * shape.vocab * (2 * width + 8) + width * shape.head_parameters
    each = learner.ranks
    layers = (shape.layers if not learner.activation_checkpointing else 1) * layer + kept
    return [
        Part(name="parameters", bytes=width * shape.parameters * whole),
        Part(name="master weights and moments", bytes=(masters + 8) * shape.parameters, change="take a smaller model"),
        Part(name="gradients", bytes=4 * shape.parameters),
        Part(
            name="activations",
            bytes=each * layers,
            change="lower learner.micro_batch_tokens"
            + ("" if learner.activation_checkpointing else ", or set learner.activation_checkpointing=true"),
        ),
        Part(name="output head", bytes=each * head, change="lower learner.head_chunk_tokens"),
        Part(name="optimizer's working copy", bytes=each * 4 * min(shape.parameters, _LEARNER_SUB_GROUP)),
    ]


def _replicas(config: Config, *, shape: ModelShape, simulated: Simulated) -> list[Part]:
    dtype = config.generator.dtype or config.model.dtype
    width, replicas = DTYPE_BYTES[dtype], config.generator.replicas
    # In bfloat16 the matrices are kept in a second layout (`rl/engines/decoder.py`).
    matrices = shape.layers * shape.layer_matrices + shape.head_parameters
    weights = width * shape.parameters + (width * matrices if dtype == "bfloat16" else 0)
    cache = simulated.peak_positions * shape.kv_bytes_of_position(dtype=dtype)
    stored = DTYPE_BYTES[config.generator.dtype or config.model.dtype] * shape.parameters
    return [
        Part(name="weights of the generators", bytes=replicas * weights, change="lower generator.replicas"),
        Part(name="KV cache", bytes=replicas * cache, change="lower generator.slots or model.context_length"),
        Part(name="logits", bytes=replicas * simulated.peak_sequences * shape.vocab * 8),
        Part(name="weights on their way", bytes=2 * stored),
    ]
