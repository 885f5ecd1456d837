"""The first thing that runs in a container of a repository: fills the work folder with what the host sends, then gives up its rights.

Standard library only, Python 3.8. Nothing of the work folder, of the image's packages or of an agent has run before it, or runs beside it.
A file is (path, mode as `stat` gives it or None for one that is not there, seconds of its last change or None, content or target).
"""

from __future__ import annotations

import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TESTER = 1001


class Unfit(Exception):
    """The changes do not fit: too large, or in each other's way. The files of the image alone did."""


def fill(
    folder: bytes,
    files: Iterable[tuple[bytes, int, float | None, bytes]],
    changes: Iterable[tuple[bytes, int | None, float | None, bytes]],
) -> None:
    """Make the files in an empty folder, then the changes, in their order, over them. Raises Unfit."""
    os.umask(0)
    folders = []
    for path, mode, mtime, data in files:
        full = os.path.join(folder, path)
        if stat.S_ISDIR(mode):
            os.mkdir(full, 0o700)
            folders.append((full, mode & 0o777))
        else:
            _make(full, mode, mtime, data)
    try:
        _change(folder, changes)
    except OSError as error:
        raise Unfit(f"the changes cannot be put there: {os.strerror(error.errno or 0)}") from None
    for full, mode in reversed(folders):
        if os.path.isdir(full):
            os.chmod(full, mode)
    os.umask(0o022)


def _change(folder: bytes, changes: Iterable[tuple[bytes, int | None, float | None, bytes]]) -> None:
    for path, new_mode, mtime, data in changes:
        full = os.path.join(folder, path)
        _clear(full)
        if new_mode is None:
            _prune(folder, os.path.dirname(full))
            continue
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if stat.S_ISDIR(new_mode):
            os.mkdir(full, new_mode & 0o777)
        else:
            _make(full, new_mode, mtime, data)


def _make(full: bytes, mode: int, mtime: float | None, data: bytes) -> None:
    if stat.S_ISLNK(mode):
        os.symlink(data, full)
        return
    descriptor = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o777)
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    os.close(descriptor)
    if mtime is not None:
        os.utime(full, (mtime, mtime))


def _clear(full: bytes) -> None:
    """Remove a file, or a folder with all that is in it."""
    try:
        mode = os.lstat(full).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(mode):
        os.unlink(full)
        return
    for name in os.listdir(full):
        _clear(os.path.join(full, name))
    os.rmdir(full)


def _prune(top: bytes, folder: bytes) -> None:
    """Remove folders that a deletion left empty, as git does."""
    while folder != top and os.path.isdir(folder) and not os.path.islink(folder) and not os.listdir(folder):
        os.rmdir(folder)
        folder = os.path.dirname(folder)


def become_tester() -> None:
    """Give up root for good: with the last root id the kernel takes all capabilities away, and no program can give them back."""
    os.setgroups([])
    os.setresgid(TESTER, TESTER, TESTER)
    os.setresuid(TESTER, TESTER, TESTER)
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    sys.exit("root could be had back")


def main(frame: Callable[[], list[tuple[bytes, int, float | None, bytes]]]) -> None:
    """Take two frames, files and changes; say `+` when they are there, `-` when it is the changes that cannot be."""
    try:
        fill(os.fsencode(os.getcwd()), frame(), frame())
    except Unfit as error:
        sys.stderr.write(str(error))
        sys.stderr.flush()
        os.write(1, b"-")
        os._exit(1)
    if os.geteuid() == 0:
        become_tester()
    os.write(1, b"+")
