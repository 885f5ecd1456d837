"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder `step-000123` that appears by one rename, after all its files and their checksums are on disk.
A damaged one is skipped with a message and the one before it is used.
"""

import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from environments.records import Problem
from environments.sources.mixture import MixtureState
from rl.buffer import BufferState
from rl.codec import decode, encode
from rl.durable import file_digest, sync, write_durably

_STATE = "state.json"
_MANIFEST = "files.json"


class CheckpointDamaged(ValueError):
    """A file of the checkpoint is missing or does not match its checksum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnfinishedJob:
    """A group that was under way: started again on resume."""

    index: int
    problem: Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopState:
    """The loop's own part of a checkpoint; the learner writes the other."""

    version: int
    mixture: MixtureState
    buffer: BufferState
    unfinished: tuple[UnfinishedJob, ...]
    barren_steps: int
    """Consecutive steps without any group to learn from."""
    config_fingerprint: str
    """Hash of the settings that must not change between attempts."""


class Checkpoints:
    """The checkpoint folder of one run."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    async def write(self, state: LoopState, *, save_learner: Callable[[Path], Awaitable[None]]) -> Path:
        """Write a checkpoint of `state.version`; older ones beyond `keep` are removed only after it is complete."""
        final = self._folder / f"step-{state.version:06d}"
        work = self._folder / f"{final.name}.tmp"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        await save_learner(work / "learner")
        write_durably(work / _STATE, lambda path: path.write_text(json.dumps(encode(state))))
        sums = {str(path.relative_to(work)): file_digest(path) for path in sorted(work.rglob("*")) if path.is_file()}
        write_durably(work / _MANIFEST, lambda path: path.write_text(json.dumps(sums, indent=1)))
        if final.exists():  # written by an earlier attempt that was resumed from further back
            shutil.rmtree(final)
        work.rename(final)
        sync(self._folder)
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def newest(self, *, say: Callable[[str], None]) -> tuple[Path, LoopState] | None:
        """The newest undamaged checkpoint; `say` hears about each one that is skipped."""
        for path in reversed(self._complete()):
            try:
                return path, self._read(path)
            except CheckpointDamaged as error:
                say(f"checkpoint {path.name} is damaged ({error}); trying the one before it")
        return None

    def _complete(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if path.name.startswith("step-") and path.suffix != ".tmp")

    def _read(self, path: Path) -> LoopState:
        try:
            sums = json.loads((path / _MANIFEST).read_text())
            for name, wanted in sums.items():
                if file_digest(path / name) != wanted:
                    raise CheckpointDamaged(f"{name} does not match its checksum")
            state: LoopState = decode(LoopState, json.loads((path / _STATE).read_text()))
        except CheckpointDamaged:
            raise
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointDamaged(str(error)) from error
        return state
