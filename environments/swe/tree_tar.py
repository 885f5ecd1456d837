"""Trees on their way into git: from a tar, or from changes, to the stream of `git fast-import`. Nothing is unpacked.

What is left out of an agent's tree: `.git`, byte code, and the droppings of tools, unless the base has a file of that path. A
`.gitignore` is not asked: a file that a fix needs must not be lost because of a pattern. Sockets, devices and FIFOs are left out too.
"""

import io
import tarfile
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from environments.swe.git import IDENTITY
from environments.swe.records import PatchError, TreeChange

_NEVER = frozenset((".git",))
_DROPPING_FOLDERS = (
    *("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox", ".cache", ".ipynb_checkpoints"),
    *("*.egg-info", ".eggs", ".venv", "node_modules"),
)
_DROPPING_NAMES = ("*.pyc", "*.pyo", ".coverage", ".coverage.*", "*.swp", "*~", ".DS_Store", ".python_history", ".bash_history")


def is_dropping(path: bytes) -> bool:
    """Whether a path is what tools leave behind."""
    *folders, name = path.decode("utf-8", "surrogateescape").split("/")
    if any(fnmatchcase(folder, pattern) for folder in folders for pattern in _DROPPING_FOLDERS):
        return True
    return any(fnmatchcase(name, pattern) for pattern in _DROPPING_NAMES)


def read_tree(tar: bytes, *, tracked: Collection[bytes] = (), most_file_bytes: int | None = None) -> Iterator[TreeChange]:
    """The files and links of a tar of a folder, whose name every entry has as its first part.

    With `most_file_bytes` the files together may be at most as large as the tar and one such file more: hard links, of which a tar has
    the content once, could be far more. Raises PatchError for what is too large, ValueError for bytes that are no tar.
    """
    left = None if most_file_bytes is None else len(tar) + most_file_bytes
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            for entry in archive:
                found = _read_entry(archive, entry, tracked=tracked, most_file_bytes=most_file_bytes)
                if found is None:
                    continue
                if left is not None and (left := left - len(found.data)) < 0:
                    raise PatchError("hard links make the work folder larger than its archive")
                yield found
    except tarfile.TarError as error:
        raise ValueError(f"the archive of a work folder is damaged: {error}") from error


def _read_entry(
    archive: tarfile.TarFile, entry: tarfile.TarInfo, *, tracked: Collection[bytes], most_file_bytes: int | None
) -> TreeChange | None:
    name = entry.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
    _, _, path = name.partition(b"/")
    parts = path.split(b"/")
    if not path or any(part in (b"", b".", b"..") for part in parts) or any(part.lower() in (b".git",) for part in parts):
        return None
    if path not in tracked and is_dropping(path):
        return None
    if entry.issym():
        return TreeChange(path=path, mode=0o120000, data=entry.linkname.encode("utf-8", "surrogateescape"))
    if not entry.isfile() and not entry.islnk():
        return None
    if most_file_bytes is not None and entry.size > most_file_bytes:
        raise PatchError(f"file {shown(path)} is larger than {most_file_bytes >> 20} MiB")
    try:
        file = archive.extractfile(entry)
    except KeyError:
        raise PatchError(f"{shown(path)} is a hard link to a file that is not in the work folder") from None
    data = file.read() if file is not None else b""
    return TreeChange(path=path, mode=0o100755 if entry.mode & 0o100 else 0o100644, data=data)


def import_stream(changes: Iterator[TreeChange] | Collection[TreeChange], *, ref: str, tree: str = "") -> bytes:
    """Input of fast-import that makes one commit without a parent on `ref`: of `changes` over the tree with the id `tree`."""
    stream = io.BytesIO()
    stream.write(f"commit {ref}\ncommitter {IDENTITY}\ndata 5\nbase\n".encode())
    if tree:
        stream.write(f'M 040000 {tree} ""\n'.encode())
    for change in sorted(changes, key=lambda one: one.mode is not None):  # deletions first: a file may take a folder's place
        if change.mode is None:
            stream.write(b"D " + quoted(change.path) + b"\n")
        else:
            stream.write(b"M %o inline %s\ndata %d\n" % (change.mode, quoted(change.path), len(change.data)))
            stream.write(change.data)
            stream.write(b"\n")
    stream.write(b"done\n")
    return stream.getvalue()


def quoted(path: bytes) -> bytes:
    """A path as git quotes it."""
    return b'"' + b"".join(b"\\%03o" % byte if byte < 0x20 or byte >= 0x7F or byte in b'"\\' else bytes((byte,)) for byte in path) + b'"'


def shown(path: bytes) -> str:
    """A path for one line of text."""
    return path.decode(errors="backslashreplace").encode("unicode_escape").decode()[:200]
