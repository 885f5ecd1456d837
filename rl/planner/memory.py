"""What each process keeps in memory, part by part, and which setting makes a part smaller.

    learner rank    parameters, master weights and moments, gradients, gathered parameters, activations, output head, buckets
    replica         weights, KV cache, logits, workspace

ZeRO partitions by ranks: stage 3 everything, stages 1 and 2 all but the parameters. The engine's own reserves are those that
`rl/learner.py` configures. Cards and hosts are told apart; on a machine without cards everything is the host's.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from configs.schema import Config
from rl.planner.hardware import Card
from rl.planner.layout import replica_cards, sequence_ranks
from rl.planner.shape import DTYPE_BYTES, ModelShape
from rl.planner.simulate import Simulated

GIB = 1 << 30
_LIVE_PARAMETERS = 1_000_000_000
"""Elements that DeepSpeed's stage 3 keeps gathered at most, or one module's if it has more."""
_REDUCE_ELEMENTS = 50_000_000
"""Of the learner's reduce bucket on cards; it has two, so that one is filled while the other is sent."""
_SUB_GROUP = 100_000_000
"""Elements that the optimizer updates at a time on cards."""
_CARD_RUNTIME = int(2.5 * GIB)
"""Of a card: CUDA's context, NCCL's buffers and what the allocator cannot use."""
_STORED_VERSIONS = 2.5
"""Versions of the weights that an object store has room for (`rl/placement.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Something that a process keeps in memory."""

    name: str
    bytes: float
    change: str = ""
    """What makes it smaller; empty where nothing does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessMemory:
    """The memory of one kind of process, or of one host."""

    kind: str
    count: int
    parts: tuple[Part, ...]
    available: float
    """Bytes that it can have."""

    @property
    def total(self) -> float:
        """Bytes of one of them at its peak."""
        return sum(part.bytes for part in self.parts)

    @property
    def excess(self) -> float:
        """Bytes by which it does not fit; 0 when it fits."""
        return max(0.0, self.total - self.available)

    def problem(self) -> str | None:
        """By how much it does not fit and what to change, largest part first; None when it fits."""
        if not self.excess:
            return None
        helps = [part for part in sorted(self.parts, key=lambda part: -part.bytes) if part.change]
        advice = "; ".join(f"{part.name} {part.bytes / GIB:.1f} GiB: {part.change}" for part in helps[:3])
        return f"{self.kind} needs {self.total / GIB:.1f} GiB and has {self.available / GIB:.1f}: {self.excess / GIB:.1f} GiB too much" + (
            f" ({advice})" if advice else ""
        )


def activation_bytes(shape: ModelShape, *, dtype: str) -> float:
    """Bytes a token that one layer's forward pass keeps for its backward pass, attention scores apart.

    Counted over the tensors that autograd saves in transformers' Llama and CWM layers, in elements: of each of the two norms its
    float32 input (two in bfloat16), its normalized form and its output; queries and keys before, turned for and after the rotation; keys
    and values repeated for their heads; the attention's output twice; gate, up, silu(gate) and their product, and one gradient of that
    size while the backward pass goes on. On an H200 the sum is within 8% of what two layers of CWM 32B take (docs/results/plan.md).
    """
    width = DTYPE_BYTES[dtype]
    norms = 2 * shape.hidden * (4 + 2 * width)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = width * (3 * queries + 3 * keys + keys + 2 * queries + 2 * queries)
    return norms + attention + width * 5 * shape.intermediate


def learner_parts(config: Config, *, shape: ModelShape, batches: Collection[tuple[int, int, int]]) -> list[Part]:
    """A rank's memory on its card at the peak of the backward pass; `batches` as in `Simulated`."""
    learner, width = config.learner, DTYPE_BYTES[config.model.dtype]
    own = shape.parameters / learner.ranks
    more_ranks = "raise learner.ranks"
    parameters = width * (own if learner.zero_stage == 3 else shape.parameters)
    parts = [
        Part(name="parameters", bytes=parameters, change=more_ranks if learner.zero_stage == 3 else "set learner.zero_stage=3"),
    ]
    if not learner.offload_optimizer:
        change = f"set learner.offload_optimizer=true, or {more_ranks}"
        parts += [
            Part(name="gradients", bytes=4 * own, change=change),
            Part(name="master weights and moments", bytes=12 * own, change=change),
            Part(name="optimizer's working copy", bytes=4 * min(own, _SUB_GROUP)),
        ]
    if learner.zero_stage == 3 and learner.ranks > 1:
        live = min(shape.parameters, max(_LIVE_PARAMETERS, shape.head_parameters))
        parts.append(Part(name="gathered parameters", bytes=width * live))
    if learner.ranks > 1:
        parts.append(Part(name="reduce buckets", bytes=2 * width * min(shape.parameters, _REDUCE_ELEMENTS)))
    return [*parts, *most([batch_parts(config, shape=shape, batch=batch) for batch in batches])]


