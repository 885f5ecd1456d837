"""The modes of files that git knows. Used on the host and inside containers. Standard library only, Python 3.8."""

from __future__ import annotations

FILE, PROGRAM, LINK, SUBMODULE = 0o100644, 0o100755, 0o120000, 0o160000


def mode_of(bits: int, *, link: bool = False) -> int:
    """The mode of a file with these permission bits."""
    return LINK if link else PROGRAM if bits & 0o100 else FILE
