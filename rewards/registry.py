"""Graders by name. A plugin registers its own with `@grader` (a class or factory) or `@reward` (a plain function)."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import TypeVar

from environments.records import Episode, Problem
from rewards.code import CodeGrader
from rewards.code_output import CodeOutputGrader
from rewards.math import MathGrader
from rewards.score import Grader, Score, ScoreStatus

GraderFactory = Callable[[], Grader]
RewardFunction = Callable[[Problem, str], float | Score]
Factory = TypeVar("Factory", bound=GraderFactory)
Reward = TypeVar("Reward", bound=RewardFunction)

_factories: dict[str, GraderFactory] = {}


def grader(name: str) -> Callable[[Factory], Factory]:
    """Register a Grader class, or a function that makes one, under `name`.

    Raises ValueError when another one has that name; importing the same definition twice is fine.
    """

    def register(factory: Factory) -> Factory:
        known = _factories.get(name)
        if known is not None and _origin(known) != _origin(factory):
            raise ValueError(f"a grader named {name!r} exists already ({'.'.join(_origin(known))}): choose another name")
        _factories[name] = factory
        return factory

    return register


def reward(name: str) -> Callable[[Reward], Reward]:
    """Register a plain function `(problem, response) -> float | Score` as a grader.

    It runs in the event loop, so it should be quick. A float > 0 counts as passed, any other as failed; an exception is an
    infrastructure failure and gives no reward.
    """

    def register(function: Reward) -> Reward:
        def factory() -> Grader:
            return FunctionGrader(function)

        factory.__module__, factory.__qualname__ = function.__module__, function.__qualname__
        grader(name)(factory)
        return function

    return register


class FunctionGrader:
    """Grader around a reward function."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        result = self._function(problem, episode.response)
        if isinstance(result, Score):
            return result
        value = float(result)
        return Score(reward=value, status=ScoreStatus.OK if value > 0 else ScoreStatus.POLICY_FAIL)

    async def close(self) -> None:
        """Nothing to release."""


def make_grader(name: str) -> Grader:
    """A new grader. Raises ValueError that lists the known names."""
    factory = _factories.get(name)
    if factory is None:
        close = get_close_matches(name, _factories, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known graders: {', '.join(known_graders())}"
        raise ValueError(f"there is no grader named {name!r}; {hint}")
    return factory()


def known_graders() -> tuple[str, ...]:
    """Registered names in order."""
    return tuple(sorted(_factories))


def _origin(factory: GraderFactory) -> tuple[str, str]:
    return factory.__module__, getattr(factory, "__qualname__", type(factory).__qualname__)


grader("math")(MathGrader)
grader("code")(CodeGrader)
grader("code_output")(CodeOutputGrader)
