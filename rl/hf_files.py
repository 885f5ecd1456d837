"""Hugging Face checkpoints in pieces: tensors read one at a time, shards written by all ranks at once, each its own elements.

    reading: WeightFiles(folder).fill(name, tensor)      writing: make_shards() on rank 0, write_piece() on all, finish_shards() on rank 0

No process holds more than one tensor of the model, and nothing is gathered.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rl.model_shapes import found_tensors

SHARD_BYTES = 4 << 30
_TOKENIZER_FILES = ("tokenizer", "special_tokens", "generation_config", "chat_template")
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_PARTIAL = ".part"


class WeightFiles:
    """The safetensors files of a checkpoint folder, opened anew for each tensor: no mapped file stays resident."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError when a file cannot be read."""
        self._folder, self._found = folder, found_tensors(folder)

    def fill(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor of the checkpoint into this one, of any precision and device. Raises ValueError that names it."""
        if name not in self._found:
            raise ValueError(f"model.path {self._folder}: the weights cannot be loaded (no tensor {name})")
        if (shape := self._found[name].shape) != tensor.shape:
            raise ValueError(
                f"model.path {self._folder}: the weights cannot be loaded ({name} has shape {list(shape)}, its config.json asks for "
                f"{list(tensor.shape)})"
            )
        with safe_open(self._found[name].path, framework="pt") as file:
            tensor.copy_(file.get_tensor(name))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what a checkpoint folder needs besides weights and configuration."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name.startswith(_TOKENIZER_FILES):
            shutil.copyfile(file, target / file.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One safetensors file, before its tensors are written."""

    name: str
    header: bytes
    offsets: Mapping[str, int]
    """First byte of each tensor in the file."""
    size: int
    """Bytes of the whole file."""


def plan_shards(shapes: Mapping[str, tuple[int, ...]], *, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """Share tensors out among files of at most `shard_bytes`, or one tensor that is larger. The same on all ranks."""
    groups: list[dict[str, int]] = []
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if not groups or sum(groups[-1].values()) + size > shard_bytes:
            groups.append({})
        groups[-1][name] = size
    count, shards = len(groups), []
    for i, sizes in enumerate(groups, start=1):
        ends = dict(zip(sizes, torch.tensor(list(sizes.values())).cumsum(0).tolist(), strict=True))
        entries = {
            name: {"dtype": _DTYPE_NAMES[dtype], "shape": list(shapes[name]), "data_offsets": [end - sizes[name], end]}
            for name, end in ends.items()
        }
        text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        shards.append(
            Shard(
                name="model.safetensors" if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors",
                header=header,
                offsets={name: len(header) + end - sizes[name] for name, end in ends.items()},
                size=len(header) + sum(sizes.values()),
            )
        )
    return tuple(shards)


def make_shards(folder: Path, shards: Iterable[Shard]) -> None:
    """Create the files at their full size, under names that no reader takes for weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        with open(folder / (shard.name + _PARTIAL), "wb") as file:
            file.write(shard.header)
            file.truncate(shard.size)


class PieceWriter:
    """Writes one rank's elements to where they belong in the files that `make_shards` made."""

    def __init__(self, folder: Path, shards: Iterable[Shard]) -> None:
        self._place = {name: (shard.name, offset) for shard in shards for name, offset in shard.offsets.items()}
        self._folder = folder
        self._open: tuple[str, int] | None = None

    def write(self, name: str, *, start: int, values: Tensor) -> None:
        """`values`: flat elements of the tensor, from element `start` on."""
        shard, offset = self._place[name]
        if self._open is None or self._open[0] != shard:
            self.close()
            self._open = (shard, os.open(self._folder / (shard + _PARTIAL), os.O_WRONLY))
        data = values.detach().cpu().view(torch.uint8).numpy().data
        position = offset + start * values.element_size()
        try:
            while data:
                written = os.pwrite(self._open[1], data, position)
                data, position = data[written:], position + written
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder / shard)) from error

    def close(self) -> None:
        """Make what was written durable."""
        if self._open is not None:
            os.fsync(self._open[1])
            os.close(self._open[1])
            self._open = None


def finish_shards(folder: Path, shards: tuple[Shard, ...]) -> None:
    """Give the files their names, and Hugging Face's index when there are several. All pieces must have been written."""
    for shard in shards:
        (folder / (shard.name + _PARTIAL)).replace(folder / shard.name)
    if len(shards) > 1:
        total = sum(shard.size - len(shard.header) for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": {name: shard.name for shard in shards for name in shard.offsets}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
