"""Moves one version of the weights from ZeRO partitions into a generator's parameters, bucket by bucket.

    learner rank: partition pieces ─► WeightSender ─► WeightBucket ─► (object store) ─► WeightReceiver ─► parameters in place

No side ever holds a second copy of the model: the sender's buckets are views of its own partition where no conversion is needed (deltas
cost a copy of that partition), and the receiver writes each slice straight into the flattened parameter. Transport is not done here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from rl.errors import BaseMissing, WeightSyncError
from rl.records import WeightBucket, WeightSlice
from rl.weight_delta import unpack_gaps

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Sync precisions by their name in `WeightBucket.dtype`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """What a rank holds of one parameter."""

    name: str
    """Hugging Face state-dict name."""
    start: int
    """First element in the flattened parameter."""
    values: Tensor
    """Flat and contiguous; any floating dtype, any device."""


def checksum(slices: Sequence[WeightSlice]) -> int:
    """xxh3_64 over names, starts and bytes of the slices in order, and of deltas over what they are about."""
    digest = xxhash.xxh3_64()
    for piece in slices:
        digest.update(f"{piece.name}:{piece.start}:".encode())
        digest.update(piece.values.data)
        if piece.gaps is not None:
            digest.update(f":{piece.count}:{piece.digest}:".encode())
            digest.update(piece.gaps.data)
    return digest.intdigest()


def pack(pieces: Iterable[Piece], *, version: int, rank: int, dtype: str, bucket_bytes: int) -> Iterator[WeightBucket]:
    """Cut a rank's pieces into buckets of at most `bucket_bytes` (one element at least).

    Slices of CPU tensors that have the sync dtype already are views: ship or copy a bucket before the next optimizer step.
    A rank that holds nothing still yields one empty bucket, so that every rank's end is seen.
    """
    capacity = max(1, bucket_bytes // DTYPES[dtype].itemsize)
    index, filled, slices = 0, 0, list[WeightSlice]()
    for piece in pieces:
        offset = 0
        while offset < piece.values.numel():
            if filled == capacity:
                yield _bucket(slices, version=version, rank=rank, index=index, last=False, dtype=dtype)
                index, filled, slices = index + 1, 0, []
            count = min(piece.values.numel() - offset, capacity - filled)
            values = piece.values[offset : offset + count].detach().to(device="cpu", dtype=DTYPES[dtype])
            slices.append(WeightSlice(name=piece.name, start=piece.start + offset, values=_bytes(values), count=count))
            offset, filled = offset + count, filled + count
    yield _bucket(slices, version=version, rank=rank, index=index, last=True, dtype=dtype)


def _bucket(slices: list[WeightSlice], *, version: int, rank: int, index: int, last: bool, dtype: str) -> WeightBucket:
    return WeightBucket(version=version, rank=rank, index=index, last=last, dtype=dtype, slices=tuple(slices), checksum=checksum(slices))


def _bytes(values: Tensor) -> np.ndarray:
    """uint8 view of a flat contiguous CPU tensor (numpy has no bfloat16)."""
    return values.view(torch.uint8).numpy()


class DiscardedWeights:
    """Takes every version and keeps none: the receiver of an engine without weights. It has the methods of `WeightReceiver`."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._sums: list[tuple[int, int, int]] = []

    def begin(self, version: int, *, base: int | None = None) -> None:
        """Start receiving `version`, against whatever base."""
        self._version, self._sums = version, []

    def apply(self, bucket: WeightBucket) -> None:
        """Verify a bucket. Raises WeightSyncError for another version than the one begun and for a wrong checksum."""
        where = f"bucket {bucket.index} of rank {bucket.rank}, version {bucket.version}"
        if bucket.version != self._version:
            raise WeightSyncError(f"{where}: the receiver is at version {self._version}")
        if checksum(bucket.slices) != bucket.checksum:
            raise WeightSyncError(f"{where}: the checksum does not match its content")
        self._sums.append((bucket.rank, bucket.index, bucket.checksum))

    def finish(self) -> str:
        """End the version: 16 hexadecimal digits over the buckets' checksums. Raises WeightSyncError when no version was begun."""
        if self._version is None:
            raise WeightSyncError("finish without begin")
        self._version = None
        return xxhash.xxh3_64(repr(sorted(self._sums)).encode()).hexdigest()


