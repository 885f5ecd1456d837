"""Tree changes at rest: their paths checked, files and links as a tar, deletions as a list.

A path is any bytes, so nothing here goes through the file system or through text.
"""

import io
import posixpath
import tarfile
from collections.abc import Iterable

from environments.containers.base import AGENT_UID
from environments.swe.inside.modes import FILE, LINK, PROGRAM, mode_of
from environments.swe.records import TreeChange

LARGEST_PATH, LARGEST_NAME = 4095, 255
"""Bytes of a path and of one of its names; Linux takes no more."""


def check_path(path: bytes) -> None:
    """Raises ValueError for a path that may lead out of the work folder or into git's own files."""
    names = path.split(b"/")
    if not path or b"\0" in path or any(name in (b"", b".", b"..") for name in names):
        raise ValueError(f"path {path!r} must be relative, without empty names, '.', '..' and NUL")
    if any(name.lower() == b".git" for name in names):
        raise ValueError(f"path {path!r} lies in a .git folder")
    if len(path) > LARGEST_PATH or max(map(len, names)) > LARGEST_NAME:
        raise ValueError(f"path {path[:60]!r}... is longer than {LARGEST_PATH} bytes, or one of its names longer than {LARGEST_NAME}")


def is_path(path: bytes) -> bool:
    """Whether `check_path` takes it."""
    try:
        check_path(path)
    except ValueError:
        return False
    return True


def check_changes(changes: Iterable[TreeChange]) -> tuple[TreeChange, ...]:
    """The changes, sorted by path. Raises ValueError for bad paths and modes, links that lead out of the work folder, a path that is
    there twice, and a file where another path needs a folder."""
    ordered = tuple(sorted(changes, key=lambda change: change.path))
    kept = {change.path for change in ordered if change.mode is not None}
    seen: set[bytes] = set()
    for change in ordered:
        check_path(change.path)
        if change.path in seen:
            raise ValueError(f"path {change.path!r} is there twice")
        seen.add(change.path)
        if change.mode not in (FILE, PROGRAM, LINK, None):
            raise ValueError(f"mode of {change.path!r} is {change.mode:o}; it must be one of {FILE:o}, {PROGRAM:o}, {LINK:o}")
        if change.mode is None and change.data:
            raise ValueError(f"{change.path!r} is deleted, yet it has content")
        if change.mode == LINK:
            _check_link(change)
        if change.mode is not None and (parent := next((above for above in parents(change.path) if above in kept), None)):
            raise ValueError(f"{change.path!r} lies below {parent!r}, which is no folder")
    return ordered


def to_tar(changes: Iterable[TreeChange], *, folder: str = "", uid: int = AGENT_UID, mtime: int = 0, folders: bool = False) -> bytes:
    """Files and links below `folder`; the same bytes for the same changes. Deletions are not in it: see `to_list`.

    `folders`: also the folders above them.
    """
    buffer = io.BytesIO()
    made: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:

        def add(name: str, *, kind: bytes, mode: int, data: bytes = b"", target: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.size, member.linkname = kind, mode, len(data), target
            member.uid, member.gid, member.mtime = uid, uid, mtime
            tar.addfile(member, io.BytesIO(data))

        for change in changes:
            if change.mode is None:
                continue
            name = posixpath.join(folder, _text(change.path))
            for above in _above(name) if folders else ():
                if above not in made:
                    made.add(above)
                    add(above, kind=tarfile.DIRTYPE, mode=0o755)
            if change.mode == LINK:
                add(name, kind=tarfile.SYMTYPE, mode=0o777, target=_text(change.data))
            else:
                add(name, kind=tarfile.REGTYPE, mode=change.mode & 0o777, data=change.data)
    return buffer.getvalue()


def _above(name: str) -> list[str]:
    """The folders above a path, the highest first."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def from_tar(data: bytes) -> tuple[TreeChange, ...]:
    """What `to_tar` wrote. Raises ValueError for a damaged tar, and for anything but regular files and symbolic links."""
    if len(data) % tarfile.BLOCKSIZE or not data.endswith(bytes(2 * tarfile.BLOCKSIZE)):
        raise ValueError("not a whole tar: it must end with two empty blocks")
    changes = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                changes.append(_change(member, tar))
    except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
        raise ValueError(f"not a whole tar: {error}") from error
    return tuple(changes)


def to_list(changes: Iterable[TreeChange]) -> bytes:
    """Paths of the deletions, each ended by NUL."""
    return b"".join(change.path + b"\0" for change in changes if change.mode is None)


def from_list(data: bytes) -> tuple[TreeChange, ...]:
    """What `to_list` wrote. Raises ValueError for a damaged list."""
    if data and not data.endswith(b"\0"):
        raise ValueError("not a whole list: its last path has no NUL behind it")
    return tuple(TreeChange(path=path, mode=None) for path in data.split(b"\0")[:-1])


def _change(member: tarfile.TarInfo, tar: tarfile.TarFile) -> TreeChange:
    path = _bytes(member.name)
    if member.issym():
        return TreeChange(path=path, mode=LINK, data=_bytes(member.linkname))
    # a sparse member takes no room in the tar, however large it is
    if not member.isreg() or member.issparse() or (content := tar.extractfile(member)) is None:
        raise ValueError(f"{path!r} is neither a regular file nor a symbolic link")
    return TreeChange(path=path, mode=mode_of(member.mode), data=content.read())


def _check_link(change: TreeChange) -> None:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(change.path), change.data))
    if not change.data or b"\0" in change.data or change.data.startswith(b"/") or target.split(b"/")[0] == b"..":
        raise ValueError(f"{change.path!r} is a link out of the work folder: {change.data!r}")
    if len(change.data) > LARGEST_PATH:
        raise ValueError(f"link {change.path!r} leads to a path of more than {LARGEST_PATH} bytes")


def parents(path: bytes) -> list[bytes]:
    """The folders above a path."""
    names = path.split(b"/")
    return [b"/".join(names[:n]) for n in range(1, len(names))]


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
