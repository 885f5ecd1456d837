"""Arrays of the ring as Arrow columns, without a Python object a token."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa


def identity(rows: Iterable[tuple[str, int, float]]) -> dict[str, pa.Array]:
    ids, attempts, logged = zip(*rows, strict=True)
    return {"rollout_id": pa.array(ids, pa.string()), "attempt": pa.array(attempts, pa.int32()), "logged": pa.array(logged, pa.float64())}


def lists(arrays: Sequence[np.ndarray | None], dtype: type[np.generic]) -> pa.ListArray:
    """One list a row without a Python object a token; None becomes a null row."""
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = concatenated([array for array in arrays if array is not None]).astype(dtype, copy=False)
    mask = pa.array([array is None for array in arrays], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values), mask=mask)


def concatenated(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)
