"""What a task source is, and the counter-based random numbers that make one reproducible."""

import hashlib
import json
from typing import Protocol

import numpy as np

from configs.schema import TaskConfig
from environments.records import Problem


class ProblemSource(Protocol):
    """An indexable, deterministic supply of problems. Order, epochs and held-out parts are the mixture's work."""

    @property
    def size(self) -> int | None:
        """Number of problems; None for a procedural source, which makes one for any index in [0, 2**31)."""
        ...

    def problem(self, index: int) -> Problem:
        """The problem at `index`: a pure function, equal in every process and after a resume."""
        ...


class SourceFactory(Protocol):
    """Makes a source from its configuration."""

    def __call__(self, name: str, /, *, config: TaskConfig, seed: int) -> ProblemSource:
        """`name` is the key in the config's `tasks`, `seed` is the run's. Raises ValueError for unusable configuration."""
        ...


def random_stream(*key: int | str) -> np.random.Generator:
    """A Philox generator keyed by the parts: equal parts, equal numbers, on any machine and in any order of calls."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def content_key(problem: Problem) -> str:
    """Equal for problems that look the same to the policy: same non-system messages and visible payload."""
    said = [[message.role, message.content] for message in problem.task.prompt if message.role != "system"]
    text = json.dumps([said, dict(problem.task.payload)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
