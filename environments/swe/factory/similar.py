"""When two tasks of a repository are too much alike.

CWM's ForagerAgent compares tasks by MinHash and keeps those with a Jaccard similarity below 0.5 within a repository. MinHash estimates
that similarity where exact sets are too many to compare; the tasks of one repository are hundreds, so here it is computed exactly.
"""

import re
from collections.abc import Iterable

LARGEST_SIMILARITY = 0.5
_TOKEN = re.compile(r"\w+|[^\w\s]+")


def features(*, file: str, function: str, kind: str, failing: Iterable[str], before: str, after: str) -> frozenset[str]:
    """What a task is compared by: its function, its tests, and the tokens that its mutation took and brought."""
    old, new = set(_TOKEN.findall(before)), set(_TOKEN.findall(after))
    return frozenset(
        (
            f"function {file}:{function}",
            f"kind {kind}",
            *(f"test {test}" for test in failing),
            *(f"took {token}" for token in old - new),
            *(f"brought {token}" for token in new - old),
        )
    )


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared elements over all elements; 1 for two empty sets."""
    return len(one & other) / len(one | other) if one or other else 1.0


class Kept:
    """The tasks of a repository so far."""

    def __init__(self) -> None:
        self._features: list[frozenset[str]] = []
        self._texts: set[tuple[str, bytes]] = set()

    def add(self, found: frozenset[str], *, path: str, data: bytes) -> None:
        """One more: its features and the broken file."""
        self._features.append(found)
        self._texts.add((path, data))

    def has_text(self, path: str, data: bytes) -> bool:
        """Whether a task breaks the file in exactly this way."""
        return (path, data) in self._texts

    def has_like(self, found: frozenset[str]) -> bool:
        """Whether a task is at least LARGEST_SIMILARITY like it."""
        return any(jaccard(found, other) >= LARGEST_SIMILARITY for other in self._features)
