"""The simple parts of a git patch, for writing them as edits: files whose text lines change, and new text files.

It does not apply patches and judges none: a section that is not plain is left as it is, for git. That goes for binary ones, deletions,
renames, changes of mode, and names that git quotes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_START = b"diff --git "
_HUNK = re.compile(rb"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_NO_NEWLINE = b"\\"
_BINARY = re.compile(rb"^(?:GIT binary patch|Binary files |Files )", re.MULTILINE)
_NEW_ID = re.compile(rb"^index [0-9a-fA-F]+\.\.([0-9a-fA-F]{40})", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """Lines `start` to `start + len(old)` of a file, from 0, give way to `new`; lines keep their line breaks."""

    start: int
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What a patch does to one file."""

    raw: bytes
    path: str | None = None
    """None: not plain."""
    new_file: bool = False
    replacements: tuple[Replacement, ...] = ()
    """In order, disjoint; one of a new file."""


def sections(patch: bytes) -> Iterator[Section]:
    """The patch, file by file."""
    lines = lines_of(patch)
    starts = [place for place, line in enumerate(lines) if line.startswith(_START)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield _section(lines[start:end])


def binary_ids(patch: bytes) -> set[bytes]:
    """Git's names of the contents that binary sections say they make."""
    parts = re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE)
    return {found[1].lower() for part in parts if _BINARY.search(part) for found in _NEW_ID.finditer(part)}


def lines_of(data: bytes) -> list[bytes]:
    """Lines with their line feeds; nothing else ends a line."""
    found = [line + b"\n" for line in data.split(b"\n")]
    last = found.pop()[:-1]
    return [*found, last] if last else found


def _section(lines: list[bytes]) -> Section:
    raw = b"".join(lines)
    head = next((place for place, line in enumerate(lines) if line.startswith(b"--- ")), len(lines))
    new_file = b"new file mode 100644\n" in lines[:head]
    plain = all(line.startswith((_START, b"index ", b"new file mode 100644")) for line in lines[:head])
    if not plain or head + 2 >= len(lines):
        return Section(raw=raw)
    old_name, new_name = (line[4:].rstrip(b"\n").removesuffix(b"\t") for line in lines[head : head + 2])
    if not new_name.startswith(b"b/") or old_name != (b"/dev/null" if new_file else b"a/" + new_name[2:]):
        return Section(raw=raw)
    try:
        path = new_name[2:].decode()
        replacements = tuple(_replacements(lines[head + 2 :]))
    except ValueError:
        return Section(raw=raw)
    if path.endswith("\r") or (new_file and len(replacements) != 1):
        return Section(raw=raw)
    return Section(raw=raw, path=path, new_file=new_file, replacements=replacements)


def _replacements(lines: list[bytes]) -> Iterator[Replacement]:
    """The runs of changed lines. Raises ValueError for lines that are no hunks."""
    at = 0
    while at < len(lines):
        header = _HUNK.match(lines[at])
        if header is None:
            raise ValueError("a hunk was expected")
        n_old, n_new = (1 if header[group] is None else int(header[group]) for group in (2, 4))
        place = int(header[1]) - (n_old > 0)
        at += 1
        run: dict[bytes, list[bytes]] = {b"-": [], b"+": []}
        while n_old > 0 or n_new > 0:
            if at >= len(lines) or lines[at][:1] not in (b" ", b"-", b"+"):
                raise ValueError("a line of a hunk was expected")
            sign, line = lines[at][:1], lines[at][1:]
            at += 1
            if at < len(lines) and lines[at].startswith(_NO_NEWLINE):
                line = line.removesuffix(b"\n")
                at += 1
            n_old, n_new = n_old - (sign != b"+"), n_new - (sign != b"-")
            if sign != b" ":
                run[sign].append(line)
                continue
            yield from _run(run, place)
            place += len(run[b"-"]) + 1
            run = {b"-": [], b"+": []}
        yield from _run(run, place)


def _run(run: dict[bytes, list[bytes]], place: int) -> Iterator[Replacement]:
    if run[b"-"] or run[b"+"]:
        yield Replacement(start=place, old=tuple(run[b"-"]), new=tuple(run[b"+"]))
