"""Crash-safe storage of log parts: what is visible is whole, what is whole was visible at once.

A part is written as `<name>.tmp`, synced and renamed; then one line in this writer's own manifest lists all parts that
were sealed together, with their sizes. Readers go through the manifests only, so a temporary file, a part whose
manifest line never made it, or a torn last line are invisible.
"""

import errno
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
from rl.log.manifest import Entry, Part, WriterHealth, encode
from rl.log.schema import BYTE_STREAM_SPLIT, COMPACTED, PARTITION, SCHEMA_KEY, SCHEMA_VERSION

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_ROW_GROUP = 122_880
"""Rows; DuckDB's own size, in which it prunes and spreads over threads."""


class LogWriteError(RunFailed):
    """The log cannot be written; the message names the file and the fix."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """Rows that become one part."""

    dataset: str
    dispatch_version: int
    """-1 with `dispatch_version` as a column of the table: the part is a compacted one."""
    table: pa.Table
    versions: tuple[int, int] | None = None
    """First and last dispatch version of a compacted part."""
    lean: bool = False
    """Retention has emptied its arrays."""


class PartWriter:
    """Seals parts for one process. Not thread-safe. Raises LogWriteError; nothing of a failed call becomes visible."""

    def __init__(self, folder: Path, *, writer: str, attempt: int) -> None:
        """`folder` is the run's `log`; a random tag keeps a restarted writer off its predecessor's files."""
        self._folder = folder
        self._tag = f"{writer}-a{attempt}-{secrets.token_hex(3)}"
        self._sequence = 0
        self._synced: set[Path] = set()
        self._health: WriterHealth | None = None
        self._manifest = folder / f"manifest-{self._tag}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._manifest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
            sync(folder)
        except OSError as error:
            raise LogWriteError(explain(error, self._manifest)) from error

    def seal(
        self,
        pieces: Sequence[Piece],
        *,
        groups: Sequence[str] = (),
        supersedes: Sequence[Part] = (),
        retired: Sequence[Part] = (),
        health: WriterHealth | None = None,
    ) -> tuple[Part, ...]:
        """Write all pieces; they become visible together, and in the same moment `supersedes` and `retired` invisible.

        `groups` are the ids of the rollout groups in the pieces, `health` the writer's counts so far.
        """
        if not pieces and not retired and health in (self._health, None):
            return ()
        written: list[Path] = []
        self._sequence += 1
        path = self._manifest
        try:
            parts = []
            for index, piece in enumerate(pieces):
                path = self._path(piece, index)
                written.append(path)
                parts.append(_write_part(piece, path))
            self._sync_folders({part.path.parent for part in parts})
            path = self._manifest
            self._append(
                Entry(
                    parts=tuple(parts),
                    groups=tuple(groups),
                    supersedes=tuple(str(part.path.relative_to(self._folder)) for part in supersedes),
                    retired=tuple(str(part.path.relative_to(self._folder)) for part in retired),
                    health=health,
                )
            )
            self._health = health or self._health
        except OSError as error:
            for leftover in written:
                leftover.unlink(missing_ok=True)
                _temporary(leftover).unlink(missing_ok=True)
            raise LogWriteError(explain(error, path)) from error
        return tuple(parts)

    def close(self) -> None:
        """Close the manifest."""
        os.close(self._fd)

    def _path(self, piece: Piece, index: int) -> Path:
        """One piece of a call may be for each dataset and version, any number of compacted ones."""
        partition, unique = (f"{PARTITION}={piece.dispatch_version}", "") if piece.versions is None else (COMPACTED, f"-{index}")
        return self._folder / piece.dataset / partition / f"part-{self._tag}-{self._sequence:06d}{unique}.parquet"

    def _sync_folders(self, partitions: set[Path]) -> None:
        """Make the renames durable; a partition seen for the first time may itself be new to the folders above it."""
        for folder in sorted(partitions):
            sync(folder)
            if folder not in self._synced:
                sync(folder.parent)
                sync(self._folder)
                self._synced.add(folder)

    def _append(self, entry: Entry) -> None:
        before = os.fstat(self._fd).st_size
        try:
            write_all(self._fd, encode(entry, self._folder))
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, before)
            raise


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


def write_file(path: Path, data: bytes, *, unique: str = "") -> None:
    """Write a file whole: temporary, synced, renamed. Its folder's entry is not synced.

    `unique` keeps writers apart that may write the same file at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path.with_name(path.name + unique))
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)


def _write_part(piece: Piece, path: Path) -> Part:
    split = BYTE_STREAM_SPLIT.get(piece.dataset, ())
    table = piece.table.replace_schema_metadata({SCHEMA_KEY: str(SCHEMA_VERSION)})
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        use_dictionary=_dictionary_columns(piece),
        use_byte_stream_split=list(split),
        row_group_size=_ROW_GROUP,
        write_page_checksum=True,
        write_statistics=[field.name for field in table.schema if not pa.types.is_nested(field.type)],
    )
    data = buffer.getvalue()
    write_file(path, data)
    return Part(
        dataset=piece.dataset,
        path=path,
        n_bytes=data.size,
        n_rows=piece.table.num_rows,
        versions=piece.versions or (piece.dispatch_version, piece.dispatch_version),
        lean=piece.lean,
    )


def _dictionary_columns(piece: Piece) -> list[str]:
    """Leaf columns that gain from a dictionary: strings. A float column with one could not be byte-stream-split."""
    return [field.name for field in piece.table.schema if pa.types.is_string(field.type)]


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
