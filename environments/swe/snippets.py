"""The smallest edit that makes a change: a text that stands once in the file, and what takes its place."""

import re
from collections.abc import Iterator

from environments.swe.inside.driver_files import places
from environments.swe.text_patch import Replacement, lines_of

_TOKEN = re.compile(rb"[\w\x80-\xff]+|[ \t]+|.", re.DOTALL)


def smallest_edits(base: bytes, replacements: tuple[Replacement, ...]) -> list[tuple[bytes, bytes]] | None:
    """Search and replacement texts of edits that, one after the other, make the changes of a file; None where there are none that do."""
    edits: list[tuple[bytes, bytes]] = []
    lines = lines_of(base)
    moved = 0
    for change in replacements:
        start = change.start + moved
        end = start + len(change.old)
        if tuple(lines[start:end]) != change.old:
            return None
        found = next((edit for edit in _candidates(lines, start=start, end=end, new=change.new) if _fits(lines, *edit)), None)
        if found is None:
            return None
        edits.append(found[1:])
        lines[start:end] = change.new
        moved += len(change.new) - len(change.old)
    return edits


def _fits(lines: list[bytes], at: int, search: bytes, replacement: bytes) -> bool:
    """Whether the text stands once, and at that offset."""
    return bool(search) and places(b"".join(lines), search) == [at]


def _candidates(lines: list[bytes], *, start: int, end: int, new: tuple[bytes, ...]) -> Iterator[tuple[int, bytes, bytes]]:
    """Edits from the smallest one on: parts of a line, the lines, then ever more of the lines around them."""
    if end - start == len(new) == 1 and lines[start].endswith(b"\n") == new[0].endswith(b"\n"):
        offset = sum(map(len, lines[:start]))
        for at, search, replacement in _parts(lines[start].removesuffix(b"\n"), new[0].removesuffix(b"\n")):
            yield offset + at, search, replacement
    before, after = start, end
    while True:
        search, replacement = b"".join(lines[before:after]), b"".join([*lines[before:start], *new, *lines[end:after]])
        if search.strip() and replacement.strip():
            if search.endswith(b"\n") and replacement.endswith(b"\n"):
                search, replacement = search[:-1], replacement[:-1]
            yield sum(map(len, lines[:before])), search, replacement
        if before == 0 and after == len(lines):
            return
        up = before > 0 and (start - before <= after - end or after == len(lines))
        before, after = (before - 1, after) if up else (before, after + 1)


def _parts(old: bytes, new: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Whole words and signs of one line, from those that change to all of it."""
    old_tokens, new_tokens = _TOKEN.findall(old), _TOKEN.findall(new)
    most = min(len(old_tokens), len(new_tokens))
    head = next((i for i in range(most) if old_tokens[i] != new_tokens[i]), most)
    tail = next((i for i in range(most - head) if old_tokens[-1 - i] != new_tokens[-1 - i]), most - head)
    grow_left = False
    while True:
        at = sum(map(len, old_tokens[:head]))
        search, replacement = (b"".join(tokens[head : len(tokens) - tail]) for tokens in (old_tokens, new_tokens))
        if search.strip():
            yield at, search, replacement
        if head == 0 and tail == 0:
            return
        grow_left = head > 0 and (not grow_left or tail == 0)
        head, tail = (head - 1, tail) if grow_left else (head, tail - 1)
