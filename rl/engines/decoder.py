"""The decoder stack of Llama and CWM checkpoints for generation: prefill of prompts, one decode step of all running rows.

It loads a Hugging Face folder into fused weights (q, k, v in one matrix; gate and up in one) and hands out views of them under
their Hugging Face names. No gradients, no sampling, no scheduling.

    tokens ─► embedding ─► L x (norm ─► qkv ─► rope ─► attention ─► out ─► norm ─► gate, up ─► silu ─► down) ─► norm ─► head

Axis suffixes: B rows, P prompt positions, C tokens of one prefill chunk, N tokens of a step or chunk, E hidden, H query heads,
K key/value heads, D head dimension, X half of it, L cached columns, V vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rl.engines.cpu_ops import MAX_HEAD_DIM, CpuOps
from rl.engines.kv import KVCache, PromptKV, ring

SUPPORTED_TYPES = ("llama", "cwm")
PACKED_ROWS = 64
"""Rows for which oneDNN chooses the layout of a packed weight; products of any number of rows accept it."""
SUPPORTED_ROPES = ("default", "linear", "llama3")
"""Rotary scalings whose frequencies do not depend on the sequence."""
PREFILL_TOKENS = 2048
"""Tokens that go through the layers together in a prefill: bounds its activations whatever the prompt's length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What of a checkpoint's configuration the decoder needs."""

    vocab: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    """Sliding window of each layer in tokens (the token itself included); None for full attention."""
    norm_eps: float
    tied: bool
    """The embedding is the output head as well."""

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """Read a transformers configuration. Raises ValueError for what this decoder does not compute."""
        if config.model_type not in SUPPORTED_TYPES:
            raise ValueError(f"model_type is {config.model_type!r}; the torch engine runs {' and '.join(SUPPORTED_TYPES)}")
        for name, supported in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
            if getattr(config, name, supported) != supported:
                raise ValueError(f"{name} is {getattr(config, name)!r}; the torch engine runs {supported!r} only")
        rope_type = config.rope_parameters["rope_type"]
        if rope_type not in SUPPORTED_ROPES:
            raise ValueError(f"rope_parameters.rope_type is {rope_type!r}; the torch engine runs {', '.join(SUPPORTED_ROPES)}")
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim is {head_dim}; the torch engine runs up to {MAX_HEAD_DIM}")
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        return cls(
            vocab=config.vocab_size,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            windows=tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds),
            norm_eps=config.rms_norm_eps,
            tied=config.tie_word_embeddings,
        )


class Linear:
    """A weight [out, in] as in torch.nn.Linear, and in bfloat16 a second copy in the layout that oneDNN's kernels work on.

    Without that copy every product reorders the weight again: a decode step of 16 rows takes 1.4 times as long, of 64 rows 1.15.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self._packed: torch.Tensor | None = None

    def refresh(self) -> None:
        """Take over what has been written into `weight`."""
        if self.weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            self._packed = None  # freed first: no third copy
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKED_ROWS)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self._packed is None:
            return F.linear(inputs, self.weight)
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, None, "none", [], "")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """Weights of one layer."""

    attention_norm_E: torch.Tensor
    qkv: Linear
    """[(H + 2K) * D, E]: the rows of q, then k, then v."""
    out: Linear
    mlp_norm_E: torch.Tensor
    gate_up: Linear
    """[2 * intermediate, E]: the rows of gate, then up."""
    down: Linear

    @classmethod
    def empty(cls, shape: Shape, dtype: torch.dtype) -> "Layer":
        """Allocated, not filled."""
        width = shape.heads * shape.head_dim
        return cls(
            attention_norm_E=torch.empty(shape.hidden, dtype=dtype),
            qkv=Linear(torch.empty(width + 2 * shape.kv_heads * shape.head_dim, shape.hidden, dtype=dtype)),
            out=Linear(torch.empty(shape.hidden, width, dtype=dtype)),
            mlp_norm_E=torch.empty(shape.hidden, dtype=dtype),
            gate_up=Linear(torch.empty(2 * shape.intermediate, shape.hidden, dtype=dtype)),
            down=Linear(torch.empty(shape.hidden, shape.intermediate, dtype=dtype)),
        )

    def named(self, shape: Shape, prefix: str) -> dict[str, torch.Tensor]:
        """Hugging Face name -> view of the fused weight; every view is contiguous."""
        kv_width = shape.kv_heads * shape.head_dim
        q, k, v = self.qkv.weight.split([shape.heads * shape.head_dim, kv_width, kv_width])
        gate, up = self.gate_up.weight.split(shape.intermediate)
        weights = {
            "input_layernorm": self.attention_norm_E,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": self.out.weight,
            "post_attention_layernorm": self.mlp_norm_E,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": self.down.weight,
        }
        return {f"{prefix}.{name}.weight": weight for name, weight in weights.items()}


