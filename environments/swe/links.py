"""Symbolic links of a tree, followed in thought: none that a patch brings may lead out of the tree."""

from collections.abc import Mapping, Sequence

from environments.swe.records import PatchError, TreeChange
from environments.swe.tree_tar import shown

_MOST_STEPS = 40
"""As Linux."""


def check_links(changes: Sequence[TreeChange], *, links: Mapping[bytes, bytes]) -> None:
    """Follow every link of the tree; `links`: all of them with their targets, the changed ones included.

    Raises PatchError when one leaves the tree by way of a changed link.
    """
    changed = {change.path for change in changes if change.mode == 0o120000}
    for path in links:
        blamed = changed & _used_when_leaving(path, links)
        if blamed:
            raise PatchError(f"symbolic link {shown(min(blamed))} leads out of the tree")


def _used_when_leaving(path: bytes, links: Mapping[bytes, bytes]) -> set[bytes]:
    """The links on the way, when following `path` leaves the tree; empty when it stays inside or goes round in circles."""
    used: set[bytes] = set()
    place: list[bytes] = []
    rest = path.split(b"/")
    for _ in range(_MOST_STEPS * 4096):
        if not rest:
            return set()
        part, *rest = rest
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not place:
                return used
            place.pop()
            continue
        here = b"/".join([*place, part])
        target = links.get(here)
        if target is None:
            place.append(part)
            continue
        if here in used and len(used) >= _MOST_STEPS:
            return set()
        used.add(here)
        if target.startswith(b"/") or b"\0" in target:
            return used
        rest = [*target.split(b"/"), *rest]
        if len(rest) > 1 << 16:
            return used
    return set()
