"""Which mutant comes next: seeded, spread over kinds, functions and files."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from environments.swe.factory.mutations import Mutant, mutants
from environments.swe.factory.repository import Target

_FALLEN_COUNTS = 0.2
"""A candidate that fell counts this much of one that was kept: a kind that seldom yields a task is tried more often, not for ever."""


class Pool:
    """All mutants of all targets, given out one by one."""

    def __init__(self, targets: Sequence[Target], *, kinds: tuple[str, ...], seed: int) -> None:
        self._rng = random.Random(f"mutants/{seed}")
        self._left: dict[str, dict[int, list[Mutant]]] = {kind: {} for kind in kinds}
        self._targets = targets
        self._load: defaultdict[str | int | tuple[str, str], float] = defaultdict(float)
        self._functions = Counter(target.source.path for target in targets)
        self._given: dict[int, tuple[str, int]] = {}
        for at, target in enumerate(targets):
            for mutant in mutants(target.source, target.function, name=target.name, kinds=kinds):
                self._left[mutant.kind].setdefault(at, []).append(mutant)
        for by_target in self._left.values():
            for found in by_target.values():
                self._rng.shuffle(found)
        self.size = sum(len(found) for by_target in self._left.values() for found in by_target.values())

    def take(self) -> tuple[Target, Mutant] | None:
        """The next candidate: of the kind, then the function and the file that have had the least; None when there is none left."""
        kinds = [kind for kind, by_target in self._left.items() if by_target]
        if not kinds:
            return None
        kind = min(kinds, key=lambda kind: (self._load[kind], self._rng.random()))
        at = min(self._left[kind], key=self._load_of)
        mutant = self._left[kind][at].pop()
        if not self._left[kind][at]:
            del self._left[kind][at]
        self._add(kind, at, 1.0)
        self._given[id(mutant)] = kind, at
        return self._targets[at], mutant

    def fell(self, mutant: Mutant) -> None:
        """Say that a candidate became no task."""
        self._add(*self._given.pop(id(mutant)), _FALLEN_COUNTS - 1.0)

    def _load_of(self, at: int) -> tuple[float, float, float]:
        path = self._targets[at].source.path
        return self._load[at], self._load["file", path] / self._functions[path], self._rng.random()

    def _add(self, kind: str, at: int, load: float) -> None:
        for key in (kind, at, ("file", self._targets[at].source.path)):
            self._load[key] += load
