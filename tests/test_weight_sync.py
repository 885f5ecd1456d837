"""Weights arrive bit for bit, in place, from any number of ranks; anything else is an error that names what is wrong."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from rl.records import WeightBucket
from rl.weight_sync import Piece, WeightReceiver, WeightSyncError, checksum, pack


def source_weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {"embed": (11, 6), "norm": (6,), "proj": (5, 6)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def shipped(weights: dict[str, torch.Tensor], *, ranks: int, dtype: str, version: int = 1, bucket_bytes: int = 64) -> list[WeightBucket]:
    """Every parameter cut into equal shares (the last one shorter, or empty), as ZeRO does."""
    buckets = []
    for rank in range(ranks):
        pieces = []
        for name, weight in weights.items():
            share = -(-weight.numel() // ranks)
            start = min(rank * share, weight.numel())
            pieces.append(Piece(name=name, start=start, values=weight.reshape(-1)[start : start + share]))
        buckets += list(pack(pieces, version=version, rank=rank, dtype=dtype, bucket_bytes=bucket_bytes))
    return buckets


def receive(parameters: dict[str, torch.Tensor], buckets: Sequence[WeightBucket], version: int = 1) -> str:
    receiver = WeightReceiver(parameters)
    receiver.begin(version)
    for bucket in buckets:
        receiver.apply(bucket)
    return receiver.finish()


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_arrive_bit_for_bit_in_bounded_buckets(ranks: int, dtype: str) -> None:
    torch_dtype = getattr(torch, dtype)
    weights = source_weights(torch_dtype)
    buckets = shipped(weights, ranks=ranks, dtype=dtype)
    assert all(sum(piece.values.nbytes for piece in bucket.slices) <= 64 for bucket in buckets)
    assert [bucket.index for bucket in buckets if bucket.last] and sum(bucket.last for bucket in buckets) == ranks
    target = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    receive(target, list(reversed(buckets)))
    for name, weight in weights.items():
        assert torch.equal(target[name], weight)


def test_receiver_writes_through_row_views_of_a_fused_weight() -> None:
    weights = source_weights()
    fused = torch.zeros(16, 6)
    storage = fused.data_ptr()
    receive({"embed": fused[:11], "proj": fused[11:], "norm": torch.zeros(6)}, shipped(weights, ranks=2, dtype="float32"))
    assert torch.equal(fused, torch.cat([weights["embed"], weights["proj"]]))
    assert fused.data_ptr() == storage


@pytest.mark.parametrize(("sent", "held"), [("bfloat16", torch.float32), ("float32", torch.bfloat16)])
def test_receiver_converts_between_precisions(sent: str, held: torch.dtype) -> None:
    weights = source_weights()
    target = {name: torch.zeros_like(weight, dtype=held) for name, weight in weights.items()}
    receive(target, shipped(weights, ranks=2, dtype=sent))
    for name, weight in weights.items():
        assert torch.equal(target[name], weight.to(torch.bfloat16).to(held))


def test_receiver_accepts_read_only_buffers() -> None:
    weights = source_weights()
    frozen = []
    for bucket in shipped(weights, ranks=1, dtype="float32"):
        slices = tuple(replace(piece, values=np.frombuffer(piece.values.tobytes(), dtype=np.uint8)) for piece in bucket.slices)
        frozen.append(replace(bucket, slices=slices))
    for held in (torch.float32, torch.bfloat16):
        target = {name: torch.zeros_like(weight, dtype=held) for name, weight in weights.items()}
        receive(target, frozen)
        assert all(torch.equal(target[name], weight.to(held)) for name, weight in weights.items())


def test_version_checksum_depends_on_the_weights_alone() -> None:
    weights = source_weights()

    def sum_of(weights: dict[str, torch.Tensor], **cut: int) -> str:
        target = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        return receive(target, shipped(weights, dtype="float32", **cut))

    one = sum_of(weights, ranks=1)
    assert one == sum_of(weights, ranks=3, bucket_bytes=24)
    weights["norm"][3] += 1e-3
    assert one != sum_of(weights, ranks=1)


def test_damaged_bucket_is_refused_before_anything_is_written() -> None:
    weights = source_weights()
    bucket = shipped(weights, ranks=1, dtype="float32")[0]
    values = bucket.slices[0].values.copy()
    values[2] ^= 1
    damaged = replace(bucket, slices=(replace(bucket.slices[0], values=values), *bucket.slices[1:]))
    target = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    receiver = WeightReceiver(target)
    receiver.begin(1)
    with pytest.raises(WeightSyncError, match=r"version 1: the checksum .*embed"):
        receiver.apply(damaged)
    assert not target["embed"].any()


def test_bucket_of_another_version_is_refused() -> None:
    receiver = WeightReceiver({name: torch.zeros_like(weight) for name, weight in source_weights().items()})
    receiver.begin(2)
    with pytest.raises(WeightSyncError, match=r"version 1: the receiver is at version 2"):
        receiver.apply(shipped(source_weights(), ranks=1, dtype="float32", version=1)[0])


def test_missing_doubled_and_unknown_pieces_are_named() -> None:
    weights = source_weights()
    buckets = shipped(weights, ranks=1, dtype="float32")
    target = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with pytest.raises(WeightSyncError, match=r"version 1: element \d+ of parameter embed was not received"):
        receive(target, buckets[1:])
    with pytest.raises(WeightSyncError, match=r"parameter proj was not received"):
        receive(target, buckets[:-1])
    with pytest.raises(WeightSyncError, match=r"parameter embed was received twice"):
        receive(target, [*buckets, buckets[0]])
    with pytest.raises(WeightSyncError, match=r"no parameter embed"):
        receive({"norm": target["norm"]}, buckets)
    with pytest.raises(WeightSyncError, match="finish without begin"):
        WeightReceiver(target).finish()


def test_slice_that_does_not_fit_is_refused() -> None:
    weights = source_weights()
    smaller = {"embed": torch.zeros(2, 6), "norm": torch.zeros(6), "proj": torch.zeros(5, 6)}
    with pytest.raises(WeightSyncError, match=r"do not fit parameter embed of 12 elements"):
        receive(smaller, shipped(weights, ranks=1, dtype="float32"))


def test_interrupted_version_can_be_started_again() -> None:
    weights = source_weights()
    target = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    receiver = WeightReceiver(target)
    receiver.begin(1)
    receiver.apply(shipped(weights, ranks=1, dtype="float32")[0])
    receiver.begin(2)
    for bucket in shipped(weights, ranks=2, dtype="float32", version=2):
        receiver.apply(bucket)
    receiver.finish()
    assert all(torch.equal(target[name], weight) for name, weight in weights.items())


def test_checksum_covers_names_starts_and_bytes() -> None:
    bucket = shipped(source_weights(), ranks=1, dtype="float32")[0]
    piece = bucket.slices[0]
    assert checksum(bucket.slices) == bucket.checksum
    assert checksum((replace(piece, name="other"),)) != checksum((piece,))
    assert checksum((replace(piece, start=1),)) != checksum((piece,))


def test_rank_without_parameters_still_ends_its_stream() -> None:
    (bucket,) = pack([], version=3, rank=1, dtype="bfloat16", bucket_bytes=64)
    assert bucket.last and bucket.slices == () and bucket.rank == 1
