"""What the cards can do: published figures, and the share of them that real work reaches.

The shares are measured on a slice of CWM 32B on one H200 (docs/results/plan.md); the other cards take the same shares of their own
figures. Links between cards and nodes are not measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

GB = 1e9
GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What real work reaches of a card's peak figures."""

    train: float
    """Of the matrix rate, in the layers' forward and backward passes."""
    attention: float
    """Of the matrix rate, in attention over packed documents with its backward pass."""
    head: float
    """Of the matrix rate, in the chunked head with its backward pass."""
    prefill: float
    """Of the matrix rate, in a forward pass."""
    decode_weights: float
    """Of the memory bandwidth, when a decode step reads the weights."""
    decode_sequence: float
    """Of the matrix rate, in what each further sequence adds to a decode step; above 1, because it runs beside the reading."""
    decode_cache: float
    """Of the memory bandwidth, when a decode step reads keys and values."""
    optimizer: float
    """Of the memory bandwidth, in fused AdamW."""
    link: float
    """Of a link's bandwidth, in collectives; assumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """An accelerator and the node around it. Bandwidths are bytes/s in one direction unless said otherwise."""

    name: str
    memory: int
    """Bytes that programs can have."""
    flops: float
    """Dense bfloat16 operations/s."""
    bandwidth: float
    """Of the card's memory."""
    link: float
    """To the other cards of the node, a card."""
    network: float
    """To other nodes, a card."""
    host_link: float
    """To the host's memory, a card, from pinned memory."""
    host_in: float
    """From the host's memory that is not pinned: a bucket on its way into the card."""
    host_out: float
    """Into fresh memory of the host: a bucket on its way out of the card."""
    host_bandwidth: float
    """Of the host's memory, a card: the optimizer's when its state is offloaded."""
    cards_a_node: int
    host_memory: int
    """Bytes of host memory, a card."""
    shares: Shares
    source: str


_MEASURED = Shares(
    train=0.53,
    attention=0.34,
    head=0.50,
    prefill=0.55,
    decode_weights=0.67,
    decode_sequence=2.2,
    decode_cache=0.93,
    optimizer=0.72,
    link=0.7,
)
"""On the H200."""

H100 = Card(
    name="h100",
    memory=int(79.1 * GIB),
    flops=989e12,
    bandwidth=3350 * GB,
    link=450 * GB,
    network=50 * GB,
    host_link=55 * GB,
    host_in=8.4 * GB,
    host_out=1.35 * GB,
    host_bandwidth=110 * GB,
    cards_a_node=8,
    host_memory=240 * GIB,
    shares=_MEASURED,
    source="NVIDIA H100 SXM5 80 GB data sheet: 989 TFLOP/s dense bf16, 3.35 TB/s, NVLink 900 GB/s in both directions; 400 Gb/s a card",
)
H200 = replace(
    H100,
    name="h200",
    memory=int(139.8 * GIB),
    bandwidth=4800 * GB,
    source="NVIDIA H200 SXM 141 GB data sheet: 989 TFLOP/s dense bf16, 4.8 TB/s, NVLink 900 GB/s in both directions; 400 Gb/s a card",
)
A100 = Card(
    name="a100",
    memory=int(79.1 * GIB),
    flops=312e12,
    bandwidth=2039 * GB,
    link=300 * GB,
    network=25 * GB,
    host_link=25 * GB,
    host_in=8.4 * GB,
    host_out=1.35 * GB,
    host_bandwidth=60 * GB,
    cards_a_node=8,
    host_memory=120 * GIB,
    shares=_MEASURED,
    source="NVIDIA A100 SXM4 80 GB data sheet: 312 TFLOP/s dense bf16, 2.039 TB/s, NVLink 600 GB/s in both directions; 200 Gb/s a card",
)
CARDS: Mapping[str, Card] = {card.name: card for card in (H100, H200, A100)}
