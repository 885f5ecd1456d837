"""What may serve as a reward: graders, and plain functions `(problem, response)`; TRL's are in `rewards/trl_functions.py`."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from environments.records import Episode, Problem
from rewards.score import Grader, Score, ScoreStatus
from rewards.trl_functions import TrlGrader, takes_completions

GraderFactory = Callable[[], Grader]
RewardFunction = Callable[[Problem, str], float | Score | Awaitable[float | Score]]
SHAPES = (
    "a reward is a function (problem, response), a function of TRL's shape (completions, **columns), a Grader class, "
    "or a function without arguments that makes a Grader"
)


class NotAScore(TypeError):
    """A reward function returned neither a number nor a Score."""


class FunctionGrader:
    """Grader around a function `(problem, response) -> float | Score`, which may be async."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        result = self._function(problem, episode.response)
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, Score):
            return result
        if isinstance(result, str | bytes) or not hasattr(result, "__float__"):
            raise NotAScore(f"the reward returned {str(result)[:80]!r}; a reward returns a number or a Score")
        value = float(result)
        return Score(reward=value, status=ScoreStatus.OK if value > 0 else ScoreStatus.POLICY_FAIL)

    async def close(self) -> None:
        """Nothing to release."""


def reward_factory(function: Any, name: str) -> GraderFactory:
    """Makes graders around a reward function, told by its signature. Raises ValueError for one that takes something else."""
    signature = _signature(function, name)
    if takes_completions(signature):
        TrlGrader(function, name=name)  # refuses here what it could not call later

        def make() -> Grader:
            return TrlGrader(function, name=name)

    elif _takes(signature, 2):

        def make() -> Grader:
            return FunctionGrader(function)

    else:
        raise ValueError(f"reward {name!r} takes {signature}; {SHAPES}")
    make.__module__ = getattr(function, "__module__", "?")
    make.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)
    return make


def grader_factory(found: Any, name: str) -> GraderFactory:
    """What an entry point or a dotted path leads to, as a maker of graders. Raises ValueError for anything else."""
    if isinstance(found, type):
        if not hasattr(found, "grade"):
            raise ValueError(f"reward {name!r} is the class {found.__qualname__}, which has no `grade`; {SHAPES}")
        return found
    if not callable(found):
        raise ValueError(f"reward {name!r} is of type {type(found).__name__}; {SHAPES}")
    signature = _signature(found, name)
    if takes_completions(signature) or not _takes(signature, 0):
        return reward_factory(found, name)
    return found


def _signature(function: Any, name: str) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        raise ValueError(f"reward {name!r} has no signature to read; {SHAPES}") from None


def _takes(signature: inspect.Signature, count: int) -> bool:
    """Whether it can be called with `count` positional arguments."""
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
