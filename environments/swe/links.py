"""Symbolic links of a tree, followed in thought: none that a patch brings may lead out of the tree."""

from collections.abc import Mapping, Sequence

from environments.swe.inside.modes import LINK
from environments.swe.records import PatchError, TreeChange
from environments.swe.tree_tar import shown

_MOST_FOLLOWED, _LONGEST_TARGET = 40, 4095
"""As Linux."""
_DEEPEST = 2048
"""Folders; a path has no room for more."""
_MOST_WORK = 200_000
"""Parts of paths that are looked at, of all links together."""


def check_links(changes: Sequence[TreeChange], *, links: Mapping[bytes, bytes]) -> None:
    """Follow every link of the tree; `links`: all of them with their targets, the changed ones included.

    Raises PatchError when one leaves the tree by way of a changed link, for a changed link that Linux would not make, and when the links
    lead to one another in too many ways to tell.
    """
    changed = {change.path for change in changes if change.mode == LINK}
    for path in changed:
        if not 0 < len(links[path]) <= _LONGEST_TARGET or b"\0" in links[path]:
            raise PatchError(f"symbolic link {shown(path)} leads to no path")
    work = 0
    for path in links:
        used, steps = _used_when_leaving(path, links)
        if blamed := changed & used:
            raise PatchError(f"symbolic link {shown(min(blamed))} leads out of the tree")
        work += steps
        if work > _MOST_WORK:
            raise PatchError("the symbolic links of the tree lead to one another in too many ways to follow them")


def _used_when_leaving(path: bytes, links: Mapping[bytes, bytes]) -> tuple[set[bytes], int]:
    """The links on the way, when following `path` leaves the tree, none when it does not; and how many parts were looked at."""
    used: set[bytes] = set()
    place: list[bytes] = []
    """The folder that was reached, and those above it, each as a whole path with a slash behind."""
    rest = path.split(b"/")[::-1]
    followed = steps = 0
    while rest and len(place) <= _DEEPEST:
        steps += 1
        part = rest.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not place:
                return used, steps
            place.pop()
            continue
        here = (place[-1] if place else b"") + part
        target = links.get(here)
        if target is None:
            place.append(here + b"/")
            continue
        used.add(here)
        followed += 1
        if target.startswith(b"/"):
            return used, steps
        if followed > _MOST_FOLLOWED:
            break
        rest += target.split(b"/")[::-1]
    return set(), steps
