"""One learner rank's state on disk: a file of tensors and a manifest that proves it whole. Knows nothing of ZeRO."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from rl.durable import file_digest, write_durably


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What decides how the state is cut up: it must be the same when it is read."""

    world_size: int
    zero_stage: int
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Manifest:
    """Written after the state it describes, under the same name with the suffix `.json`."""

    bytes: int
    xxh3_64: str
    layout: Layout
    optimizer_step: int


def write_state(state: Any, folder: Path, *, rank: int, layout: Layout, optimizer_step: int) -> None:
    """Write a rank's tensors and their manifest durably: both files are synced and appear whole."""
    folder.mkdir(parents=True, exist_ok=True)
    target = _state_file(folder, rank)
    write_durably(target, lambda path: torch.save(state, path))
    manifest = _Manifest(bytes=target.stat().st_size, xxh3_64=file_digest(target), layout=layout, optimizer_step=optimizer_step)
    text = json.dumps(asdict(manifest), indent=1)
    write_durably(target.with_suffix(".json"), lambda path: path.write_text(text))


def read_state(folder: Path, *, rank: int, layout: Layout) -> tuple[Any, int]:
    """The tensors (on the CPU) and the optimizer step that `write_state` wrote.

    Raises:
        ValueError: a file is missing or damaged, or was written with another layout.
    """
    path = _state_file(folder, rank)
    try:
        fields_read = json.loads(path.with_suffix(".json").read_text())
        manifest = _Manifest(**fields_read | {"layout": Layout(**fields_read["layout"])})
        whole = path.stat().st_size == manifest.bytes and file_digest(path) == manifest.xxh3_64
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: the learner's checkpoint is missing or unreadable ({error}); use an older one") from error
    if not whole:
        raise ValueError(f"{path}: the learner's checkpoint is damaged (size or checksum differs from its manifest); use an older one")
    for field in fields(Layout):
        saved, wanted = getattr(manifest.layout, field.name), getattr(layout, field.name)
        if saved != wanted:
            raise ValueError(f"{path}: the checkpoint was written with {field.name} {saved}, this run has {wanted}: resume with the same")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True), manifest.optimizer_step


def _state_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.pt"
