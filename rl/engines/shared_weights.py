"""A checkpoint's weights in memory that other processes of the node can map: where new weights wait for an engine's own processes.

The memory is anonymous: it is gone when the last process that maps it ends, however it ends. Pages count only once they are written.
"""

import os
from collections.abc import Mapping
from math import prod

import torch

Shapes = Mapping[str, tuple[int, ...]]
"""Hugging Face state-dict name -> shape, in the order of the memory."""
_ALIGNMENT = 64
"""Bytes; of a cache line."""


class SharedWeights:
    """Owns the memory."""

    def __init__(self, shapes: Shapes, *, dtype: torch.dtype) -> None:
        """Nothing is filled."""
        self._file = os.memfd_create("weights")
        os.ftruncate(self._file, _offsets(shapes, dtype)[1])
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        """What `map_weights` of another process needs; good as long as this object lives."""
        self.tensors = map_weights(self.path, shapes, dtype=dtype)

    def __del__(self) -> None:
        os.close(self._file)


def map_weights(path: str, shapes: Shapes, *, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors in the memory behind `path`, by name, each contiguous."""
    offsets, nbytes = _offsets(shapes, dtype)
    memory = torch.from_file(path, shared=True, size=nbytes, dtype=torch.uint8)
    return {
        name: memory[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for (name, shape), start in zip(shapes.items(), offsets, strict=True)
    }


def _offsets(shapes: Shapes, dtype: torch.dtype) -> tuple[list[int], int]:
    """Where each tensor begins, and how many bytes all have."""
    offsets, end = [], 0
    for shape in shapes.values():
        offsets.append(end)
        end += -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return offsets, end
