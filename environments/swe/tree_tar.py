"""Trees on their way into git: from a tar, or from changes, to the stream of `git fast-import`. Nothing is unpacked.

What is left out: `.git`, byte code, and the droppings of tools. A `.gitignore` is not asked: a file that a fix needs must not be lost
because of a pattern. Sockets, devices and FIFOs are left out too.
"""

import io
import tarfile
from collections.abc import Collection, Iterator

from environments.swe.changes import is_path
from environments.swe.git import IDENTITY
from environments.swe.inside.droppings import is_dropping
from environments.swe.inside.modes import LINK, mode_of
from environments.swe.records import TreeChange


def read_tree(tar: bytes) -> Iterator[TreeChange]:
    """The files and links of a tar of a folder, whose name every entry has as its first part, without git's and what tools left behind.

    Raises ValueError for bytes that are no tar.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            for entry in archive:
                if (found := _read_entry(archive, entry)) is not None:
                    yield found
    except (tarfile.TarError, KeyError) as error:
        raise ValueError(f"the archive of a work folder is damaged: {error}") from error


def _read_entry(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> TreeChange | None:
    name = entry.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
    _, _, path = name.partition(b"/")
    if not is_path(path) or is_dropping(path):
        return None
    if entry.issym():
        return TreeChange(path=path, mode=LINK, data=entry.linkname.encode("utf-8", "surrogateescape"))
    if not entry.isfile() and not entry.islnk():
        return None
    file = archive.extractfile(entry)
    data = file.read() if file is not None else b""
    return TreeChange(path=path, mode=mode_of(entry.mode), data=data)


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