def most(choices: Sequence[list[Part]]) -> list[Part]:
    """Those that take most together; none of no choice."""
    return max(choices, key=lambda parts: sum(part.bytes for part in parts), default=[])


def batch_parts(config: Config, *, shape: ModelShape, batch: tuple[int, int, int]) -> list[Part]:
    """What grows with a micro-batch."""
    learner, dtype = config.learner, config.model.dtype
    width, sharers = DTYPE_BYTES[dtype], sequence_ranks(config)
    tokens, responses = -(-batch[0] // sharers), -(-batch[2] // sharers)
    layer = activation_bytes(shape, dtype=dtype) * tokens
    change = "lower learner.micro_batch_tokens"
    if learner.activation_checkpointing:
        layers = width * shape.hidden * tokens * shape.layers + layer
    else:
        layers = layer * shape.layers
        change = "set learner.activation_checkpointing=true, or " + change
    chunk = min(responses, learner.head_chunk_tokens)
    head = chunk * shape.vocab * (2 * width + 8) + width * shape.head_parameters + 2 * width * responses * shape.hidden
    return [
        Part(name="activations", bytes=layers, change=change),
        Part(name="output head", bytes=head, change="lower learner.head_chunk_tokens"),
    ]


def replica_parts(config: Config, *, shape: ModelShape, simulated: Simulated) -> list[Part]:
    """Memory of one of the cards of a replica at its peak."""
    dtype = config.generator.dtype or config.model.dtype
    width, cards = DTYPE_BYTES[dtype], replica_cards(config)
    cache = simulated.peak_positions * shape.kv_bytes_of_position(dtype=dtype) / cards
    return [
        Part(
            name="weights", bytes=width * shape.parameters / cards, change="set generator.engine=vllm and raise vllm.tensor_parallel_size"
        ),
        Part(
            name=f"KV cache of {simulated.peak_sequences} sequences",
            bytes=cache,
            change="lower generator.slots or model.context_length, or raise generator.replicas",
        ),
        Part(name="logits", bytes=simulated.peak_sequences * shape.vocab * 8 / cards),
    ]


def card_memory(config: Config, *, shape: ModelShape, simulated: Simulated, card: Card) -> tuple[ProcessMemory, ...]:
    """Ranks and replicas on their cards, and their hosts."""
    learner = config.learner
    runtime = Part(name="CUDA and NCCL", bytes=_CARD_RUNTIME)
    ranks = ProcessMemory(
        kind="learner rank's card",
        count=learner.ranks,
        parts=(*learner_parts(config, shape=shape, batches=simulated.batches), runtime),
        available=card.memory,
    )
    replicas = ProcessMemory(
        kind="replica's card",
        count=config.generator.replicas * replica_cards(config),
        parts=(*replica_parts(config, shape=shape, simulated=simulated), runtime),
        available=card.memory * (config.vllm.memory_share if config.generator.engine == "vllm" else 1.0),
    )
    return ranks, replicas, *_hosts(config, shape=shape, card=card)


def _hosts(config: Config, *, shape: ModelShape, card: Card) -> Sequence[ProcessMemory]:
    """The memory of a learner node and of a generator node, besides what programs take anyway."""
    learner, width = config.learner, DTYPE_BYTES[config.generator.dtype or config.model.dtype]
    own, version = shape.parameters / learner.ranks, width * shape.parameters
    ranks = min(learner.ranks, card.cards_a_node)
    parts = [Part(name="buckets of the versions", bytes=_STORED_VERSIONS * version * ranks / learner.ranks)]
    if learner.offload_optimizer:
        parts.append(Part(name="master weights, moments and gradients", bytes=16 * own * ranks, change="raise learner.ranks"))
    if learner.weight_sync == "delta":
        parts.append(Part(name="weights that were sent", bytes=width * own * ranks, change="set learner.weight_sync=full"))
    generators = config.generator.replicas * replica_cards(config)
    stored = Part(name="buckets of the versions", bytes=_STORED_VERSIONS * version)
    return (
        ProcessMemory(
            kind="learner node's host", count=-(-learner.ranks // card.cards_a_node), parts=tuple(parts), available=ranks * card.host_memory
        ),
        ProcessMemory(
            kind="generator node's host",
            count=-(-generators // card.cards_a_node),
            parts=(stored,),
            available=min(card.cards_a_node, generators) * card.host_memory,
        ),
    )
