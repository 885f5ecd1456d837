"""Files that are whole or not there, the checksum that proves it, and locks."""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash


def write_durably(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then sync it, rename it to `target` and sync the folder."""
    work = target.with_name(target.name + ".tmp")
    write(work)
    sync(work)
    work.replace(target)
    sync(target.parent)


def check_new(out: Path) -> None:
    """Raise ValueError unless `out`, which the option --out gave, can be made: it does not exist, and its folder does."""
    if os.path.lexists(out):
        raise ValueError(f"--out {out} exists: choose another path, or remove it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")


@contextlib.contextmanager
def drafted(out: Path) -> Iterator[Path]:
    """A path next to `out`, a file or a folder to be, which takes its place at the end; removed when something goes wrong."""
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield draft
        if os.path.lexists(out):
            raise ValueError(f"--out {out} was made by someone else meanwhile: choose another path")
        draft.rename(out)
    except BaseException:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exclusive_lock(path: Path) -> contextlib.ExitStack | None:
    """Hold a lock file until the result is closed, or this process ends; None while another holder has it."""
    held = contextlib.ExitStack()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    held.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        return None
    return held


def file_digest(path: Path) -> str:
    """xxh3_64 of a file's bytes, 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as handle:
        while block := handle.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
