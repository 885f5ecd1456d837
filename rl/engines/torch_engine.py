"""The embedded inference engine: continuous batching over KV slots on the CPU.

    submit ─► queue ─► prefill once a prompt ─► first token of each of its samples ─┐
                                                                                    ▼
              finished ◄─ stop token, max_tokens, context full ◄─ record ◄─ sample ◄─ decode all running rows

Single-threaded: nothing happens outside `step`. Running samples are rows 0..n-1 without holes; all bookkeeping is arrays over
rows. The same sequence of calls gives the same bits. Between two steps a caller may overwrite the weights through
`parameters()` and set `version`: running samples keep their KV cache and go on with the new weights. A prompt kept for samples
that have not started is prefilled again after such a change, so that a token's version is always that of its logits.

Axis suffixes: R rows (slots), T sampled tokens, G samples, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rl.engines.decoder import PREFILL_TOKENS, Decoder, Shape
from rl.engines.kv import PromptKV
from rl.engines.request import FinishedSample, check_request, end_reason, token_limit
from rl.engines.sampler import RowSampling, Sampler, UniformStreams
from rl.engines.version import Versioned
from rl.records import Completion, GenerateRequest

PADDING_LIMIT = 1.5
"""Prompts are prefilled together while padding them costs at most this many times their own tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Totals since the engine was built."""

    prefill_seconds: float = 0.0
    """Admission: prefill, copies of the prompt's KV, first tokens."""
    decode_seconds: float = 0.0
    prompts: int = 0
    """Prefills; less than `samples` by what sharing saves."""
    prompt_tokens: int = 0
    """Tokens prefilled, padding not counted."""
    samples: int = 0
    """Samples started."""
    sampled_tokens: int = 0
    decode_steps: int = 0


@dataclass(kw_only=True, slots=True)
class _Queued:
    """A request with samples that have not started."""

    request: GenerateRequest
    next_index: int = 0
    prompt: PromptKV | None = None
    """Kept when only a part of its samples found a slot."""
    prompt_version: int = -1


