"""Files of an agent's container: what the tools edit and create do. Standard library only,
Python 3.8 or newer: a part of the driver, which has the agent's own permissions and no others.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

LARGEST_FILE = 16 << 20
"""Of edit, bytes."""
_MOST_PLACES = 100


class ToolError(Exception):
    """What cannot be done; one line for the agent."""


def places(data: bytes, search: bytes) -> list[int]:
    """Where the text of an edit stands in a file, as offsets: exactly one when the edit can be made.

    As in CWM the text means whole lines where it can: one place where it begins and ends with a line goes before places inside of lines.
    """
    whole = _find(b"\n" + data + b"\n", b"\n" + search + b"\n")
    return whole if len(whole) == 1 else _find(data, search)


def _find(data: bytes, search: bytes) -> list[int]:
    found: list[int] = []
    place = data.find(search)
    while place >= 0 and len(found) < _MOST_PLACES:
        found.append(place)
        place = data.find(search, place + 1)
    return found


def edit(path: bytes, shown: str, *, search: bytes, replacement: bytes, around: int) -> str:
    """Replace a text that stands once in a file. Raises ToolError."""
    with _opened(path, shown, os.O_RDWR) as file:
        before = file.read(LARGEST_FILE + 1)
        if len(before) > LARGEST_FILE:
            raise ToolError(f"{shown} is larger than {LARGEST_FILE >> 20} MiB; edit it with bash")
        if not search:
            raise ToolError("the text to find is empty; nothing was changed")
        found = places(before, search)
        if len(found) != 1:
            raise ToolError(_no_place(before, search, found, shown))
        after = before[: found[0]] + replacement + before[found[0] + len(search) :]
        _overwrite(file, after, before)
    line = before.count(b"\n", 0, found[0])
    lines = after.split(b"\n")
    n_lines = len(lines) - (not lines[-1])
    text = f"{shown} changed at line {line + 1}; it has {n_lines} lines now."
    if around == 0:
        return text
    first, last = max(line - around, 0), min(line + replacement.count(b"\n") + 1 + around, n_lines)
    numbered = [f"{number + 1:6}\t{lines[number].decode('utf-8', 'replace')}" for number in range(first, last)]
    return "\n".join([text, *numbered])


def _overwrite(file: IO[bytes], after: bytes, before: bytes) -> None:
    """Never truncated first: where the disk is full, what was there still fits."""
    try:
        _put(file, after)
    except OSError:
        _put(file, before)
        raise


def _put(file: IO[bytes], data: bytes) -> None:
    file.seek(0)
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    file.truncate(len(data))


def _no_place(data: bytes, search: bytes, found: list[int], shown: str) -> str:
    if not found:
        text = f"the text to find is not in {shown}; nothing was changed. It must be there exactly, white space included."
        if b"\r\n" in data and b"\n" in search.replace(b"\r\n", b""):
            return text + " The file's lines end with CRLF."
        first = search.strip().split(b"\n")[0].strip()
        near = [number for number, line in enumerate(data.split(b"\n"), 1) if first and first in line]
        return f"{text} Its first line is at: line {_listed(near)}." if near else text
    lines = [data.count(b"\n", 0, place) + 1 for place in found]
    more = " or more" if len(found) == _MOST_PLACES else ""
    where = f"{len(found)}{more} times in {shown}, at: line {_listed(lines)}"
    return f"the text to find stands {where}; nothing was changed. Take more of the text around it."


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")


def create(path: bytes, shown: str, content: bytes) -> str:
    """Write a new file, with its parent folders. Raises ToolError."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise ToolError(f"{shown} is there already; change it with edit, or remove it first") from None
    try:
        with open(descriptor, "wb", buffering=0) as file:
            _put(file, content)
    except OSError:
        os.unlink(path)
        raise
    n_lines = content.count(b"\n") + (not content.endswith(b"\n") and bool(content))
    return f"{shown} created with {n_lines} lines."


def read(path: bytes, shown: str, *, most: int) -> bytes:
    """A file. Raises ToolError."""
    with _opened(path, shown, os.O_RDONLY) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ToolError(f"{shown} is larger than {most} bytes")
    return data


def _opened(path: bytes, shown: str, flags: int) -> IO[bytes]:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # a FIFO would block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ToolError(f"{shown} is no regular file")
    return open(descriptor, "r+b" if flags & os.O_RDWR else "rb", buffering=0)
