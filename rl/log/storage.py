"""Crash-safe storage of log parts: what is visible is whole, what is whole was visible at once.

A part is written as `<name>.tmp`, synced and renamed; then one line in this writer's own manifest lists all parts that
were sealed together, with their sizes. Readers go through the manifests only, so a temporary file, a part whose
manifest line never made it, or a torn last line are invisible.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rl.durable import sync
from rl.errors import RunFailed
from rl.log.schema import BYTE_STREAM_SPLIT, DATASETS, PARTITION

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class LogWriteError(RunFailed):
    """The log cannot be written; the message names the file and the fix."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """Rows that become one part."""

    dataset: str
    dispatch_version: int
    table: pa.Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One sealed part, as its manifest lists it."""

    dataset: str
    path: Path
    n_bytes: int
    n_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a reader may open."""

    sealed: tuple[Part, ...]
    problems: tuple[str, ...]
    """One sentence for each listed part that is missing or has another size than the manifest says."""
    repeated: bool
    """Whether some group was written more than once: by two attempts, or by a worker that died before it delivered."""


class PartWriter:
    """Seals parts for one process. Not thread-safe. Raises LogWriteError; nothing of a failed call becomes visible."""

    def __init__(self, folder: Path, *, writer: str, attempt: int) -> None:
        """`folder` is the run's `log`; a random tag keeps a restarted writer off its predecessor's files."""
        self._folder = folder
        self._tag = f"{writer}-a{attempt}-{secrets.token_hex(3)}"
        self._sequence = 0
        self._synced: set[Path] = set()
        self._manifest = folder / f"manifest-{self._tag}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._manifest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
            sync(folder)
        except OSError as error:
            raise LogWriteError(explain(error, self._manifest)) from error

    def seal(self, pieces: Sequence[Piece], *, groups: Sequence[str] = ()) -> None:
        """Write all pieces; they become visible together. `groups` are the ids of the rollout groups in them."""
        if not pieces:
            return
        written: list[Path] = []
        self._sequence += 1
        path = self._manifest
        try:
            parts = []
            for piece in pieces:
                path = self._path(piece)
                written.append(path)
                parts.append(_write_part(piece, path))
            self._sync_folders({part.path.parent for part in parts})
            path = self._manifest
            self._append(parts, groups)
        except OSError as error:
            for leftover in written:
                leftover.unlink(missing_ok=True)
                _temporary(leftover).unlink(missing_ok=True)
            raise LogWriteError(explain(error, path)) from error

    def close(self) -> None:
        """Close the manifest."""
        os.close(self._fd)

    def _path(self, piece: Piece) -> Path:
        partition = f"{PARTITION}={piece.dispatch_version}"
        return self._folder / piece.dataset / partition / f"part-{self._tag}-{self._sequence:06d}.parquet"

    def _sync_folders(self, partitions: set[Path]) -> None:
        """Make the renames durable; a partition seen for the first time may itself be new to the folders above it."""
        for folder in sorted(partitions):
            sync(folder)
            if folder not in self._synced:
                sync(folder.parent)
                sync(self._folder)
                self._synced.add(folder)

    def _append(self, parts: Sequence[Part], groups: Sequence[str]) -> None:
        entries = [
            {"dataset": part.dataset, "path": str(part.path.relative_to(self._folder)), "bytes": part.n_bytes, "rows": part.n_rows}
            for part in parts
        ]
        before = os.fstat(self._fd).st_size
        try:
            write_all(self._fd, json.dumps({"parts": entries, "groups": list(groups)}).encode() + b"\n")
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, before)
            raise


def read_manifests(folder: Path) -> Parts:
    """All sealed parts of a run's `log` folder, in a stable order."""
    sealed: list[Part] = []
    problems: list[str] = []
    groups: list[str] = []
    for manifest in sorted(folder.glob("manifest-*.jsonl")):
        for line in manifest.read_bytes().split(b"\n"):
            parts, named = _parse(line, folder)
            groups += named
            for part in parts:
                size = part.path.stat().st_size if part.path.is_file() else None
                if size == part.n_bytes:
                    sealed.append(part)
                else:
                    found = "is missing" if size is None else f"has {size} bytes"
                    problems.append(f"{part.path} {found}; its manifest says {part.n_bytes} bytes")
    return Parts(sealed=tuple(sealed), problems=tuple(problems), repeated=len(set(groups)) < len(groups))


def explain(error: OSError, path: Path) -> str:
    """Why `path` could not be written, and what to do."""
    if error.errno in _NO_SPACE:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 2**20
        return (
            f"cannot write {path}: no space left on the device ({free:.0f} MiB free). Free some space, or set log.tokens=false "
            "to write less, then resume the run"
        )
    return f"cannot write {path}: {error.strerror or error}. Make the run's folder writable, then resume the run"


def write_all(fd: int, data: bytes) -> None:
    """Write every byte; `os.write` may take fewer than it is given."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _parse(line: bytes, folder: Path) -> tuple[list[Part], list[str]]:
    """Parts and group ids of one manifest line; nothing of a line that is torn or points out of the folder."""
    try:
        record = json.loads(line)
        entries, groups = record["parts"], [str(group) for group in record["groups"]]
        parts = [
            Part(dataset=str(e["dataset"]), path=folder / str(e["path"]), n_bytes=int(e["bytes"]), n_rows=int(e["rows"])) for e in entries
        ]
    except (ValueError, KeyError, TypeError):
        return [], []  # torn by a kill, or being written right now
    inside = all(part.dataset in DATASETS and ".." not in part.path.parts and part.path.is_relative_to(folder) for part in parts)
    return (parts, groups) if inside else ([], [])


def _write_part(piece: Piece, path: Path) -> Part:
    split = BYTE_STREAM_SPLIT.get(piece.dataset, ())
    buffer = pa.BufferOutputStream()
    pq.write_table(piece.table, buffer, compression="zstd", use_dictionary=_dictionary_columns(piece), use_byte_stream_split=list(split))
    data = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    return Part(dataset=piece.dataset, path=path, n_bytes=data.size, n_rows=piece.table.num_rows)


def _dictionary_columns(piece: Piece) -> list[str]:
    """Leaf columns that gain from a dictionary: strings. A float column with one could not be byte-stream-split."""
    return [field.name for field in piece.table.schema if pa.types.is_string(field.type)]


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
