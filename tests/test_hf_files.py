"""Checkpoints in pieces: bit for bit what was loaded, whoever writes which part; what is missing or has another shape is named."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl.hf_files import PieceWriter, WeightFiles, finish_shards, make_shards, plan_shards
from rl.model_shapes import weight_files

TENSORS = {"a": torch.randn(7, 3), "b": torch.randn(5), "c.weight": torch.randn(4, 4), "d": torch.randn(1, 9)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shard_bytes", "files"), [(1 << 20, 1), (90, 3)])
def test_pieces_of_several_writers_make_the_files_of_the_library(tmp_path: Path, dtype: torch.dtype, shard_bytes: int, files: int) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shards = plan_shards(shapes, dtype=dtype, shard_bytes=shard_bytes * dtype.itemsize // 4)
    make_shards(tmp_path, shards)
    for rank in (2, 0, 1):
        writer = PieceWriter(tmp_path, shards)
        for name, tensor in tensors.items():
            cuts = [rank * tensor.numel() // 3, (rank + 1) * tensor.numel() // 3]
            writer.write(name, start=cuts[0], values=tensor.flatten()[slice(*cuts)])
        writer.close()
    assert weight_files(tmp_path) == [], "a reader must not take unfinished files for weights"
    finish_shards(tmp_path, shards)
    assert len(weight_files(tmp_path)) == len(list(tmp_path.glob("*.safetensors"))) == files
    read = dict(itertools.chain.from_iterable(load_file(path).items() for path in weight_files(tmp_path)))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    reader = WeightFiles(tmp_path)
    for name, tensor in tensors.items():
        target = torch.empty_like(tensor)
        reader.fill(name, target)
        assert torch.equal(target, tensor)
    if files > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    files = WeightFiles(tmp_path)
    with pytest.raises(ValueError, match="no tensor lm_head"):
        files.fill("lm_head.weight", torch.empty(3))
    with pytest.raises(ValueError, match=r"a has shape \[7, 3\], its config\.json asks for \[3, 7\]"):
        files.fill("a", torch.empty(3, 7))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"the weights cannot be loaded \(model\.safetensors: "):
        WeightFiles(tmp_path)
