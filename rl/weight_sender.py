"""A learner rank's side of weight sync: whole versions, or what has changed since the version before.

A delta is found in the rank's own partition before anything is gathered, bit for bit, so a generator that applies it holds the very
weights of a whole version. It costs a copy of the partition in the sync precision.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import xxhash
from torch import Tensor

from rl.records import WeightBucket, WeightSlice
from rl.weight_delta import pack_gaps
from rl.weight_sync import DTYPES, Piece, checksum, pack

_BITS: dict[int, type[np.uint16] | type[np.uint32]] = {2: np.uint16, 4: np.uint32}
"""By size of an element: numbers are compared as bits, in which -0.0 is not 0.0 and a NaN is itself."""


class WeightSender:
    """Cuts the pieces of one rank into buckets. All ranks send the same kind of each version."""

    def __init__(self, *, rank: int, dtype: str, bucket_bytes: int, deltas: bool) -> None:
        """`dtype`: `float32` or `bfloat16`; `deltas`: keep what deltas need."""
        self._rank, self._dtype, self._bucket_bytes, self._deltas = rank, dtype, bucket_bytes, deltas
        self._sent: dict[str, Tensor] = {}
        """Each piece as the generators have it."""
        self._version: int | None = None

    def whole(self, pieces: Iterable[Piece], *, version: int) -> Iterator[WeightBucket]:
        """All elements. The buckets may be views of the pieces: ship them before the next optimizer step."""
        self._version = None
        yield from pack(self._keep(pieces), version=version, rank=self._rank, dtype=self._dtype, bucket_bytes=self._bucket_bytes)
        self._version = version

    def delta(self, pieces: Iterable[Piece], *, version: int) -> Iterator[WeightBucket]:
        """The elements that are other bits than in the version sent before. Raises ValueError when none was sent whole."""
        base, self._version = self._version, None
        if base is None:
            raise ValueError(f"version {version} cannot be sent as a delta: no version was sent whole before")
        index, slices, filled = 0, list[WeightSlice](), 0
        for piece in pieces:
            for one in self._changes(piece):
                size = one.values.nbytes + (0 if one.gaps is None else one.gaps.nbytes)
                if slices and filled + size > self._bucket_bytes:
                    yield self._bucket(slices, version=version, base=base, index=index, last=False)
                    index, slices, filled = index + 1, [], 0
                slices.append(one)
                filled += size
        yield self._bucket(slices, version=version, base=base, index=index, last=True)
        self._version = version

    def _keep(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if self._deltas:
                self._sent[piece.name] = piece.values.detach().to(device="cpu", dtype=DTYPES[self._dtype], copy=True)
            yield piece

    def _changes(self, piece: Piece) -> Iterator[WeightSlice]:
        """Slices of the piece, each about as many elements as fit into a bucket whole. What was sent becomes what is."""
        dtype = DTYPES[self._dtype]
        now, sent = _bits(piece.values.detach().to(device="cpu", dtype=dtype)), _bits(self._sent[piece.name])
        most = max(1, self._bucket_bytes // dtype.itemsize)
        for start in range(0, len(now), most):
            new, old = now[start : start + most], sent[start : start + most]
            changed = np.flatnonzero(new != old)
            gaps, values = pack_gaps(changed), new[changed]
            old[changed] = values
            whole = gaps.nbytes + values.nbytes >= new.nbytes
            yield WeightSlice(
                name=piece.name,
                start=piece.start + start,
                values=(new.copy() if whole else values).view(np.uint8),
                count=len(new),
                gaps=None if whole else gaps,
                digest=None if whole else xxhash.xxh3_64_intdigest(new.data),
            )

    def _bucket(self, slices: list[WeightSlice], *, version: int, base: int, index: int, last: bool) -> WeightBucket:
        return WeightBucket(
            version=version,
            rank=self._rank,
            index=index,
            last=last,
            dtype=self._dtype,
            slices=tuple(slices),
            checksum=checksum(slices),
            base=base,
        )


def _bits(values: Tensor) -> np.ndarray:
    """View of a flat contiguous CPU tensor as unsigned numbers."""
    raw: np.ndarray = values.view(torch.uint8).numpy()
    return raw.view(_BITS[values.element_size()])
