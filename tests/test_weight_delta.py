"""Deltas: a generator that applies them holds the very bits of a whole version, or is told to be seeded again."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from rl.records import WeightBucket
from rl.weight_delta import pack_gaps, unpack_gaps
from rl.weight_sender import WeightSender
from rl.weight_sync import BaseMissing, Piece, WeightReceiver, WeightSyncError, checksum

SHAPES = {"embed": (37, 24), "norm": (24,), "proj": (31, 24)}


class Ranks:
    """Weights that change a little at each step, cut into the partitions of some ranks."""

    def __init__(self, *, ranks: int = 2, dtype: str = "bfloat16", seed: int = 3) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.weights = {name: torch.randn(shape, generator=self.rng).to(getattr(torch, dtype)) for name, shape in SHAPES.items()}
        self.senders = [WeightSender(rank=rank, dtype=dtype, bucket_bytes=256, deltas=True) for rank in range(ranks)]

    def move(self, share: float = 0.02) -> None:
        """Change about that share of all elements."""
        for weight in self.weights.values():
            chosen = torch.rand(weight.shape, generator=self.rng) < share
            weight[chosen] += torch.randn(weight.shape, generator=self.rng).to(weight.dtype)[chosen]

    def pieces(self, rank: int) -> Iterator[Piece]:
        for name, weight in self.weights.items():
            share = -(-weight.numel() // len(self.senders))
            start = min(rank * share, weight.numel())
            yield Piece(name=name, start=start, values=weight.reshape(-1)[start : start + share])

    def send(self, version: int, *, delta: bool) -> list[WeightBucket]:
        found = []
        for rank, sender in enumerate(self.senders):
            send = sender.delta if delta else sender.whole
            found += [replace(one, slices=tuple(map(_copied, one.slices))) for one in send(self.pieces(rank), version=version)]
        return found


def _copied(piece):  # type: ignore[no-untyped-def]
    return replace(piece, values=np.frombuffer(piece.values.tobytes(), dtype=np.uint8))  # read-only, as from an object store


def empty(dtype: torch.dtype = torch.bfloat16) -> tuple[dict[str, torch.Tensor], WeightReceiver]:
    parameters = {name: torch.zeros(shape, dtype=dtype) for name, shape in SHAPES.items()}
    return parameters, WeightReceiver(parameters)


def take(receiver: WeightReceiver, buckets: list[WeightBucket], *, finish: bool = True) -> str:
    receiver.begin(buckets[0].version, base=buckets[0].base)
    for bucket in reversed(buckets):
        receiver.apply(bucket)
    return receiver.finish() if finish else ""


def bits(weights: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: weight.view(torch.uint8).numpy().tobytes() for name, weight in weights.items()}


@pytest.mark.parametrize("indices", [[], [0], [127], [128], [0, 1, 2], [5, 133, 16_517, 16_518, 3_000_000, 500_000_000]])
def test_gaps_come_back(indices: list[int]) -> None:
    packed = pack_gaps(np.array(indices, dtype=np.int64))
    assert unpack_gaps(packed, count=1 << 30).tolist() == indices


def test_random_gaps_come_back_in_little_more_than_a_byte_each() -> None:
    changed = np.flatnonzero(np.random.default_rng(0).random(1_000_000) < 0.01)
    packed = pack_gaps(changed)
    assert np.array_equal(unpack_gaps(packed, count=1_000_000), changed)
    assert len(packed) < 1.35 * len(changed)


@pytest.mark.parametrize(("packed", "why"), [([0x80], "cut off"), ([0x80] * 5 + [1], "6 bytes"), ([100], "element 100 of a slice of 100")])
def test_bytes_that_are_no_gaps_are_refused(packed: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        unpack_gaps(np.array(packed, dtype=np.uint8), count=100)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_fifty_deltas_are_the_bits_of_the_whole(dtype: str, ranks: int) -> None:
    source = Ranks(ranks=ranks, dtype=dtype)
    parameters, receiver = empty(getattr(torch, dtype))
    whole_bytes = sum(bucket.nbytes for bucket in source.send(0, delta=False))
    take(receiver, source.send(0, delta=False))
    for version in range(1, 51):
        source.move()
        buckets = source.send(version, delta=True)
        total = take(receiver, buckets)
        assert sum(bucket.nbytes for bucket in buckets) < 0.1 * whole_bytes
        assert all(bucket.nbytes <= 256 for bucket in buckets)
    assert bits(parameters) == bits(source.weights)
    twin, other = empty(getattr(torch, dtype))
    assert take(other, source.send(51, delta=False)) == total and bits(twin) == bits(parameters)


def test_signs_of_zero_and_payloads_of_nan_are_changes_too() -> None:
    source = Ranks()
    source.weights["norm"].zero_()
    parameters, receiver = empty()
    take(receiver, source.send(0, delta=False))
    source.weights["norm"][3] = -0.0
    source.weights["norm"][4] = float("nan")
    take(receiver, source.send(1, delta=True))
    source.weights["norm"].view(torch.int16)[4] += 1
    take(receiver, source.send(2, delta=True))
    assert bits(parameters) == bits(source.weights)


def test_a_delta_is_never_larger_than_the_whole() -> None:
    source = Ranks()
    parameters, receiver = empty()
    whole = source.send(0, delta=False)
    take(receiver, whole)
    source.move(share=1.0)
    buckets = source.send(1, delta=True)
    assert sum(bucket.nbytes for bucket in buckets) <= sum(bucket.nbytes for bucket in whole)
    take(receiver, buckets)
    assert bits(parameters) == bits(source.weights)


def test_a_generator_that_missed_a_version_asks_for_a_seed_and_catches_up() -> None:
    source = Ranks()
    parameters, receiver = empty()
    versions = [source.send(0, delta=False)]
    take(receiver, versions[0])
    for version in (1, 2):
        source.move()
        versions.append(source.send(version, delta=True))
    with pytest.raises(BaseMissing, match="version 2 is told against version 1, and this generator holds version 0"):
        take(receiver, versions[2])
    _, late = empty()
    with pytest.raises(BaseMissing, match="this generator holds no version"):
        take(late, versions[1])
    for buckets in versions:
        take(receiver, buckets, finish=False)
    receiver.finish()
    assert bits(parameters) == bits(source.weights)


def test_an_interrupted_delta_is_no_base() -> None:
    source = Ranks()
    _, receiver = empty()
    take(receiver, source.send(0, delta=False))
    source.move()
    first = source.send(1, delta=True)
    receiver.begin(1, base=0)
    receiver.apply(first[0])
    source.move()
    with pytest.raises(BaseMissing):
        take(receiver, source.send(2, delta=True))


def test_a_parameter_that_was_not_what_the_sender_thinks_is_noticed() -> None:
    source = Ranks()
    parameters, receiver = empty()
    take(receiver, source.send(0, delta=False))
    parameters["proj"][7, 7] += 1
    source.move()
    with pytest.raises(BaseMissing, match="parameter proj was not that of version 0"):
        take(receiver, source.send(1, delta=True))


def test_damaged_changes_and_another_base_are_refused() -> None:
    source = Ranks(ranks=1)
    _, receiver = empty()
    take(receiver, source.send(0, delta=False))
    source.move()
    buckets = source.send(1, delta=True)
    at = next(i for i, piece in enumerate(buckets[0].slices) if piece.gaps is not None and len(piece.gaps) > 1)
    piece = buckets[0].slices[at]

    def damaged(**changes: object) -> WeightBucket:
        slices = (*buckets[0].slices[:at], replace(piece, **changes), *buckets[0].slices[at + 1 :])  # type: ignore[arg-type]
        return replace(buckets[0], slices=slices, checksum=checksum(slices))

    receiver.begin(1, base=0)
    with pytest.raises(WeightSyncError, match="the checksum does not match"):
        receiver.apply(replace(damaged(gaps=piece.gaps[1:]), checksum=buckets[0].checksum))
    with pytest.raises(WeightSyncError, match=f"bytes for {len(piece.values) // 2 - 1} changes of parameter {piece.name}"):
        receiver.apply(damaged(gaps=piece.gaps[1:]))
    with pytest.raises(WeightSyncError, match="cannot be read: the last gap is cut off"):
        receiver.apply(damaged(gaps=np.array([0x81], dtype=np.uint8)))
    with pytest.raises(WeightSyncError, match="told against version 5, but version 0 was announced"):
        receiver.apply(replace(buckets[0], base=5))


def test_a_delta_needs_a_version_that_was_sent_whole() -> None:
    source = Ranks()
    with pytest.raises(ValueError, match="version 4 cannot be sent as a delta: no version was sent whole before"):
        source.send(4, delta=True)
