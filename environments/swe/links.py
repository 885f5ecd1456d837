"""Symbolic links of a tree, followed in thought: none that a patch brings may lead out of the tree."""

from collections.abc import Mapping, Sequence

from environments.swe.changes import LINK
from environments.swe.records import PatchError, TreeChange
from environments.swe.tree_tar import shown

_MOST_FOLLOWED, _LONGEST_TARGET = 40, 4095
"""As Linux."""


def check_links(changes: Sequence[TreeChange], *, links: Mapping[bytes, bytes]) -> None:
    """Follow every link of the tree; `links`: all of them with their targets, the changed ones included.

    Raises PatchError when one leaves the tree by way of a changed link, and for a changed link that Linux would not make.
    """
    changed = {change.path for change in changes if change.mode == LINK}
    for path in changed:
        if not 0 < len(links[path]) <= _LONGEST_TARGET or b"\0" in links[path]:
            raise PatchError(f"symbolic link {shown(path)} leads to no path")
    for path in links:
        blamed = changed & _used_when_leaving(path, links)
        if blamed:
            raise PatchError(f"symbolic link {shown(min(blamed))} leads out of the tree")


def _used_when_leaving(path: bytes, links: Mapping[bytes, bytes]) -> set[bytes]:
    """The links on the way, when following `path` leaves the tree; empty when it stays inside or goes round in circles."""
    used: set[bytes] = set()
    place: list[bytes] = []
    rest = path.split(b"/")[::-1]
    followed = 0
    while rest:
        part = rest.pop()
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
        used.add(here)
        followed += 1
        if target.startswith(b"/"):
            return used
        if followed > _MOST_FOLLOWED:
            return set()
        rest += target.split(b"/")[::-1]
    return set()
