"""A bucket of weights as one run of bytes, and back: what a broadcast moves.

    8 bytes: length of the header, little-endian | header (JSON) | values and changes of each slice, each at a multiple of 8 bytes

Reading it executes nothing and copies nothing: the arrays of a bucket that was read are views of the frame.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from rl.errors import WeightSyncError
from rl.records import WeightBucket, WeightSlice

_ALIGNMENT = 8


def encode(bucket: WeightBucket, *, room: Callable[[int], np.ndarray]) -> np.ndarray:
    """uint8[bytes]: the frame, in an array of as many bytes that `room` gives."""
    slices = [
        {
            "name": piece.name,
            "start": piece.start,
            "count": piece.count,
            "digest": piece.digest,
            "values": piece.values.nbytes,
            "gaps": None if piece.gaps is None else piece.gaps.nbytes,
        }
        for piece in bucket.slices
    ]
    fields = {name: getattr(bucket, name) for name in ("version", "rank", "index", "last", "dtype", "checksum", "base")}
    header = json.dumps({**fields, "slices": slices}).encode()
    arrays = [
        (0, np.frombuffer(len(header).to_bytes(8, "little"), dtype=np.uint8)),
        (8, np.frombuffer(header, dtype=np.uint8)),
    ]
    end = 8 + len(header)
    for piece in bucket.slices:
        for array in (piece.values, piece.gaps):
            if array is not None:
                arrays.append((start := _aligned(end), array))
                end = start + array.nbytes
    frame = room(end)
    for start, array in arrays:
        frame[start : start + array.nbytes] = array
    return frame


def decode(frame: np.ndarray) -> WeightBucket:
    """The bucket, a view of the frame (uint8). Raises WeightSyncError for bytes that are no frame; a receiver checks the content."""
    try:
        length = int.from_bytes(frame[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(frame[8 : 8 + length].tobytes())
        arrays = _Arrays(frame, start=8 + length)
        slices = tuple(
            WeightSlice(
                name=str(told["name"]),
                start=int(told["start"]),
                values=arrays.take(told["values"]),
                count=int(told["count"]),
                gaps=None if told["gaps"] is None else arrays.take(told["gaps"]),
                digest=told["digest"],
            )
            for told in header.pop("slices")
        )
        return WeightBucket(slices=slices, **header)
    except (ValueError, KeyError, TypeError) as error:
        raise WeightSyncError(f"{len(frame)} bytes that were broadcast are no bucket of weights: {error!r}") from error


class _Arrays:
    """Reads what follows the header."""

    def __init__(self, frame: np.ndarray, *, start: int) -> None:
        self._frame, self._end = frame, start

    def take(self, nbytes: int) -> np.ndarray:
        """The next array. Raises ValueError when the frame is shorter."""
        start = _aligned(self._end)
        self._end = start + nbytes
        if nbytes < 0 or self._end > len(self._frame):
            raise ValueError(f"{nbytes} bytes at {start} of {len(self._frame)}")
        return self._frame[start : self._end]


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT
