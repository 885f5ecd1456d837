"""Long texts, kept once: `log/blobs/sha256/ab/abcd....zst`, named by the hash of their content.

A blob is written as a temporary file, synced and renamed before the row that refers to it is, so a reference never leads to a torn
one. Writing the same text again does nothing.
"""

import hashlib
import re
import secrets
from pathlib import Path

import pyarrow as pa

from rl.durable import sync
from rl.log.storage import write_file

FOLDER = "blobs"
_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")
_LARGEST = 1 << 30
"""Bytes; more cannot be what was written."""


class BlobWriter:
    """Keeps texts of one process. Not thread-safe. Raises OSError when the disk fails."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the run's `log`."""
        self._folder = folder
        self._known: set[str] = set()
        self._unique = secrets.token_hex(3)

    def keep(self, text: str) -> str:
        """Write the text unless it is there already; its reference."""
        data = text.encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(data).hexdigest()
        path = _path(self._folder, digest)
        if digest not in self._known and not path.exists():
            compressed = pa.BufferOutputStream()
            with pa.CompressedOutputStream(compressed, "zstd") as stream:
                stream.write(data)
            write_file(path, compressed.getvalue(), unique=self._unique)
            for parent in (path.parent, path.parent.parent):
                sync(parent)
        self._known.add(digest)
        return f"sha256:{digest}"


def read_blob(folder: Path, reference: str) -> bytes:
    """The content behind a reference in a run's `log` folder. Raises ValueError for one that is unknown or damaged."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ValueError(f"{reference!r} is no reference to a blob; it looks like sha256:<64 hexadecimal digits>")
    path = _path(folder, match[1])
    try:
        with pa.input_stream(str(path), compression="zstd") as stream:
            data = bytes(stream.read(_LARGEST))
    except OSError as error:
        raise ValueError(f"blob {path} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != match[1]:
        raise ValueError(f"blob {path} is damaged: its content has another hash than its name")
    return data


def _path(folder: Path, digest: str) -> Path:
    return folder / FOLDER / "sha256" / digest[:2] / f"{digest}.zst"
