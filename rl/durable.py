"""Files that survive a crash whole, and the checksum that proves it."""

import os
from collections.abc import Callable
from pathlib import Path

import xxhash


def write_durably(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then sync it, rename it to `target` and sync the folder."""
    work = target.with_name(target.name + ".tmp")
    write(work)
    sync(work)
    work.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """xxh3_64 of a file's bytes, 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as handle:
        while block := handle.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
