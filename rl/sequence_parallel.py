"""Ulysses sequence parallelism: ranks share the tokens of a row, and in attention its heads (arXiv 2309.14509).

                    linear layers           attention                       linear layers
    tokens of      ─► l = L / P tokens, ─► all tokens,      ─► all-to-all ─► l tokens, all heads
    this rank          all heads  └─ all-to-all ─┘ 1 / P of the heads

DeepSpeed's own version knows causal masks only; packed rows need theirs. Axis suffixes: B rows, L row length, N response tokens,
P ranks of the group, D size of a head.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "ulysses"
"""Name of the attention implementation that `SequenceParallel` registers with transformers."""


class SequenceParallel:
    """This rank's place among `size` neighbours that work on the same micro-batches. All ranks must build theirs together."""

    def __init__(self, size: int) -> None:
        rank = distributed.get_rank()
        groups = [distributed.new_group(list(range(first, first + size))) for first in range(0, distributed.get_world_size(), size)]
        self._group = groups[rank // size]
        self.size = size
        self.rank = rank % size
        AttentionInterface.register(ATTENTION, self._attention)

    def share(self, tensor_BL: Tensor) -> Tensor:
        """This rank's columns; L must be a multiple of the size."""
        return tensor_BL.chunk(self.size, dim=1)[self.rank]

    def merge(self, own: Tensor, mine_N: Tensor) -> Tensor:
        """Values of all N tokens from those of each rank's own. Every rank computes the whole loss from them, so the gradient of
        a rank's own values is what its own loss says."""
        return _Merge.apply(own, mine_N, self._group)

    def _attention(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        inner = ALL_ATTENTION_FUNCTIONS["flex_attention" if query.device.type == "cuda" else "sdpa"]
        heads = (self._swap(x, split=1, join=2) for x in (query, key, value))  # [B, heads, l, D] to [B, heads / P, L, D]
        out_BLhD, _ = inner(module, *heads, mask, **options)
        return self._swap(out_BLhD, split=1, join=2), None

    def _swap(self, x: Tensor, *, split: int, join: int) -> Tensor:
        """All-to-all: one P-th of axis `split` of every rank, their pieces joined along axis `join`."""
        pieces = torch.stack(x.chunk(self.size, dim=split))
        return torch.cat(_Swap.apply(pieces, self._group).unbind(), dim=join)


class _Swap(torch.autograd.Function):
    """Piece i of this rank goes to rank i, which is its own inverse and its own gradient."""

    @staticmethod
    def forward(ctx: Any, pieces: Tensor, group: Any) -> Tensor:
        ctx.group = group
        swapped = torch.empty_like(pieces)
        distributed.all_to_all_single(swapped, pieces, group=group)
        return swapped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        swapped = torch.empty_like(grad)
        distributed.all_to_all_single(swapped, grad, group=ctx.group)
        return swapped, None


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, mine_N: Tensor, group: Any) -> Tensor:
        merged_N = own.new_zeros(len(mine_N))
        merged_N[mine_N] = own
        distributed.all_reduce(merged_N, group=group)
        ctx.save_for_backward(mine_N)
        return merged_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (mine_N,) = ctx.saved_tensors
        return grads[0][mine_N], None, None
