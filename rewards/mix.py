"""Mixes of rewards with weights, `code + 0.1*think_format + 0.2*my_pkg:brevity`: how they are written and how they score.

The first term is the main one: it decides whether the response passed. The reward is the sum of weight times value.
"""

import asyncio
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from environments.records import Episode, Problem
from rewards.score import Grader, Score, ScorePart, ScoreStatus

_TERM = re.compile(r"(?:(?P<weight>[-+]?[\w.]+(?:(?<=[eE])[-+]\d+)?)\s*\*\s*)?(?P<name>[^\s+*]+)\s*")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One term of a mix."""

    name: str
    """A registered name or a dotted path."""
    weight: float = 1.0


def parse_mix(text: str) -> tuple[Term, ...]:
    """Terms `[weight*]name` joined by ` + `. Raises ValueError that names the position (from 1) of what is wrong."""
    terms: list[Term] = []
    position = _skip(text, 0)
    while True:
        found = _TERM.match(text, position)
        if found is None:
            raise _error(text, position, "a name is missing" if position >= len(text) else f"{text[position]!r} begins no term")
        terms.append(Term(name=found["name"], weight=_weight(text, found, first=not terms)))
        if [term.name for term in terms].count(found["name"]) > 1:
            raise _error(text, found.start("name"), f"{found['name']!r} is there twice: add up its weights")
        position = found.end()
        if position == len(text):
            return tuple(terms)
        if text[position] != "+":
            raise _error(text, position, f"{text[position]!r} instead of ' + '")
        position = _skip(text, position + 1)


class MixGrader:
    """Runs the graders of a mix side by side and adds their rewards up."""

    def __init__(self, terms: Sequence[Term], graders: Sequence[Grader]) -> None:
        """`graders[i]` scores `terms[i]`."""
        self._terms = tuple(terms)
        self._graders = tuple(graders)
        self.needs_n_tokens = any(getattr(grader, "needs_n_tokens", False) for grader in graders)

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        """`infra` or `ungradable` without a reward when one part is; else passed or failed as the first part is.

        `parts` has the value, weight and reason of every part that has a value; what that part is made of itself follows as
        `name.part` with weight 0, because it is counted already. `log` has the logs of all parts.
        """
        scores = await asyncio.gather(*(self._part(grader, problem, episode) for grader in self._graders))
        graded = [(term, score, score.reward) for term, score in zip(self._terms, scores, strict=True) if score.reward is not None]
        parts: dict[str, ScorePart] = {}
        for term, score, value in graded:
            parts[term.name] = ScorePart(value=value, weight=term.weight, reason=score.reason)
            parts |= {f"{term.name}.{name}": replace(part, weight=0.0) for name, part in score.parts.items()}
        reason = "; ".join(f"{term.name}: {_told(score)}" for term, score in zip(self._terms, scores, strict=True))
        log = "\n".join(f"--- {term.name}\n{score.log}" for term, score in zip(self._terms, scores, strict=True) if score.log)
        for status in (ScoreStatus.INFRA, ScoreStatus.UNGRADABLE):
            if any(score.status is status for score in scores):
                return Score(reward=None, status=status, parts=parts, reason=reason, log=log)
        reward = sum(part.value * part.weight for part in parts.values())
        return Score(reward=reward, status=scores[0].status, parts=parts, reason=reason, log=log)

    async def close(self) -> None:
        """Close all graders, whatever one of them does."""
        results = await asyncio.gather(*(grader.close() for grader in self._graders), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _part(self, grader: Grader, problem: Problem, episode: Episode) -> Score:
        try:
            return await grader.grade(problem, episode)
        except Exception as error:
            # As at the rollout's boundary; told here, so that the other parts' verdicts are kept.
            return Score(reward=None, status=ScoreStatus.INFRA, reason=f"{type(error).__name__}: {error}"[:500])


def _told(score: Score) -> str:
    return f"{score.status.value}, {score.reason}" if score.reason else score.status.value


def _weight(text: str, found: "re.Match[str]", *, first: bool) -> float:
    if found["weight"] is None:
        return 1.0
    at = found.start("weight")
    try:
        weight = float(found["weight"])
    except ValueError:
        raise _error(text, at, f"{found['weight']!r} is not a number; a weight stands before the name, as in 0.1*{found['name']}") from None
    if not math.isfinite(weight):
        raise _error(text, at, f"the weight {found['weight']} is not a finite number")
    if weight == 0:
        raise _error(text, at, f"a weight of 0 adds nothing: leave {found['name']!r} out")
    if first and weight < 0:
        raise _error(text, at, f"the first term decides what passes, so its weight must be above 0, not {found['weight']}")
    return weight


def _skip(text: str, position: int) -> int:
    """The position of the next sign that is no space."""
    found = _SPACE.match(text, position)
    assert found is not None, "it matches the empty text"
    return found.end()


def _error(text: str, position: int, what: str) -> ValueError:
    return ValueError(f"reward {text!r}, position {position + 1}: {what}; for example code + 0.1*think_format")
