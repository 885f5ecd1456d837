"""Task sources mixed by weight, each split into a training and a held-out part.

Draw number `index` of a run is a pure function of (seed, index): which source, which epoch, which row. The state of a
mixture is therefore the next index, and any process can recompute any draw.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from environments.records import Problem
from environments.sources.base import ProblemSource, content_key, random_stream

BLOCK = 1024
"""Draws whose sources are chosen together."""
PROCEDURAL_HELDOUT = 2**30
"""First index of a procedural source's held-out range; training stays below."""
RETRY_STRIDE = 2**24
RETRIES = 64
"""A procedural training problem that looks like a held-out one is replaced by the one a stride further on."""
PROBES = 256


@dataclass(frozen=True, kw_only=True)
class MixturePart:
    """One source and its share."""

    name: str
    source: ProblemSource
    weight: float = 1.0
    heldout: int = 0
    """Problems to set aside."""
    limit: int = 0
    """Use only the first `limit` indices of the source; 0 means all."""

    @property
    def size(self) -> int | None:
        """Usable indices; None when unbounded."""
        size = self.source.size
        return size if not self.limit else self.limit if size is None else min(size, self.limit)


@dataclass(frozen=True, kw_only=True)
class MixtureState:
    """Where a mixture stands; `asdict` of it is JSON."""

    next_index: int
    fingerprint: str
    """Identifies seed, weights and data, so that a resume on other data is noticed."""


class Mixture:
    """Draws training problems in a fixed random order and holds the held-out ones."""

    def __init__(self, parts: Sequence[MixturePart], *, seed: int) -> None:
        """Raises ValueError for an empty source, or when too little is left to train on beside the held-out problems."""
        if not parts:
            raise ValueError("a mixture needs at least one task source")
        self.parts = tuple(parts)
        """As given."""
        self._seed = seed
        self._names = [part.name for part in parts]
        heldout = [_choose_heldout(part, seed=seed) for part in parts]
        self._heldout = tuple(problem for problems in heldout for problem in problems)
        # what one source holds out, no other may train on either
        banned = frozenset(content_key(problem) for problem in self._heldout)
        self._streams = [_TrainStream(part, seed=seed, banned=banned) for part in parts]
        shares = np.array([part.weight for part in parts], dtype=np.float64)
        self._thresholds = np.cumsum(shares / shares.sum())[:-1]
        self._counts = [np.zeros(len(parts), dtype=np.int64)]  # draws of each source before block b
        self._block: tuple[int, np.ndarray] = (0, self._choose(0))
        self._next_index = 0
        self._fingerprint = self._make_fingerprint(parts)

    def at(self, index: int) -> Problem:
        """Training problem number `index` (from 0)."""
        block, offset = divmod(index, BLOCK)
        while len(self._counts) <= block:
            choices = self._choose(len(self._counts) - 1)
            self._counts.append(self._counts[-1] + np.bincount(choices, minlength=len(self._streams)))
        if self._block[0] != block:
            self._block = (block, self._choose(block))
        choices = self._block[1]
        chosen = int(choices[offset])
        position = int(self._counts[block][chosen]) + int(np.count_nonzero(choices[:offset] == chosen))
        return self._streams[chosen].at(position)

    def next(self) -> tuple[int, Problem]:
        """The next index and its problem."""
        index = self._next_index
        problem = self.at(index)
        self._next_index += 1
        return index, problem

    def heldout(self) -> tuple[Problem, ...]:
        """All held-out problems: sources in the order of the configuration, in each a fixed order."""
        return self._heldout

    def state(self) -> MixtureState:
        """What `restore` needs to go on from here."""
        return MixtureState(next_index=self._next_index, fingerprint=self._fingerprint)

    def restore(self, state: MixtureState) -> None:
        """Continue after `state`. Raises ValueError when it was taken with another seed, other weights or other data."""
        if state.fingerprint != self._fingerprint:
            raise ValueError(
                "the saved run drew its tasks from other data, weights or seed than this configuration "
                f"(sources: {', '.join(self._names)}); resume with the saved run's configuration and data, or start a new run"
            )
        self._next_index = state.next_index

    def _choose(self, block: int) -> np.ndarray:
        """Source of each draw of a block: int64[BLOCK]."""
        return np.searchsorted(self._thresholds, random_stream("mixture", self._seed, block).random(BLOCK), side="right")

    def _make_fingerprint(self, parts: Sequence[MixturePart]) -> str:
        facts = [[part.name, part.weight, part.size, part.heldout] for part in parts]
        shown = [_identity(problem) for problem in self._heldout]
        drawn = [_identity(stream.at(position)) for stream in self._streams for position in range(4)]
        return hashlib.blake2b(json.dumps([self._seed, facts, shown, drawn]).encode(), digest_size=16).hexdigest()


