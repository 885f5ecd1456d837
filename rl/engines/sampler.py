"""Draws one token a row from raw logits, and the uniform numbers that the draws consume.

Each sample owns a counter-based uniform stream (numpy's Philox keyed by its seed): its t-th token consumes its t-th number,
whatever slot, batch or step it is drawn in. A draw is an inverse CDF in two levels (block sums, then inside the block),
one uniform number a row: `torch.multinomial` is 30 times slower on a CPU at a vocabulary of 49,152, and its draws depend on the
rest of the batch.

Axis suffixes: B rows, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch

STREAM_CHUNK = 64
"""Uniform numbers computed ahead for a row; a multiple of Philox's four words a counter."""
TOP_P_CANDIDATES = 256
"""Largest weights looked at first for top-p; rows whose nucleus is wider are sorted whole."""


class UniformStreams:
    """The next uniform numbers in [0, 1) of every row of the engine."""

    def __init__(self, rows: int) -> None:
        self.seeds_B = np.zeros(rows, dtype=np.uint64)
        """Seed of each row's sample."""
        self._ahead = np.zeros((rows, STREAM_CHUNK))
        self._philox = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._philox)
        self._blank = self._philox.state

    def take(self, rows_B: np.ndarray, counts_B: np.ndarray) -> np.ndarray:
        """float64[B]: number `counts_B[i]` of the stream of row `rows_B[i]`; a row must be asked for its counts in order."""
        columns_B = counts_B % STREAM_CHUNK
        for i in np.flatnonzero(columns_B == 0).tolist():
            row = int(rows_B[i])
            self._ahead[row] = self._chunk(int(self.seeds_B[row]), int(counts_B[i]))
        return self._ahead[rows_B, columns_B]

    def move(self, source_B: np.ndarray, target_B: np.ndarray) -> None:
        """Row `source_B[i]` becomes row `target_B[i]`."""
        self.seeds_B[target_B] = self.seeds_B[source_B]
        self._ahead[target_B] = self._ahead[source_B]

    def _chunk(self, seed: int, start: int) -> np.ndarray:
        """Numbers start .. start + STREAM_CHUNK - 1 of `Generator(Philox(key=seed)).random()`."""
        # Setting the state of one bit generator costs a tenth of building a new one.
        state = self._blank
        state["state"] = {"counter": np.array([start // 4, 0, 0, 0], dtype=np.uint64), "key": np.array([seed, 0], dtype=np.uint64)}
        self._philox.state = state
        return self._generator.random(STREAM_CHUNK)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowSampling:
    """Sampling parameters of B rows."""

    temperature_B: np.ndarray
    """float32; 0 means greedy."""
    top_p_B: np.ndarray
    """float32; 1 means off."""
    top_k_B: np.ndarray
    """int64; 0 means off."""


class Sampler:
    """Draws tokens; keeps one scratch matrix so that a step allocates nothing of vocabulary size."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._block = 1 << max(2, int(vocab_size**0.5).bit_length())
        self._n_blocks = -(-vocab_size // self._block)
        self._scratch = torch.zeros(0)

    def draw(self, logits_BV: torch.Tensor, *, uniforms_B: np.ndarray, sampling: RowSampling) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64[B] and their raw logprobs float32[B].

        `logits_BV` is float32 and left unchanged. The logprob is the log softmax of the logits themselves, before
        temperature, top-k and top-p. Order of the filters: temperature, top-k, top-p; weights tied with the last one kept
        are kept too. Raises FloatingPointError when a row's logits are not finite.
        """
        probabilities_BV = self._padded(len(logits_BV))
        torch.softmax(logits_BV, dim=-1, out=probabilities_BV[:, : self.vocab_size])
        weights_BV, sums_BK = probabilities_BV, self._block_sums(probabilities_BV)
        if not bool(torch.isfinite(sums_BK).all()):
            raise FloatingPointError("the model's logits are not finite: the policy's weights hold inf or nan")

        greedy_B = sampling.temperature_B == 0
        tempered = bool(np.any((sampling.temperature_B != 1) & ~greedy_B))
        filtered = bool(np.any(((sampling.top_k_B > 0) | (sampling.top_p_B < 1)) & ~greedy_B))
        if tempered or filtered:
            weights_BV = probabilities_BV.clone()
            inner_BV = weights_BV[:, : self.vocab_size]
            if tempered:
                inverse_B = 1.0 / np.where(greedy_B, np.float32(1), sampling.temperature_B)
                torch.softmax(logits_BV * torch.from_numpy(inverse_B.astype(np.float32)).unsqueeze(1), dim=-1, out=inner_BV)
            if filtered:
                _filter(inner_BV, top_k_B=np.where(greedy_B, 0, sampling.top_k_B), top_p_B=np.where(greedy_B, 1, sampling.top_p_B))
            sums_BK = self._block_sums(weights_BV)
        tokens_B = self._invert(weights_BV, sums_BK, torch.from_numpy(uniforms_B))
        if greedy_B.any():
            tokens_B = torch.where(torch.from_numpy(greedy_B), logits_BV.argmax(dim=-1), tokens_B)
        if tempered:  # a high temperature draws tokens whose own probability may be 0 in float32
            logprobs_B = logits_BV.gather(1, tokens_B.unsqueeze(1)).squeeze(1) - logits_BV.logsumexp(dim=-1)
        else:
            logprobs_B = probabilities_BV.gather(1, tokens_B.unsqueeze(1)).squeeze(1).log()
        return tokens_B.numpy(), logprobs_B.numpy()

    def _padded(self, rows: int) -> torch.Tensor:
        """float32[rows, blocks * block]: scratch; columns past the vocabulary are zero."""
        if len(self._scratch) < rows:
            self._scratch = torch.zeros(rows, self._n_blocks * self._block)
        return self._scratch[:rows]

    def _block_sums(self, weights_BV: torch.Tensor) -> torch.Tensor:
        """float64[B, blocks]"""
        return weights_BV.view(-1, self._n_blocks, self._block).sum(dim=-1).double()

    def _invert(self, weights_BV: torch.Tensor, sums_BK: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
        """int64[B]: first token whose cumulative weight exceeds the uniform share of the row's total."""
        block_B1, share_B1 = _first_above(sums_BK, uniforms_B.unsqueeze(1))
        chosen = block_B1.unsqueeze(2).expand(-1, 1, self._block)
        block_BW = weights_BV.view(-1, self._n_blocks, self._block).gather(1, chosen).squeeze(1)
        inside_B1, _ = _first_above(block_BW.double(), share_B1)
        return (block_B1 * self._block + inside_B1).squeeze(1)


def _first_above(weights_BK: torch.Tensor, share_B1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First column whose cumulative weight exceeds share * total, and the share of that column's own weight left over.

    Never a column of weight 0: the cumulative sum does not rise there, and the target stays below the total.
    """
    cumulative_BK = weights_BK.cumsum(dim=-1)
    total_B1 = cumulative_BK[:, -1:]
    below = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    target_B1 = torch.minimum(share_B1 * total_B1, below)
    column_B1 = torch.searchsorted(cumulative_BK, target_B1, right=True)
    weight_B1 = weights_BK.gather(1, column_B1)
    before_B1 = cumulative_BK.gather(1, column_B1) - weight_B1
    return column_B1, ((target_B1 - before_B1) / weight_B1).clamp_(0, 1)


def _filter(weights_BV: torch.Tensor, *, top_k_B: np.ndarray, top_p_B: np.ndarray) -> None:
    """Set the weights outside each row's top-k and, of what is left, outside its nucleus of mass top_p to 0, in place."""
    vocab_size = weights_BV.shape[1]
    top_k = torch.from_numpy(np.where(top_k_B > 0, np.minimum(top_k_B, vocab_size), vocab_size))
    rows = torch.from_numpy(np.flatnonzero((top_k_B > 0) & (top_k_B < vocab_size)))
    if len(rows):
        largest = torch.topk(weights_BV[rows], int(top_k[rows].max())).values
        _drop_below(weights_BV, rows, largest.gather(1, (top_k[rows] - 1).unsqueeze(1)))
    rows = torch.from_numpy(np.flatnonzero(top_p_B < 1))
    width = min(TOP_P_CANDIDATES, vocab_size)
    while len(rows):
        kept = weights_BV[rows]
        mass_R1 = torch.from_numpy(top_p_B).double()[rows].unsqueeze(1) * kept.sum(dim=-1, keepdim=True, dtype=torch.float64)
        candidates = torch.topk(kept, width).values
        cumulative = candidates.cumsum(dim=-1, dtype=torch.float64)
        reached = (cumulative[:, -1:] >= mass_R1).squeeze(1) | (width == vocab_size)
        # The nucleus ends at the first candidate that brings the sum to the mass.
        last = torch.searchsorted(cumulative, mass_R1).clamp_(max=width - 1)
        _drop_below(weights_BV, rows[reached], candidates.gather(1, last)[reached])
        rows, width = rows[~reached], vocab_size


def _drop_below(weights_BV: torch.Tensor, rows: torch.Tensor, least_R1: torch.Tensor) -> None:
    """Set the weights of `rows` that are smaller than the row's own `least` to 0, in place."""
    kept = weights_BV[rows]
    weights_BV[rows] = kept.masked_fill_(kept < least_R1, 0.0)