class Decoder:
    """One policy on the CPU. Results of a row depend on the other rows only by the rounding of the matrix products."""

    def __init__(self, model_path: Path, *, dtype: torch.dtype) -> None:
        """Load a Hugging Face folder.

        Raises:
            ValueError: another architecture or variant than supported, or a checkpoint whose tensors do not fit its config.
        """
        config = AutoConfig.from_pretrained(model_path, local_files_only=True)
        self.shape = Shape.of(config)
        self.dtype = dtype
        rotary = LlamaRotaryEmbedding(config=config)
        self._frequencies_X: torch.Tensor = rotary.inv_freq.float()
        self._rope_scaling: float = rotary.attention_scaling
        self._q_scale = self.shape.head_dim**-0.5
        self._ops = CpuOps(dtype)
        self._embedding = torch.empty(self.shape.vocab, self.shape.hidden, dtype=dtype)
        self._head = Linear(self._embedding if self.shape.tied else torch.empty_like(self._embedding))
        self._norm_E = torch.empty(self.shape.hidden, dtype=dtype)
        self._layers = [Layer.empty(self.shape, dtype) for _ in self.shape.windows]
        self._load(model_path)

    def parameters(self) -> dict[str, torch.Tensor]:
        """Hugging Face state-dict name -> view into the fused weights; a tied head is listed as the embedding only."""
        named = {"model.embed_tokens.weight": self._embedding}
        for i, layer in enumerate(self._layers):
            named |= layer.named(self.shape, f"model.layers.{i}")
        named["model.norm.weight"] = self._norm_E
        if not self.shape.tied:
            named["lm_head.weight"] = self._head.weight
        return named

    def refresh(self) -> None:
        """Take over what has been written through `parameters()`; needed before the first use as well."""
        for layer in self._layers:
            for linear in (layer.qkv, layer.out, layer.gate_up, layer.down):
                linear.refresh()
        self._head.refresh()

    def make_cache(self, *, rows: int) -> KVCache:
        """An empty cache for at most `rows` sequences."""
        shape = self.shape
        return KVCache(windows=shape.windows, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=self.dtype, rows=rows)

    def prefill(self, prompts: Sequence[np.ndarray]) -> PromptKV:
        """Run B prompts (int32[P] each, of any lengths) together; long ones go through in chunks."""
        shape = self.shape
        lengths_B = torch.tensor([len(prompt) for prompt in prompts])
        n_rows, length = len(prompts), int(lengths_B.max())
        tokens_BP = torch.zeros(n_rows, length, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens_BP[row, : len(prompt)] = torch.from_numpy(prompt)
        # Right padding: under a causal mask no token of a prompt sees what follows it.
        buffers = [torch.empty(2, n_rows, shape.kv_heads, length, shape.head_dim, dtype=self.dtype) for _ in self._layers]
        last_BE = torch.empty(n_rows, shape.hidden, dtype=self.dtype)
        chunk = max(1, PREFILL_TOKENS // n_rows)
        for start in range(0, length, chunk):
            end = min(start + chunk, length)
            hidden_BCE = self._prefill_chunk(tokens_BP[:, start:end], buffers, start=start)
            ends_here = ((lengths_B > start) & (lengths_B <= end)).nonzero().squeeze(1)
            last_BE[ends_here] = hidden_BCE[ends_here, lengths_B[ends_here] - 1 - start]
        keys, values = zip(
            *([ring(part, lengths_B, window) for part in buffer] for buffer, window in zip(buffers, shape.windows, strict=True)),
            strict=True,
        )
        return PromptKV(keys=keys, values=values, logits_BV=self._logits(last_BE))

    def decode(self, tokens_B: torch.Tensor, positions_B: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """float32[B, V]: raw logits after feeding `tokens_B` at `positions_B` to the rows 0..B-1 of the cache.

        The cache must fit position max(positions_B).
        """
        n_rows = len(tokens_B)
        cos_BX, sin_BX = self._rope(positions_B)
        rows_B = torch.arange(n_rows)
        places = {window: _places(positions_B, window) for window in set(self.shape.windows)}
        hidden_BE = self._embedding[tokens_B]
        for i, (layer, window) in enumerate(zip(self._layers, self.shape.windows, strict=True)):
            column_B, seen_B = places[window]
            keys, values = cache.keys_RKLD[i], cache.values_RKLD[i]
            q_BHD = self._ops.rope_store(
                layer.qkv(self._normed(hidden_BE, layer.attention_norm_E)),
                cos_NX=cos_BX,
                sin_NX=sin_BX,
                rows_N=rows_B,
                columns_N=column_B,
                keys_RKLD=keys,
                values_RKLD=values,
            )
            mixed_BX = self._ops.attend(q_BHD, keys, values, seen_N=seen_B, scale=self._q_scale)
            hidden_BE = self._rest(layer, hidden_BE, mixed_BX)
        return self._logits(hidden_BE)

    def _prefill_chunk(self, tokens_BC: torch.Tensor, buffers: list[torch.Tensor], *, start: int) -> torch.Tensor:
        """[B, C, E]: hidden states of positions start .. start + C - 1; writes their keys and values into the buffers."""
        n_rows, length = tokens_BC.shape
        end = start + length
        cos_CX, sin_CX = self._rope(torch.arange(start, end))
        cos_NX, sin_NX = cos_CX.repeat(n_rows, 1), sin_CX.repeat(n_rows, 1)
        rows_N = torch.arange(n_rows).repeat_interleave(length)
        columns_N = torch.arange(start, end).repeat(n_rows)
        masks = {window: _chunk_mask(start, end, window) for window in set(self.shape.windows)}
        hidden_BCE = self._embedding[tokens_BC]
        for layer, window, buffer in zip(self._layers, self.shape.windows, buffers, strict=True):
            q_NHD = self._ops.rope_store(
                layer.qkv(self._normed(hidden_BCE, layer.attention_norm_E)),
                cos_NX=cos_NX,
                sin_NX=sin_NX,
                rows_N=rows_N,
                columns_N=columns_N,
                keys_RKLD=buffer[0],
                values_RKLD=buffer[1],
            )
            first = 0 if window is None else max(0, start - window + 1)
            seen = buffer[:, :, :, first:end].repeat_interleave(self.shape.heads // self.shape.kv_heads, dim=2)
            mask = masks[window]
            q = q_NHD.unflatten(0, (n_rows, length)).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(q, seen[0], seen[1], attn_mask=mask, is_causal=mask is None, scale=self._q_scale)
            hidden_BCE = self._rest(layer, hidden_BCE, mixed.transpose(1, 2).reshape(n_rows, length, -1))
        return hidden_BCE

    def _rest(self, layer: Layer, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """Hidden states after the attention's output projection and the MLP, [..., E]."""
        hidden = layer.out(mixed).add_(hidden)
        gate_up = layer.gate_up(self._normed(hidden, layer.mlp_norm_E))
        return layer.down(self._ops.silu_mul(gate_up)).add_(hidden)

    def _normed(self, hidden: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        return self._ops.rms_norm(hidden, weight_E, eps=self.shape.norm_eps)

    def _logits(self, hidden_BE: torch.Tensor) -> torch.Tensor:
        """float32[B, V]; the product itself is rounded to the model's dtype, as in transformers."""
        return self._head(self._normed(hidden_BE, self._norm_E)).float()

    def _rope(self, positions_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, float32[N, D / 2], with the precision of the model's dtype as in transformers."""
        angles_NX = positions_N.unsqueeze(1).float() * self._frequencies_X
        cos_NX, sin_NX = angles_NX.cos() * self._rope_scaling, angles_NX.sin() * self._rope_scaling
        return cos_NX.to(self.dtype).float(), sin_NX.to(self.dtype).float()

    def _load(self, model_path: Path) -> None:
        """Copy every tensor of the folder's safetensors files into its view."""
        missing = self.parameters()
        index = model_path / "model.safetensors.index.json"
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            files = ["model.safetensors"]
        for name in files:
            if not (model_path / name).is_file():
                raise ValueError(f"model path {model_path}: {name} is not there; give a folder with safetensors weights")
            with safe_open(model_path / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  (not a mapping)
                    target = missing.pop(key, None)
                    if target is None:
                        if key == "lm_head.weight" and self.shape.tied:
                            continue
                        raise ValueError(f"model path {model_path}: {name} holds {key}, which this architecture does not have")
                    source = file.get_tensor(key)
                    if source.shape != target.shape:
                        raise ValueError(f"model path {model_path}: {key} is {tuple(source.shape)}, config.json says {tuple(target.shape)}")
                    target.copy_(source)
        if missing:
            raise ValueError(f"model path {model_path}: {len(missing)} weights are missing, for example {next(iter(missing))}")


def _chunk_mask(start: int, end: int, window: int | None) -> torch.Tensor | None:
    """bool[C, columns] of what queries start..end-1 may see of the columns that a layer shows them; None for plain causal."""
    if start == 0 and (window is None or end <= window):
        return None
    first = 0 if window is None else max(0, start - window + 1)
    distance = torch.arange(start, end).unsqueeze(1) - torch.arange(first, end)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _places(positions_B: torch.Tensor, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """int64[B] each: the column where a position's key goes, and how many columns hold what the position sees, itself included."""
    if window is None:
        return positions_B, positions_B + 1
    return positions_B % window, (positions_B + 1).clamp(max=window)
