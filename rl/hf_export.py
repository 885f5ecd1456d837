"""Writes a Hugging Face checkpoint tensor by tensor, so that the whole model is never in memory at once."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 4 << 30
_TOKENIZER_FILES = ("tokenizer", "special_tokens", "generation_config", "chat_template")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what a checkpoint folder needs besides weights and configuration."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name.startswith(_TOKENIZER_FILES):
            shutil.copyfile(file, target / file.name)


class ShardWriter:
    """Writes named tensors as safetensors shards of bounded size, with Hugging Face's index when there are several."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._shards: list[list[str]] = []
        self._pending: dict[str, Tensor] = {}
        self._bytes = 0
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a CPU tensor; it is written and let go when its shard is full."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > SHARD_BYTES:
            self._flush()
        self._pending[name] = tensor
        self._bytes += size
        self._total += size

    def _flush(self) -> None:
        save_file(self._pending, self._folder / f"part-{len(self._shards)}.safetensors", metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._bytes = {}, 0

    def close(self) -> None:
        """Give the shards their final names."""
        self._flush()
        count = len(self._shards)
        names = ["model.safetensors"] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        for i, name in enumerate(names):
            (self._folder / f"part-{i}.safetensors").replace(self._folder / name)
        if count > 1:
            weight_map = {tensor: names[i] for i, tensors in enumerate(self._shards) for tensor in tensors}
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
