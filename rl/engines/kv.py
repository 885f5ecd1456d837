"""The KV cache of the running sequences, and the KV of a prompt before its samples start.

Running sequences are the rows 0..n-1, without holes. A sliding layer keeps a ring of `window` columns: position p lives in
column p % window. Rotary embedding is already in the keys, so the order of columns does not matter: in both kinds of layer a
position sees the first min(position + 1, columns) ones.

Axis suffixes: R rows of the cache, B prompts, K key/value heads, D head dimension, L columns, P prompt positions, W columns of
a ring, G samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

COLUMN_STEP = 32
"""Columns by which a layer's buffer grows; an eighth of its length when that is more."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PromptKV:
    """What a prefill computed for B prompts of at most P tokens, right-padded."""

    keys: tuple[torch.Tensor, ...]
    """One a layer: [B, K, P, D], or the last `window` positions in ring order for a longer prompt in a sliding layer."""
    values: tuple[torch.Tensor, ...]
    logits_BV: torch.Tensor
    """float32[B, V]: raw logits after each prompt's last token."""

    def single(self, index: int, length: int) -> "PromptKV":
        """Prompt `index`, of `length` tokens, alone; copied, so that the other prompts' memory can go."""
        return PromptKV(
            keys=tuple(key[index : index + 1, :, :length].clone() for key in self.keys),
            values=tuple(value[index : index + 1, :, :length].clone() for value in self.values),
            logits_BV=self.logits_BV[index : index + 1].clone(),
        )


def ring(values_BKPD: torch.Tensor, lengths_B: torch.Tensor, window: int | None) -> torch.Tensor:
    """The last `window` positions of every prompt in ring order; unchanged when all of them fit."""
    length = values_BKPD.shape[2]
    if window is None or length <= window:
        return values_BKPD
    last_B1 = (lengths_B - 1).unsqueeze(1)
    position_BW = last_B1 - (last_B1 - torch.arange(window)) % window
    # A column that a short prompt has not reached yet holds any value: nobody reads it before a decode step writes it.
    index = position_BW.clamp_(min=0)[:, None, :, None].expand(-1, values_BKPD.shape[1], -1, values_BKPD.shape[3])
    return values_BKPD.gather(2, index)


class KVCache:
    """Buffers of all layers, with as many columns as the longest running sequence needs."""

    def __init__(self, *, windows: Sequence[int | None], kv_heads: int, head_dim: int, dtype: torch.dtype, rows: int) -> None:
        """`windows` holds one entry a layer, None for full attention; `rows` is a limit, not an allocation."""
        self._windows = tuple(windows)
        self._max_rows = rows
        self._rows, self._columns = 0, 0
        self.keys_RKLD = [torch.zeros(0, kv_heads, 0, head_dim, dtype=dtype) for _ in windows]
        self.values_RKLD = [torch.zeros(0, kv_heads, 0, head_dim, dtype=dtype) for _ in windows]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.nbytes for buffer in (*self.keys_RKLD, *self.values_RKLD))

    def fit(self, *, rows: int, length: int) -> None:
        """Make room for `rows` sequences, the longest of `length` tokens; give memory back when half the columns would do.

        Stored positions below `length` stay.
        """
        step = COLUMN_STEP * max(1, length // (8 * COLUMN_STEP))
        columns = -(-length // step) * step
        if 2 * columns > self._columns >= columns:
            columns = self._columns
        if rows <= self._rows and columns == self._columns:
            return
        if rows > self._rows:
            self._rows = min(self._max_rows, max(rows, 2 * self._rows))
        self._columns = columns
        for buffers in (self.keys_RKLD, self.values_RKLD):
            for layer, window in enumerate(self._windows):
                old = buffers[layer]
                wanted = columns if window is None else min(columns, window)
                if old.shape[0] == self._rows and old.shape[2] == wanted:
                    continue
                kept = min(old.shape[2], wanted)
                new = old.new_empty(self._rows, old.shape[1], wanted, old.shape[3])
                new[: old.shape[0], :, :kept] = old[:, :, :kept]
                buffers[layer] = new

    def start(self, prompts: PromptKV, source_G: np.ndarray, first_row: int) -> None:
        """Copy prompt `source_G[i]` into row `first_row + i`, which must be reserved."""
        rows = slice(first_row, first_row + len(source_G))
        shared = len(prompts.logits_BV) == 1
        source = torch.from_numpy(source_G)
        for layer, (key, value) in enumerate(zip(prompts.keys, prompts.values, strict=True)):
            columns = key.shape[2]
            # One prompt for all rows broadcasts; several are gathered.
            self.keys_RKLD[layer][rows, :, :columns] = key if shared else key.index_select(0, source)
            self.values_RKLD[layer][rows, :, :columns] = value if shared else value.index_select(0, source)

    def move(self, source_R: np.ndarray, target_R: np.ndarray, length: int) -> None:
        """Row `source_R[i]`, of at most `length` tokens, becomes row `target_R[i]`."""
        source, target = torch.from_numpy(source_R), torch.from_numpy(target_R)
        for buffer in (*self.keys_RKLD, *self.values_RKLD):
            buffer[target, :, :length] = buffer[source, :, :length]
