"""What a token sees in packed rows: earlier tokens of its own sample and the prompt of its own document, within the window.

One rule, in two forms: added to attention scores where those are small enough to exist (CPU), and as blocks that a kernel skips or fills
by the rule (GPU), which takes no memory of L x L. Axis suffixes as in `rl/records.py`: B rows, L row length.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layout:
    """Where each token of packed rows belongs; see `rl.records.MicroBatch`."""

    positions_BL: Tensor
    segments_BL: Tensor
    documents_BL: Tensor


def visibility(layout: Layout, *, window: int | None) -> Tensor:
    """Which keys each query sees, bool[B, L, L], queries first.

    A key is visible when it belongs to the query's document, there to the prompt (segment 0) or to the query's own segment, does not lie
    ahead of the query and, with a sliding window, lies fewer than `window` positions behind it. Padding (document -1) is seen by nobody
    but itself: every softmax row keeps at least one finite entry.
    """
    queries = (layout.positions_BL[:, :, None], layout.segments_BL[:, :, None], layout.documents_BL[:, :, None])
    keys = (layout.positions_BL[:, None, :], layout.segments_BL[:, None, :], layout.documents_BL[:, None, :])
    itself = torch.eye(layout.positions_BL.shape[1], dtype=torch.bool, device=layout.positions_BL.device)
    return _sees(queries, keys, window=window) | itself


def additive(layout: Layout, *, window: int | None, dtype: torch.dtype) -> Tensor:
    """The [B, 1, L, L] mask that is added to attention scores: 0 where visible, else the lowest finite number."""
    visible = visibility(layout, window=window)
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def blocks(layout: Layout, *, window: int | None) -> Any:
    """FlexAttention's `BlockMask` of the same rule."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        queries, keys = ((layout.positions_BL[b, i], layout.segments_BL[b, i], layout.documents_BL[b, i]) for i in (q, k))
        return _sees(queries, keys, window=window) | (q == k)

    n_rows, length = layout.positions_BL.shape
    device = layout.positions_BL.device
    # Compiled, the rule is evaluated block by block; otherwise L x L at once.
    return create_block_mask(visible, n_rows, None, length, length, device=device, _compile=device.type == "cuda")


def _sees(queries: tuple[Tensor, Tensor, Tensor], keys: tuple[Tensor, Tensor, Tensor], *, window: int | None) -> Tensor:
    """The rule, on (positions, segments, documents) that broadcast against each other."""
    distance = queries[0] - keys[0]
    seen = (queries[2] == keys[2]) & (queries[2] >= 0) & ((keys[1] == 0) | (keys[1] == queries[1])) & (distance >= 0)
    return seen if window is None else seen & (distance < window)