class WeightReceiver:
    """Writes a version's buckets into a generator's parameters, in place and checked.

    Call order: `begin`, `apply` for every bucket of every rank in any order, `finish`. A whole version and the deltas on it may follow
    each other with one `finish` at the end.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """
        Args:
            parameters: by Hugging Face state-dict name. Each may be a row view into a fused weight, but must be
                contiguous itself: slices are written through `view(-1)`.
        """
        self._flat: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            assert parameter.is_contiguous(), f"parameter {name} is not contiguous by rows"
            self._flat[name] = parameter.detach().view(-1)
        self._version: int | None = None
        self._base: int | None = None
        self._held: int | None = None
        """Version of which every element is in memory."""
        self._written: dict[str, list[tuple[int, int]]] = {}

    def begin(self, version: int, *, base: int | None = None) -> None:
        """Start receiving `version`; without a base, whatever an interrupted version has left behind is overwritten by this one.

        Raises BaseMissing when the parameters are not those of version `base`.
        """
        if self._version is not None and not self._gap():
            self._held = self._version
        if base is not None and self._held != base:
            held = "no version" if self._held is None else f"version {self._held}"
            raise BaseMissing(f"version {version} is told against version {base}, and this generator holds {held}")
        self._version, self._base, self._held = version, base, None
        self._written = {name: [] for name in self._flat}

    def apply(self, bucket: WeightBucket) -> None:
        """Verify a bucket and write its slices.

        Raises:
            WeightSyncError: another version or base than those begun, a wrong checksum, an unknown dtype or parameter, or a
                slice that does not fit its parameter. Nothing of the bucket is written then.
            BaseMissing: with the changes of a slice the parameter is not what the sender has, so it was not before.
        """
        where = f"bucket {bucket.index} of rank {bucket.rank}, version {bucket.version}"
        if bucket.version != self._version:
            raise WeightSyncError(f"{where}: the receiver is at version {self._version}")
        if bucket.base != self._base:
            raise WeightSyncError(f"{where}: told against version {bucket.base}, but version {self._base} was announced")
        if bucket.dtype not in DTYPES:
            raise WeightSyncError(f"{where}: unknown dtype {bucket.dtype!r}")
        itemsize = DTYPES[bucket.dtype].itemsize
        for piece in bucket.slices:
            if piece.name not in self._flat:
                raise WeightSyncError(f"{where}: the generator has no parameter {piece.name}")
            size = self._flat[piece.name].numel()
            whole = piece.gaps is None
            fits = piece.values.nbytes == piece.count * itemsize if whole else piece.values.nbytes <= piece.count * itemsize
            if piece.start < 0 or piece.start + piece.count > size or not fits:
                raise WeightSyncError(
                    f"{where}: {piece.values.nbytes} bytes for elements {piece.start}..{piece.start + piece.count} "
                    f"do not fit parameter {piece.name} of {size} elements"
                )
        if checksum(bucket.slices) != bucket.checksum:
            names = f"{bucket.slices[0].name} .. {bucket.slices[-1].name}" if bucket.slices else "no parameter"
            raise WeightSyncError(f"{where}: the checksum does not match its content ({names})")
        changes = [self._changes(piece, itemsize=itemsize, where=where) for piece in bucket.slices]
        for piece, changed in zip(bucket.slices, changes, strict=True):
            self._write(piece, DTYPES[bucket.dtype], changed=changed)
            if piece.digest is not None and not self._is_as_sent(piece, DTYPES[bucket.dtype]):
                raise BaseMissing(f"{where}: parameter {piece.name} was not that of version {bucket.base}")
            self._written[piece.name].append((piece.start, piece.start + piece.count))

    def _changes(self, piece: WeightSlice, *, itemsize: int, where: str) -> np.ndarray | None:
        """Indices of the elements that change, within the slice; None for all."""
        if piece.gaps is None:
            return None
        try:
            changed = unpack_gaps(piece.gaps, count=piece.count)
        except ValueError as error:
            raise WeightSyncError(f"{where}: the changes of parameter {piece.name} cannot be read: {error}") from error
        if len(changed) * itemsize != piece.values.nbytes:
            raise WeightSyncError(f"{where}: {piece.values.nbytes} bytes for {len(changed)} changes of parameter {piece.name}")
        return changed

    def _write(self, piece: WeightSlice, dtype: torch.dtype, *, changed: np.ndarray | None) -> None:
        target = self._flat[piece.name][piece.start : piece.start + piece.count]
        if target.dtype == dtype and target.device.type == "cpu":
            width = np.dtype(f"u{dtype.itemsize}")
            _bytes(target).view(width)[slice(None) if changed is None else changed] = piece.values.view(width)
            return
        # Received buffers are read-only, which torch does not accept; the copy lives for one slice only.
        values = torch.from_numpy(piece.values.copy()).view(dtype)
        if changed is None:
            target.copy_(values)
        else:
            target[torch.from_numpy(changed).to(target.device)] = values.to(device=target.device, dtype=target.dtype)

    def _is_as_sent(self, piece: WeightSlice, dtype: torch.dtype) -> bool:
        """Whether a slice is now what the sender has; a parameter of another precision cannot tell."""
        target = self._flat[piece.name][piece.start : piece.start + piece.count]
        return target.dtype != dtype or xxhash.xxh3_64_intdigest(_bytes(target.cpu()).data) == piece.digest

    def finish(self) -> str:
        """End the version: every element of every parameter must have been written exactly once.

        Returns:
            16 hexadecimal digits: xxh3_64 over names and bytes of all parameters in name order, as they now are in
            memory. It does not depend on the number of ranks or on the bucket size.

        Raises:
            WeightSyncError: a parameter has a gap or was written twice, or no version was begun.
        """
        if self._version is None:
            raise WeightSyncError("finish without begin")
        if problem := self._gap():
            raise WeightSyncError(f"version {self._version}: {problem}")
        self._held, self._version = self._version, None
        digest = xxhash.xxh3_64()
        for name in sorted(self._flat):
            digest.update(f"{name}:".encode())
            digest.update(_bytes(self._flat[name].cpu()).data)
        return digest.hexdigest()

    def _gap(self) -> str:
        """What was not received of the version under way, or was received twice; empty when it is complete."""
        for name, flat in self._flat.items():
            position = 0
            for start, stop in sorted(self._written[name]):
                if start != position:
                    problem = "was not received" if start > position else "was received twice"
                    return f"element {min(start, position)} of parameter {name} {problem}"
                position = stop
            if position != flat.numel():
                return f"element {position} of parameter {name} was not received"
        return ""
