"""How the agent's work folder differs from what it was: a part of the driver. Standard library only, Python 3.8.

Who had taken over the driver could answer anything here, and gain a patch, which the agent can make anyway.
"""

from __future__ import annotations

import os
import stat

from environments.swe.inside.driver_files import ToolError
from environments.swe.inside.droppings import is_dropping
from environments.swe.inside.json_text import to_json
from environments.swe.inside.modes import LINK, mode_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

_CHUNK = 1 << 20
_MOST_FILES = 100_000


class Changes:
    """Files and links that are new, differ, or are gone; `data` gives them in the form that the host reads."""

    def __init__(self, folder: bytes, listing: bytes, *, most: int) -> None:
        """`listing`: of git, `<mode> blob <id>TAB<path>NUL` for each path of the base. Raises ToolError when it is too much."""
        self._folder = folder
        lines = [line.partition(b"\t") for line in listing.split(b"\0") if line]
        self._base = {path: (int(head[:6], 8), head[12:].decode()) for head, _, path in lines}
        self._above = {path[:at] for path in self._base for at, byte in enumerate(path) if byte == 0x2F}
        self._found: list[tuple[bytes, int, int, bytes]] = []
        """Path, git's mode, size, and the target of a link."""
        seen: set[bytes] = set()
        total = 0
        for path, status in self._walk():
            seen.add(path)
            mode = mode_of(status.st_mode, link=stat.S_ISLNK(status.st_mode))
            target = os.readlink(os.path.join(folder, path)) if mode == LINK else b""
            size = len(target) if mode == LINK else status.st_size
            if size <= most and self._base.get(path) == (mode, self._id(path, size, target)):
                continue
            self._found.append((path, mode, size, target))
            total += size
            if total > most or len(self._found) > _MOST_FILES:
                raise ToolError(f"the changed files are larger than {most >> 20} MiB, or more than {_MOST_FILES}")
        gone = [[path.decode("latin-1"), None, 0] for path in self._base if path not in seen]
        self._head = to_json([*gone, *([path.decode("latin-1"), mode, size] for path, mode, size, _ in self._found)]).encode()
        self.size = 8 + len(self._head) + total
        """Bytes of `data`."""

    def data(self) -> Iterator[bytes]:
        """The length of a listing in JSON, the listing, then the contents in its order."""
        yield len(self._head).to_bytes(8, "big") + self._head
        for path, mode, size, target in self._found:
            if mode == LINK:
                yield target
                continue
            left = size
            with _opened(os.path.join(self._folder, path)) as file:
                while left:
                    part = file.read(min(left, _CHUNK)) or bytes(left)
                    left -= len(part)
                    yield part

    def _walk(self) -> Iterator[tuple[bytes, os.stat_result]]:
        todo = [b""]
        while todo:
            below = todo.pop()
            folder = os.path.join(self._folder, below) if below else self._folder
            if not os.access(folder, os.R_OK | os.X_OK):
                os.chmod(folder, 0o700)
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                path = below + entry.name
                status = entry.stat(follow_symlinks=False)
                if entry.name.lower() == b".git":
                    continue
                if stat.S_ISDIR(status.st_mode):
                    if path in self._above or not is_dropping(path + b"/x"):
                        todo.append(path + b"/")
                elif (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)) and (path in self._base or not is_dropping(path)):
                    yield path, status

    def _id(self, path: bytes, size: int, target: bytes) -> str:
        """Git's name of the content; empty for a path that the base does not have."""
        known = self._base.get(path)
        if known is None:
            return ""
        digest = _sha1(b"blob %d\0" % size + target)
        if not target:
            with _opened(os.path.join(self._folder, path)) as file:
                while part := file.read(_CHUNK):
                    digest.update(part)
        return digest.hexdigest()


def _opened(path: bytes) -> IO[bytes]:
    """All files are the agent's own, whatever their modes."""
    if not os.access(path, os.R_OK):
        os.chmod(path, 0o600)
    return open(path, "rb", buffering=0)


try:
    from _sha1 import sha1 as _sha1
except ImportError:
    from hashlib import sha1 as _sha1
