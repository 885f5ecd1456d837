"""Costs on cards: operations and bytes over what the hardware table says that a card reaches.

    decode     weights are read once a step, keys and values once a sequence; a replica's cards share both
    train      6 operations a parameter and token (8 with activation checkpointing), gathers of ZeRO-3 beside them
    sync       a rank's partition to its host, then over the network into every generator node, then into the cards

What is not in here: stragglers, failures, other jobs on the network.
"""

from configs.schema import Config
from rl.planner.costs import Costs, DecodeCost, GroupCost, PassCost
from rl.planner.hardware import Card
from rl.planner.layout import replica_cards, sequence_ranks
from rl.planner.shape import DTYPE_BYTES, ModelShape

STORE_BANDWIDTH = 5e9
"""Bytes/s that Ray's object store moves from one node to another over TCP; assumed."""
DELTA_SHARE = 0.05
"""Bytes of a delta over those of a whole version, the most that was measured at learning rate 1e-6 (docs/results/benchmarks.md)."""
_ADAMW_BYTES = 28
"""That fused AdamW moves a float32 parameter: four are read, three written."""
_REDUCE_LATENCY = 15e-6
"""Seconds of a small reduction between the cards of a replica."""
_ROLLOUT_SECONDS = 0.005
"""Of a rollout worker for one rollout; measured on a CPU with short rollouts."""
_STEP_SECONDS = 0.2
"""Of the loop, the log and the calls around a training step; assumed."""


def card_costs(config: Config, *, shape: ModelShape, card: Card) -> Costs:
    """Costs of a configuration whose ranks have a card each."""
    cards = replica_cards(config)
    return Costs(
        decode=_decode(config, shape=shape, card=card, cards=cards),
        prefill=_prefill(shape, card=card, cards=cards),
        train=_train(config, shape=shape, card=card),
        train_step=_STEP_SECONDS,
        optimizer=_optimizer(config, shape=shape, card=card),
        publish=_sync_bytes(config, shape) / config.learner.ranks / card.host_out,
        load=_load(config, shape=shape, card=card, cards=cards),
        refresh=0.0,
        group=GroupCost(worker_end=_ROLLOUT_SECONDS * config.rollout.samples_per_prompt),
        between=_STEP_SECONDS,
        covers_rows=False,
    )


def _decode(config: Config, *, shape: ModelShape, card: Card, cards: int) -> DecodeCost:
    dtype = config.generator.dtype or config.model.dtype
    weights = DTYPE_BYTES[dtype] * (shape.layers * shape.layer_parameters + shape.head_parameters)
    bandwidth = cards * card.bandwidth
    reduces = 2 * shape.layers * _REDUCE_LATENCY if cards > 1 else 0.0
    operations = 2 * (shape.layers * shape.layer_matrices + shape.head_parameters)
    return DecodeCost(
        step=weights / (bandwidth * card.shares.decode_weights) + reduces,
        sequence=operations / (cards * card.flops * card.shares.decode_sequence),
        position=shape.kv_bytes_of_position(dtype=dtype) / (bandwidth * card.shares.decode_cache),
    )


def _prefill(shape: ModelShape, *, card: Card, cards: int) -> PassCost:
    rate = cards * card.flops * card.shares.prefill
    return PassCost(
        call=0.0,
        token=2 * shape.layers * shape.layer_matrices / rate,
        pair=4 * shape.heads * shape.head_dim / rate,
        response=2 * shape.head_parameters / rate,
    )


def _train(config: Config, *, shape: ModelShape, card: Card) -> PassCost:
    learner = config.learner
    rate, passes = card.flops * card.shares.train, 4 if learner.activation_checkpointing else 3
    nbytes = DTYPE_BYTES[config.model.dtype] * shape.parameters
    gathers = (passes - 1 if learner.zero_stage == 3 else 0) + 1
    """Of the parameters before each pass, and the gradients' reduction."""
    transfers = gathers * nbytes / _collective(config, card) if learner.ranks > 1 else 0.0
    sharers = sequence_ranks(config)
    # Ranks that share a sequence exchange queries, keys, values and the result before and after attention.
    exchanged = 2 * DTYPE_BYTES[config.model.dtype] * (shape.heads + shape.kv_heads) * shape.head_dim * shape.layers * passes
    exchange = exchanged / (card.link * card.shares.link) if sharers > 1 else 0.0
    return PassCost(
        call=0.0,
        token=(2 * passes * shape.layers * shape.layer_matrices / rate + exchange) / sharers,
        pair=4 * passes * shape.heads * shape.head_dim / (card.flops * card.shares.attention) / sharers,
        response=8 * shape.head_parameters / (card.flops * card.shares.head) / sharers,
        beside=transfers,
    )


def _collective(config: Config, card: Card) -> float:
    """Bytes/s at which a rank receives in a collective over all ranks."""
    link = card.link if config.learner.ranks <= card.cards_a_node else card.network
    return link * card.shares.link


def _optimizer(config: Config, *, shape: ModelShape, card: Card) -> float:
    own = shape.parameters / config.learner.ranks
    if not config.learner.offload_optimizer:
        seconds = _ADAMW_BYTES * own / (card.bandwidth * card.shares.optimizer)
    else:
        seconds = _ADAMW_BYTES * own / card.host_bandwidth + (4 + DTYPE_BYTES[config.model.dtype]) * own / card.host_link
    if config.learner.zero_stage < 3 and config.learner.ranks > 1:
        seconds += DTYPE_BYTES[config.model.dtype] * shape.parameters / _collective(config, card)
    return seconds


def _sync_bytes(config: Config, shape: ModelShape) -> float:
    """Of a version, as it is shipped."""
    whole = DTYPE_BYTES[config.generator.dtype or config.model.dtype] * shape.parameters
    return whole * (DELTA_SHARE if config.learner.weight_sync == "delta" else 1.0)


def _load(config: Config, *, shape: ModelShape, card: Card, cards: int) -> float:
    """Each generator node fetches a version once; then every replica copies it in."""
    nbytes = _sync_bytes(config, shape)
    senders = -(-config.learner.ranks // card.cards_a_node)
    receivers = -(-config.generator.replicas * cards // card.cards_a_node)
    network = max(nbytes, nbytes * receivers / senders) / STORE_BANDWIDTH
    return network + nbytes / cards / card.host_in