class _TrainStream:
    """The endless training order of one source; every epoch of a finite one is a fresh permutation."""

    def __init__(self, part: MixturePart, *, seed: int, banned: frozenset[str]) -> None:
        self._part = part
        self._seed = seed
        self._banned = banned
        self._rows: np.ndarray | None = None
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        if part.size is None:
            self._probe()
            return
        self._rows = np.array(
            [i for i in range(part.size) if not banned or content_key(part.source.problem(i)) not in banned], dtype=np.int64
        )
        if len(self._rows) == 0:
            raise ValueError(f"tasks.{part.name}: all {part.size} problems are held out (heldout is {part.heldout}); hold out fewer")

    def at(self, position: int) -> Problem:
        """The problem at `position` of this source's training order."""
        if self._rows is None:
            problem = self._procedural(position)
            if problem is None:
                raise self._too_much_heldout()
            return problem
        epoch, offset = divmod(position, len(self._rows))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, random_stream("epoch", self._seed, self._part.name, epoch).permutation(self._rows))
        return self._part.source.problem(int(self._epoch[1][offset]))

    def _procedural(self, position: int) -> Problem | None:
        for attempt in range(RETRIES):
            problem = self._part.source.problem((position + attempt * RETRY_STRIDE) % PROCEDURAL_HELDOUT)
            if not self._banned or content_key(problem) not in self._banned:
                return problem
        return None

    def _probe(self) -> None:
        """Fail at the start rather than after hours: see that fresh training problems are easy to come by."""
        if not self._banned:
            self._part.source.problem(0)
            return
        fresh = sum(content_key(self._part.source.problem(i)) not in self._banned for i in range(PROBES))
        if fresh < PROBES // 4:
            raise self._too_much_heldout()

    def _too_much_heldout(self) -> ValueError:
        return ValueError(
            f"tasks.{self._part.name}: most problems that this source makes are held out (heldout is {self._part.heldout}); "
            "hold out fewer or widen its ranges"
        )


def _choose_heldout(part: MixturePart, *, seed: int) -> list[Problem]:
    """The first `part.heldout` problems, no two alike, of a seeded permutation or of the procedural held-out range."""
    size = part.size
    if size == 0:
        raise ValueError(f"tasks.{part.name} has no problems")
    if part.heldout == 0:
        return []
    if size is not None and part.heldout >= size:
        raise ValueError(
            f"tasks.{part.name}.heldout is {part.heldout}, but the source has {size} problems: nothing would be left to train on"
        )
    chosen: dict[str, Problem] = {}
    for index in _heldout_candidates(part, seed=seed):
        problem = part.source.problem(index)
        chosen.setdefault(content_key(problem), problem)
        if len(chosen) == part.heldout:
            return list(chosen.values())
    raise ValueError(
        f"tasks.{part.name}.heldout is {part.heldout}, but only {len(chosen)} different problems were found; "
        "hold out fewer or widen the source's ranges"
    )


def _heldout_candidates(part: MixturePart, *, seed: int) -> Iterator[int]:
    if part.size is not None:
        yield from map(int, random_stream("heldout", seed, part.name).permutation(part.size))
    else:
        yield from range(PROCEDURAL_HELDOUT, PROCEDURAL_HELDOUT + 16 * part.heldout + PROBES)


def _identity(problem: Problem) -> list[str]:
    return [problem.source, problem.task.env, problem.task.id, content_key(problem)]
