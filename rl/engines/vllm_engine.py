"""The production engine: vLLM, with the contract of the torch engine.

    submit ─► queue ─► one vLLM request a sample ─► record ◄─ vLLM schedules, prefills, decodes, samples ─┐
                         (as many as slots)           │                                                   │
                                                      └─► stop token, max_tokens, context full ─► finished │
    parameters() ─► shared memory ─► vLLM's weight transfer, between two steps ──────────────────────────►┘

vLLM's scheduler runs inside `step` and nowhere else, without asynchronous scheduling: between two steps nothing is in flight, so a
token's version is that of the weights that its logits came from. Running samples keep their KV cache through a change of the weights.
With tensor parallelism vLLM's processes on the other GPUs of the node wait for this one.

A change of the weights reaches vLLM as a whole version: the engine's process holds one in host memory, in the precision of the
generator, which is also what deltas are applied to.

Axis suffixes: P prompt positions, T sampled tokens.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm
from vllm.config import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

from configs.vllm import VllmConfig
from rl.engines.request import FinishedSample, check_request, end_reason, token_limit
from rl.engines.shared_weights import SharedWeights
from rl.engines.version import Versioned
from rl.engines.vllm_weights import BACKEND
from rl.model_folder import read_settings
from rl.model_shapes import expected_shapes
from rl.records import Completion, GenerateRequest

CPU_KV_CACHE_GB = 1.0
"""Default of `vllm.kv_cache_gb` on a CPU, whose memory is not the engine's own."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Sample:
    """One sample that waits or runs."""

    request: GenerateRequest
    index: int
    """Position in the request's seeds."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class VllmEngine(Versioned):
    """Generates samples of many requests at once with one model, on the CPU or on GPUs of one node."""

    def __init__(self, model_path: Path, *, dtype: str, slots: int, context_length: int, settings: VllmConfig) -> None:
        """Start vLLM with a Hugging Face folder.

        Args:
            dtype: `float32` or `bfloat16`: of the computation and of new weights.
            slots: most samples that run together.
            context_length: most tokens of prompt and completion.

        Raises:
            ValueError: vLLM cannot run the model with these settings.
        """
        super().__init__(stale=False)
        self._dtype, self._slots, self._context_length, self._settings = dtype, slots, context_length, settings
        self._model_path = model_path
        self._vocab = int(read_settings(model_path)["vocab_size"])
        self._weights: SharedWeights | None = None
        self._queue: deque[_Sample] = deque()
        self._running: dict[str, _Sample] = {}
        """By the name of vLLM's request."""
        self._in_use: dict[str, int] = {}
        """Key -> samples that are not finished."""
        self._n_started = 0
        try:
            self._engine = self._start()
        except (ValueError, RuntimeError) as error:  # also what its own processes report
            raise ValueError(f"vLLM {vllm.__version__} cannot start with {model_path}: {error}") from error

    def _start(self) -> Any:
        settings, on_cpu = self._settings, current_platform.is_cpu()
        kv_cache_gb = settings.kv_cache_gb or (CPU_KV_CACHE_GB if on_cpu else None)
        arguments = EngineArgs(
            model=str(self._model_path),
            skip_tokenizer_init=True,
            generation_config="vllm",
            dtype=self._dtype,
            max_model_len=self._context_length,
            max_num_seqs=self._slots,
            tensor_parallel_size=settings.tensor_parallel_size,
            distributed_executor_backend="mp" if settings.tensor_parallel_size > 1 else "uni",
            gpu_memory_utilization=settings.memory_share,
            kv_cache_memory_bytes=None if kv_cache_gb is None else int(kv_cache_gb * 2**30),
            enforce_eager=settings.enforce_eager,
            enable_prefix_caching=settings.prefix_cache != "off",
            async_scheduling=False,
            logprobs_mode="raw_logprobs",
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
            disable_log_stats=True,
            seed=0,
        )
        config = arguments.create_engine_config()
        head_dim = config.model_config.get_head_size()
        if on_cpu and head_dim not in (possible := CPUAttentionBackend.get_supported_head_sizes()):
            raise ValueError(f"head_dim is {head_dim}; on a CPU it must be one of {', '.join(map(str, possible))}")
        return LLMEngine(vllm_config=config, executor_class=Executor.get_class(config), log_stats=False, multiprocess_mode=False)

    @property
    def busy(self) -> bool:
        """Whether samples are queued or running."""
        return bool(self._in_use)

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request; requests start in the order in which they were submitted.

        Raises ValueError when the request cannot be served as it is.
        """
        check_request(request, in_use=self._in_use, vocab=self._vocab, context_length=self._context_length)
        self._in_use[request.key] = len(request.seeds)
        self._queue.extend(_Sample(request=request, index=index) for index in range(len(request.seeds)))

    def cancel(self, key: str) -> None:
        """Forget a request: its queued and running samples will not be reported. Unknown keys are ignored."""
        self._in_use.pop(key, None)
        self._queue = deque(sample for sample in self._queue if sample.request.key != key)
        self._abort([name for name, sample in self._running.items() if sample.request.key == key])

    def step(self) -> tuple[FinishedSample, ...]:
        """Start queued samples while slots are free, then let vLLM run once: one more token for most running samples."""
        if self._stale:
            self._take_over()
        while self._queue and len(self._running) < self._slots:
            self._begin(self._queue.popleft())
        return tuple(finished for output in self._engine.step() if (finished := self._record(output)) is not None)

    def parameters(self) -> Mapping[str, torch.Tensor]:
        """Hugging Face state-dict name -> host tensor for new weights, to write whole between two steps; then set `version`."""
        if self._weights is None:
            shapes = expected_shapes(read_settings(self._model_path))
            self._weights = SharedWeights(shapes, dtype=getattr(torch, self._dtype))
            where = {"path": self._weights.path, "dtype": self._dtype, "shapes": {name: list(shape) for name, shape in shapes.items()}}
            self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": where})
        return self._weights.tensors

    def _take_over(self) -> None:
        """Load the weights that were written. Samples without a token yet begin again: a token's version is that of its whole logits."""
        assert self._weights is not None, "parameters() was not written"
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", kwargs={"update_info": {}})
        self._engine.collective_rpc("finish_weight_update")
        self._stale = False
        begun = [name for name, sample in self._running.items() if not sample.tokens]
        self._queue.extendleft(self._running[name] for name in reversed(begun))
        self._abort(begun)

    def _begin(self, sample: _Sample) -> None:
        request, sampling = sample.request, sample.request.sampling
        prompt: dict[str, Any] = {"prompt_token_ids": request.prompt_ids_P.tolist()}
        if self._settings.prefix_cache == "reset":
            prompt["cache_salt"] = str(self._version)  # only prompts with the same salt share KV
        parameters = vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=request.seeds[sample.index] % 2**63,
            max_tokens=token_limit(request, context_length=self._context_length),
            stop_token_ids=list(sampling.stop_token_ids),
            ignore_eos=True,  # the request names all of its stop tokens
            logprobs=0,  # of the sampled token alone
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        name, self._n_started = str(self._n_started), self._n_started + 1
        self._running[name] = sample
        self._engine.add_request(name, prompt, parameters)

    def _record(self, output: Any) -> FinishedSample | None:
        """Take a sample's new tokens; the finished sample when it has ended."""
        sample, (new,) = self._running[output.request_id], output.outputs
        tokens, logprobs = list(new.token_ids), [entry[token].logprob for token, entry in zip(new.token_ids, new.logprobs, strict=True)]
        if not all(map(math.isfinite, logprobs)):
            raise FloatingPointError("the model's logits are not finite: the policy's weights hold inf or nan")
        sample.tokens += tokens
        sample.logprobs += logprobs
        sample.versions += [self._version] * len(tokens)
        if not output.finished:
            return None
        del self._running[output.request_id]
        return self._finish(sample)

    def _finish(self, sample: _Sample) -> FinishedSample:
        request = sample.request
        self._in_use[request.key] -= 1
        if not self._in_use[request.key]:
            del self._in_use[request.key]
        stopped, count = sample.tokens[-1] in request.sampling.stop_token_ids, len(sample.tokens)
        completion = Completion(
            token_ids_T=np.array(sample.tokens, dtype=np.int32),
            logprobs_T=np.array(sample.logprobs, dtype=np.float32),
            versions_T=np.array(sample.versions, dtype=np.int32),
            stop_reason=end_reason(stopped=stopped, count=count, max_tokens=request.sampling.max_tokens),
        )
        return FinishedSample(key=request.key, index=sample.index, completion=completion)

    def _abort(self, names: Sequence[str]) -> None:
        self._engine.abort_request(list(names))
        for name in names:
            del self._running[name]
