"""When two traces are too much alike.

A trace is the set of its pairs of neighbouring frames, as CWM's text shows them: event, line, and the locals that changed. Two are alike by
the Jaccard similarity of their sets. MinHash (Broder 1997) with bands (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
chapter 3) finds who may be alike without comparing all with all; what it finds is then compared exactly, so a row is never left out for
an estimate. Of two sets that are 0.8 alike it overlooks one pair in ten million, at 0.5 one in eight.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import xxhash

_BANDS, _ROWS = 32, 4
_rng = np.random.default_rng(0)
_FACTORS, _OFFSETS = (_rng.integers(2**64, size=_BANDS * _ROWS, dtype=np.uint64) for _ in range(2))
_FACTORS |= np.uint64(1)  # an odd factor makes `factor * x + offset` a permutation of the 64-bit numbers
_AT_ONCE = 1 << 14


class KeptTraces:
    """The traces so far, none of them too much like another."""

    def __init__(self, *, similarity: float) -> None:
        """`similarity`: from which on, above 0, two are too much alike."""
        self._similarity = similarity
        self._sets: list[np.ndarray] = []
        self._bands: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(_BANDS)]

    def add(self, frames: Sequence[str]) -> bool:
        """Keep a trace by its frames; False when it is too much like one that was kept before."""
        found = frame_pairs(frames)
        keys = _band_keys(found)
        candidates = {number for band, key in zip(self._bands, keys, strict=True) for number in band.get(key, ())}
        if any(jaccard(found, self._sets[number]) >= self._similarity for number in candidates):
            return False
        for band, key in zip(self._bands, keys, strict=True):
            band[key].append(len(self._sets))
        self._sets.append(found)
        return True


def frame_pairs(frames: Sequence[str]) -> np.ndarray:
    """Hashes of the pairs of neighbours, each once, ascending: uint64[P]. A single frame counts as a pair."""
    pairs = zip(frames, frames[1:] or ("",), strict=False)
    return np.unique(np.array([xxhash.xxh3_64_intdigest(f"{one}\0{other}".encode()) for one, other in pairs], np.uint64))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared elements over all elements of two ascending sets; 1 for two empty ones."""
    shared = np.intersect1d(one, other, assume_unique=True).size
    return shared / (one.size + other.size - shared) if one.size or other.size else 1.0


def _band_keys(found: np.ndarray) -> list[bytes]:
    """The MinHash signature of a set, cut into bands."""
    signature = np.full(_BANDS * _ROWS, 2**64 - 1, np.uint64)
    for start in range(0, found.size, _AT_ONCE):
        part = found[start : start + _AT_ONCE]
        signature = np.minimum(signature, (_FACTORS[:, None] * part + _OFFSETS[:, None]).min(axis=1))
    return [signature[at : at + _ROWS].tobytes() for at in range(0, signature.size, _ROWS)]
