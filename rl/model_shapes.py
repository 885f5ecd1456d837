"""Which tensors a checkpoint folder must have, from its config.json, against those it has, from its files' headers: no weights are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


def weight_files(folder: Path) -> list[Path]:
    """What the folder's index names, or all its safetensors files."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"model.path {folder}: {index.name} is not an index of weights ({error})") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """Of each layer's attention."""

    queries: int
    kv: int
    size: int
    """Numbers of one head."""


def heads_of(config: Mapping[str, Any]) -> Heads:
    """By the contents of a config.json. Raises KeyError for a size that it lacks."""
    queries = config["num_attention_heads"]
    return Heads(
        queries=queries,
        kv=config.get("num_key_value_heads") or queries,
        size=config.get("head_dim") or config["hidden_size"] // queries,
    )


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama or CWM by the contents of its config.json. Raises KeyError for a size that it lacks."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], heads_of(config)
    inside = {
        "self_attn.q_proj": (heads.queries * heads.size, hidden),
        "self_attn.k_proj": (heads.kv * heads.size, hidden),
        "self_attn.v_proj": (heads.kv * heads.size, hidden),
        "self_attn.o_proj": (hidden, heads.queries * heads.size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    return shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundTensor:
    """One tensor of a checkpoint folder, as its file's header tells."""

    path: Path
    shape: tuple[int, ...]


def found_tensors(folder: Path) -> dict[str, FoundTensor]:
    """All tensors in a folder's files by name. Raises ValueError that names a file whose header cannot be read."""
    found: dict[str, FoundTensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                names = file.keys()
                found |= {name: FoundTensor(path=path, shape=tuple(file.get_slice(name).get_shape())) for name in names}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"model.path {folder}: the weights cannot be loaded ({path.name}: {error})") from error
    return found


def check_shapes(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError that names the first tensor which is missing, or has another shape than `config`, the folder's, asks for."""
    try:
        expected = expected_shapes(config)
    except (KeyError, TypeError) as error:
        raise ValueError(f"model.path {folder}: config.json lacks {error}") from error
    found = found_tensors(folder)
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"model.path {folder}: the weights lack {name}: they are of another architecture than config.json")
        if found[name].shape != shape:
            raise ValueError(
                f"model.path {folder}: {name} has shape {list(found[name].shape)}, config.json asks for {list(shape)}: they are another "
                "model's weights"
            )
