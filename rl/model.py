"""Checkpoints in and out: Hugging Face folders, GGUF files, and CWM models built from scratch.

All of it works on a folder with `config.json`, safetensors and a fast tokenizer. Nothing here talks to
the Hugging Face hub.
"""

import os
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CwmConfig,
    CwmForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rl.model_folder import SUPPORTED, check_folder, read_settings

transformers.logging.disable_progress_bar()  # what a terminal shows is for rl/progress.py to decide
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(path: str | Path, *, dtype: str) -> PreTrainedModel:
    """The model of a checkpoint folder on the CPU, in eval mode, with SDPA attention. `dtype` is float32 or bfloat16."""
    folder = Path(path)
    check_folder(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="sdpa", local_files_only=True)
    except Exception as error:  # safetensors and transformers raise a dozen types on damaged weights
        raise ValueError(f"model.path {folder}: the weights cannot be loaded ({type(error).__name__}: {error})") from error
    return model.eval()


def empty_model(path: str | Path, *, dtype: str) -> PreTrainedModel:
    """The architecture of a checkpoint folder with parameters on the meta device: shapes without storage. Its buffers are real."""
    folder = Path(path)
    check_folder(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], attn_implementation="sdpa")
    decoder = model.model
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config)  # its frequencies are computed, not loaded
    assert not any(buffer.is_meta for buffer in model.buffers()), "a buffer has no values"
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a checkpoint folder (safetensors, config, tokenizer) that replaces `folder` as a whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent))
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        if folder.exists():
            old = partial.with_suffix(".old.tmp")
            os.rename(folder, old)
            os.rename(partial, folder)
            shutil.rmtree(old)
        else:
            os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def vocabulary_size(path: str | Path) -> int:
    """Rows of the embedding of a checkpoint folder, from its config.json."""
    return int(read_settings(Path(path))["vocab_size"])


def tiny_cwm_config(
    *,
    vocab: int,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    sliding_window: int = 64,
    context: int = 2048,
    initializer_range: float = 0.02,
) -> CwmConfig:
    """CWM's architecture in small: layer 0 and every second one after it attend to everything, the others to a sliding window.

    `initializer_range` is the standard deviation of the first weights."""
    return CwmConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        sliding_window=sliding_window,
        layer_types=["full_attention" if i % 2 == 0 else "sliding_attention" for i in range(layers)],
        max_position_embeddings=context,
        initializer_range=initializer_range,
        bos_token_id=0,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": max(context // 16, 1),
        },
        tie_word_embeddings=False,
    )


def build_tiny_cwm(tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, initializer_range: float = 0.02, **sizes: int) -> CwmForCausalLM:
    """A randomly initialised float32 CWM for a tokenizer; `sizes` are those of `tiny_cwm_config` except the vocabulary."""
    config = tiny_cwm_config(vocab=len(tokenizer), initializer_range=initializer_range, **sizes)
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    config.eos_token_id = [tokenizer.get_vocab()[text] for text in ("<|end_of_text|>", "<|eot_id|>")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CwmForCausalLM(config)


def convert_gguf(source: Path, target: Path) -> Path:
    """Dequantize a GGUF file into a bfloat16 safetensors folder; it appears under `target` complete or not at all.

    Raises ValueError when the file cannot be read, or holds another architecture.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    except Exception as error:  # the GGUF readers raise many types
        raise ValueError(f"model.gguf_file {source.name}: cannot be converted ({type(error).__name__}: {error})") from error
    if model.config.model_type not in SUPPORTED:
        raise ValueError(
            f"model.gguf_file {source.name}: architecture {model.config.model_type!r} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    # The loaded weights are plain tensors: the checkpoint must not claim to be quantized.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]  # nn.Module's __setattr__ is typed for tensors and modules
    save_model(model, tokenizer, target)
    return target
