"""Which elements of a piece of weights have changed, in few bytes.

An optimizer step of a small learning rate changes few bfloat16 weights: most updates are smaller than half of the distance to the next
number. The indices of those that change go as gaps, each a LEB128 number (7 bits a byte, low bits first, the high bit on all bytes but
the last), so that one byte is enough where one element in a hundred changes.
"""

import numpy as np

_WIDEST = 5
"""Bytes of a gap: 35 bits, and no slice has more elements than that counts."""


def pack_gaps(indices: np.ndarray) -> np.ndarray:
    """uint8[bytes]: ascending `indices` (int64[changed]) as the gaps between them; the first gap is the first index."""
    if not len(indices):
        return np.empty(0, dtype=np.uint8)
    gaps = np.diff(indices, prepend=-1) - 1
    widths = np.ones(len(gaps), dtype=np.int64)
    for width in range(1, _WIDEST):
        widths += gaps >= 1 << 7 * width
    ends = np.cumsum(widths)
    starts = ends - widths
    packed = np.empty(ends[-1], dtype=np.uint8)
    for width in range(int(widths.max())):
        own = slice(None) if width == 0 else np.flatnonzero(widths > width)
        more = (widths[own] > width + 1).astype(np.uint8) << 7
        packed[starts[own] + width] = ((gaps[own] >> 7 * width) & 0x7F).astype(np.uint8) | more
    return packed


def unpack_gaps(packed: np.ndarray, *, count: int) -> np.ndarray:
    """int64[changed]: the indices, all below `count`. Raises ValueError for bytes that are no such gaps."""
    if not len(packed):
        return np.empty(0, dtype=np.int64)
    ends = np.flatnonzero(packed < 0x80) + 1
    if not len(ends) or ends[-1] != len(packed):
        raise ValueError("the last gap is cut off")
    starts = np.concatenate(([0], ends[:-1]))
    widths = ends - starts
    if widths.max() > _WIDEST:
        raise ValueError(f"a gap has {widths.max()} bytes, more than {_WIDEST}")
    gaps = (packed[starts] & 0x7F).astype(np.int64)
    for width in range(1, int(widths.max())):
        own = np.flatnonzero(widths > width)
        gaps[own] |= (packed[starts[own] + width] & 0x7F).astype(np.int64) << 7 * width
    indices = np.cumsum(gaps + 1) - 1
    if indices[-1] >= count:
        raise ValueError(f"element {indices[-1]} of a slice of {count}")
    return indices