class TorchEngine(Versioned):
    """Generates samples of many requests at once with one model."""

    def __init__(self, model_path: Path, *, dtype: torch.dtype, slots: int, context_length: int) -> None:
        """Load a Hugging Face folder (llama or cwm, safetensors).

        Args:
            slots: most samples that run together.
            context_length: most tokens of prompt and completion.

        Raises:
            ValueError: the folder's architecture is not supported, or its weights do not fit its config.
        """
        super().__init__(stale=True)
        self._decoder = Decoder(model_path, dtype=dtype)
        self._sampler = Sampler(self._decoder.shape.vocab)
        self._cache = self._decoder.make_cache(rows=slots)
        self._slots, self._context_length = slots, context_length
        self._queue: deque[_Queued] = deque()
        self._stats = EngineStats()
        self._n_running = 0
        self._keys: list[str] = []
        self._streams = UniformStreams(slots)
        self._index_R = np.zeros(slots, dtype=np.int64)
        self._prompt_length_R = np.zeros(slots, dtype=np.int64)
        self._count_R = np.zeros(slots, dtype=np.int64)
        """Tokens sampled so far."""
        self._max_tokens_R = np.zeros(slots, dtype=np.int64)
        self._limit_R = np.zeros(slots, dtype=np.int64)
        """Most tokens to sample: max_tokens, or what the context has room for."""
        self._temperature_R = np.zeros(slots, dtype=np.float32)
        self._top_p_R = np.zeros(slots, dtype=np.float32)
        self._top_k_R = np.zeros(slots, dtype=np.int64)
        self._stops_RS = np.full((slots, 0), -1, dtype=np.int64)
        """Stop token ids, padded with -1."""
        self._tokens_RT = np.zeros((slots, 0), dtype=np.int32)
        self._logprobs_RT = np.zeros((slots, 0), dtype=np.float32)
        self._versions_RT = np.zeros((slots, 0), dtype=np.int32)

    @property
    def shape(self) -> Shape:
        """Sizes of the model."""
        return self._decoder.shape

    @property
    def busy(self) -> bool:
        """Whether samples are queued or running."""
        return bool(self._queue) or self._n_running > 0

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request; requests start in the order in which they were submitted.

        Raises ValueError when the request cannot be served as it is.
        """
        in_use = {*self._keys, *(queued.request.key for queued in self._queue)}
        check_request(request, in_use=in_use, vocab=self._decoder.shape.vocab, context_length=self._context_length)
        self._queue.append(_Queued(request=request))

    def cancel(self, key: str) -> None:
        """Forget a request: its queued and running samples will not be reported. Unknown keys are ignored."""
        self._queue = deque(queued for queued in self._queue if queued.request.key != key)
        self._remove(np.array([row for row in range(self._n_running) if self._keys[row] == key], dtype=np.int64))

    @torch.inference_mode()
    def step(self) -> tuple[FinishedSample, ...]:
        """Start queued samples while slots are free, then sample one more token for every running row."""
        finished: list[FinishedSample] = []
        if self._stale:
            self._decoder.refresh()
            self._stale = False
        began = time.perf_counter()
        while self._queue and self._n_running < self._slots:
            finished += self._admit()
        decoding = time.perf_counter()
        if self._n_running:
            finished += self._decode()
        ended = time.perf_counter()
        self._count(prefill_seconds=decoding - began, decode_seconds=ended - decoding)
        return tuple(finished)

    def parameters(self) -> Mapping[str, torch.Tensor]:
        """Hugging Face state-dict name -> contiguous view into the weights, to write between two steps; then set `version`."""
        return self._decoder.parameters()

    def stats(self) -> EngineStats:
        """Totals so far."""
        return self._stats

    def _admit(self) -> list[FinishedSample]:
        """Prefill the next prompts in the queue, start as many of their samples as fit, and draw those samples' first tokens."""
        batch, prompts = self._next_prompts()
        first, source_G = self._n_running, []
        for i, queued in enumerate(batch):
            indices = range(queued.next_index, min(len(queued.request.seeds), queued.next_index + self._slots - self._n_running))
            self._place(queued.request, indices)
            source_G += [i] * len(indices)
            queued.next_index = indices.stop
            if queued.next_index == len(queued.request.seeds):
                self._queue.popleft()
            else:
                queued.prompt = prompts if len(batch) == 1 else prompts.single(i, len(queued.request.prompt_ids_P))
                queued.prompt_version = self.version
        source = np.array(source_G, dtype=np.int64)
        self._fit_cache()
        self._cache.start(prompts, source, first)
        self._count(samples=len(source))
        return self._sample(prompts.logits_BV[torch.from_numpy(source)], first)

    def _next_prompts(self) -> tuple[list[_Queued], PromptKV]:
        """Requests at the head of the queue that start together, with the KV of their prompts; the last may start in part."""
        head = self._queue[0]
        if head.prompt is not None and head.prompt_version == self.version:
            return [head], head.prompt
        free, batch, tokens, longest = self._slots - self._n_running, list[_Queued](), 0, 0
        for queued in self._queue:
            length = len(queued.request.prompt_ids_P)
            padded, own = max(longest, length) * (len(batch) + 1), tokens + length
            if free <= 0 or (batch and (padded > PREFILL_TOKENS or padded > PADDING_LIMIT * own)):
                break
            batch.append(queued)
            tokens, longest, free = own, max(longest, length), free - (len(queued.request.seeds) - queued.next_index)
        self._count(prompts=len(batch), prompt_tokens=tokens)
        return batch, self._decoder.prefill([queued.request.prompt_ids_P for queued in batch])

    def _place(self, request: GenerateRequest, indices: range) -> None:
        """Fill the next rows' bookkeeping for samples `indices` of a request."""
        rows = slice(self._n_running, self._n_running + len(indices))
        sampling, length = request.sampling, len(request.prompt_ids_P)
        self._keys += [request.key] * len(indices)
        self._index_R[rows] = indices
        self._streams.seeds_B[rows] = [seed % 2**64 for seed in request.seeds[indices.start : indices.stop]]
        self._prompt_length_R[rows], self._count_R[rows] = length, 0
        self._max_tokens_R[rows] = sampling.max_tokens
        self._limit_R[rows] = token_limit(request, context_length=self._context_length)
        self._temperature_R[rows], self._top_p_R[rows], self._top_k_R[rows] = sampling.temperature, sampling.top_p, sampling.top_k
        stops = sampling.stop_token_ids
        self._stops_RS = _widened(self._stops_RS, len(stops), fill=-1)
        self._stops_RS[rows] = -1
        self._stops_RS[rows, : len(stops)] = stops
        self._n_running = rows.stop

    def _decode(self) -> list[FinishedSample]:
        """Feed every row's last token and sample its next one."""
        rows = np.arange(self._n_running)
        positions_B = self._prompt_length_R[rows] + self._count_R[rows] - 1
        self._fit_cache()
        tokens_B = self._tokens_RT[rows, self._count_R[rows] - 1].astype(np.int64)
        logits_BV = self._decoder.decode(torch.from_numpy(tokens_B), torch.from_numpy(positions_B), self._cache)
        self._count(decode_steps=1)
        return self._sample(logits_BV, 0)

    def _fit_cache(self) -> None:
        """Room for what is running: the positions fed so far and the next one."""
        rows = slice(self._n_running)
        self._cache.fit(rows=self._n_running, length=int((self._prompt_length_R[rows] + self._count_R[rows]).max()))

    def _sample(self, logits_BV: torch.Tensor, first: int) -> list[FinishedSample]:
        """Draw and record one token for rows `first`.. n-1 from their logits; return and remove the rows that ended."""
        rows = np.arange(first, self._n_running)
        count_B = self._count_R[rows]
        sampling = RowSampling(temperature_B=self._temperature_R[rows], top_p_B=self._top_p_R[rows], top_k_B=self._top_k_R[rows])
        tokens_B, logprobs_B = self._sampler.draw(logits_BV, uniforms_B=self._streams.take(rows, count_B), sampling=sampling)
        width = int(count_B.max()) + 1
        self._tokens_RT, self._logprobs_RT, self._versions_RT = (
            _widened(array, width) for array in (self._tokens_RT, self._logprobs_RT, self._versions_RT)
        )
        self._tokens_RT[rows, count_B] = tokens_B
        self._logprobs_RT[rows, count_B] = logprobs_B
        self._versions_RT[rows, count_B] = self.version
        self._count_R[rows] += 1
        self._count(sampled_tokens=len(rows))
        stopped_B = (self._stops_RS[rows] == tokens_B[:, None]).any(axis=1)
        ended_B = stopped_B | (self._count_R[rows] >= self._limit_R[rows])
        finished = [self._finish(row, stopped) for row, stopped in zip(rows[ended_B].tolist(), stopped_B[ended_B].tolist(), strict=True)]
        self._remove(rows[ended_B])
        return finished

    def _finish(self, row: int, stopped: bool) -> FinishedSample:
        count = int(self._count_R[row])
        completion = Completion(
            token_ids_T=self._tokens_RT[row, :count].copy(),
            logprobs_T=self._logprobs_RT[row, :count].copy(),
            versions_T=self._versions_RT[row, :count].copy(),
            stop_reason=end_reason(stopped=stopped, count=count, max_tokens=int(self._max_tokens_R[row])),
        )
        return FinishedSample(key=self._keys[row], index=int(self._index_R[row]), completion=completion)

    def _remove(self, rows: np.ndarray) -> None:
        """Free rows; the last running rows move into the holes."""
        if not len(rows):
            return
        n_left = self._n_running - len(rows)
        target = rows[rows < n_left]
        source = np.setdiff1d(np.arange(n_left, self._n_running), rows, assume_unique=True)
        if len(target):
            length = int((self._prompt_length_R[source] + self._count_R[source]).max())
            self._cache.move(source, target, length)
            self._streams.move(source, target)
            for array in (
                *(self._index_R, self._prompt_length_R, self._count_R, self._max_tokens_R, self._limit_R),
                *(self._temperature_R, self._top_p_R, self._top_k_R, self._stops_RS),
                *(self._tokens_RT, self._logprobs_RT, self._versions_RT),
            ):
                array[target] = array[source]
            for hole, row in zip(target.tolist(), source.tolist(), strict=True):
                self._keys[hole] = self._keys[row]
        del self._keys[n_left:]
        self._n_running = n_left

    def _count(self, **more: float) -> None:
        """Add to the totals."""
        self._stats = EngineStats(**{name: getattr(self._stats, name) + more.get(name, 0) for name in EngineStats.__slots__})


def _widened(array_RX: np.ndarray, width: int, fill: int = 0) -> np.ndarray:
    """The array with at least `width` columns: itself, or a copy of at least twice its width."""
    if array_RX.shape[1] >= width:
        return array_RX
    wide = np.full((array_RX.shape[0], max(width, 2 * array_RX.shape[1])), fill, dtype=array_RX.dtype)
    wide[:, : array_RX.shape[1]] = array_RX
    return wide
