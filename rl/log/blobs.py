"""Long texts, kept once: `log/blobs/sha256/ab/abcd....zst`, named by the hash of their content.

A blob is written as a temporary file, synced and renamed before the row that refers to it is, so a reference never leads to a torn
one. Writing the same text again does nothing. Blobs that no row refers to are removed (`blob_sweep.py`), so a writer pins them all from
before it keeps a text until the row is in its manifest: two locks of files, which the kernel drops with the process.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from rl.durable import sync
from rl.log.storage import write_file

FOLDER = "blobs"
_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")
_LARGEST = 1 << 30
"""Bytes; more cannot be what was written."""
_GATE, _LOCK = "blobs.gate", "blobs.lock"
"""Writers share the lock, a sweep has it alone. Whoever wants it passes the gate, which a sweep closes while it waits: so it need not
wait for a moment without any writer."""
_TRY_SECONDS = 0.02


class BlobWriter:
    """Keeps texts of one process. Not thread-safe. Raises OSError when the disk fails."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the run's `log`."""
        self._folder = folder
        self._pinned = False
        self._unique = secrets.token_hex(3)

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Texts are kept within it. Until its end no blob is removed: by then the rows that refer to them must be in a manifest."""
        with _opened(self._folder / _LOCK) as lock:
            with _opened(self._folder / _GATE) as gate:
                fcntl.flock(gate, fcntl.LOCK_SH)
                fcntl.flock(lock, fcntl.LOCK_SH)
            self._pinned = True
            try:
                yield
            finally:
                self._pinned = False

    def keep(self, text: str) -> str:
        """Write the text unless it is there already; its reference."""
        assert self._pinned, "a sweep could remove the blob before a row refers to it"
        data = text.encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(data).hexdigest()
        path = _path(self._folder, digest)
        if not path.exists():
            compressed = pa.BufferOutputStream()
            with pa.CompressedOutputStream(compressed, "zstd") as stream:
                stream.write(data)
            write_file(path, compressed.getvalue(), unique=self._unique)
            for parent in (path.parent, path.parent.parent):
                sync(parent)
        return f"sha256:{digest}"


def read_blob(folder: Path, reference: str) -> bytes:
    """The content behind a reference in a run's `log` folder. Raises ValueError for one that is unknown, gone or damaged."""
    digest = digest_of(reference)
    if digest is None:
        raise ValueError(f"{reference!r} is no reference to a blob; it looks like sha256:<64 hexadecimal digits>")
    path = _path(folder, digest)
    try:
        with pa.input_stream(str(path), compression="zstd") as stream:
            data = bytes(stream.read(_LARGEST))
    except FileNotFoundError:
        raise ValueError(f"there is no blob {path}: log.keep_blobs_versions or log.max_gb gave it up, or it was lost") from None
    except OSError as error:
        raise ValueError(f"blob {path} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"blob {path} is damaged: its content has another hash than its name")
    return data


def digest_of(reference: str) -> str | None:
    """The 64 hexadecimal digits of a reference; None for what is none."""
    match = _REFERENCE.fullmatch(reference)
    return match[1] if match else None


def blob_files(folder: Path) -> Iterator[Path]:
    """All files of the blobs in a run's `log` folder, temporary ones too."""
    return (folder / FOLDER / "sha256").glob("*/*")


def blob_sizes(folder: Path) -> dict[str, int]:
    """Bytes on the disk of each whole blob in a run's `log` folder, by its 64 hexadecimal digits."""
    found = {}
    for path in blob_files(folder):
        if path.suffix == ".zst":
            with contextlib.suppress(FileNotFoundError):  # swept meanwhile
                found[path.stem] = path.stat().st_size
    return found


@contextlib.contextmanager
def unpinned(folder: Path, *, seconds: float) -> Iterator[bool]:
    """Keep writers from pinning, and say whether none has pinned; False when one still has after `seconds`."""
    with _opened(folder / _LOCK) as lock, _opened(folder / _GATE) as gate:
        deadline = time.monotonic() + seconds
        yield _alone(gate, deadline) and _alone(lock, deadline)


def _alone(handle: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_TRY_SECONDS)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def _path(folder: Path, digest: str) -> Path:
    return folder / FOLDER / "sha256" / digest[:2] / f"{digest}.zst"
