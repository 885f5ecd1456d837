"""`Score` and the `Grader` protocol: a reward that says how it came about, or why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from environments.records import Episode, Problem


class ScoreStatus(Enum):
    """Whose doing a score is."""

    OK = "ok"
    """The response passed: every required part is right."""
    POLICY_FAIL = "policy_fail"
    """The response failed by its own doing: wrong, malformed, crashed, too slow."""
    INFRA = "infra"
    """The infrastructure failed: no reward; retried, then left out of the group's baseline."""
    UNGRADABLE = "ungradable"
    """The reference itself cannot be used: no reward, counted against the data, not the policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorePart:
    """One component of a reward."""

    value: float
    weight: float = 1.0
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The verdict on one episode."""

    reward: float | None
    """A finite number for `ok` and `policy_fail`; None for `infra` and `ungradable`, never 0."""
    status: ScoreStatus
    parts: Mapping[str, ScorePart] = field(default_factory=dict)
    reason: str = ""
    """One line for a person: what was expected to be there and what was found."""
    log: str = ""
    """What the reason has no room for: each test with what was expected and what came, what was printed. For people: it may hold hidden
    tests and answers, and text of the policy. The rollout log keeps it, of a longer one than 262,144 characters the beginning and
    the end."""

    def __post_init__(self) -> None:
        graded = self.status in (ScoreStatus.OK, ScoreStatus.POLICY_FAIL)
        if graded != (self.reward is not None):
            raise ValueError(f"score with status {self.status.value} and reward {self.reward}: only ok and policy_fail carry one")
        if self.reward is not None and not abs(self.reward) < float("inf"):
            raise ValueError(f"reward {self.reward} is not finite")


class Grader(Protocol):
    """Scores finished episodes. Long-lived: one instance serves many rollouts concurrently."""

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        """Score one episode. An exception counts as `infra`."""
        ...

    async def close(self) -> None:
        """End worker processes and sandboxes."""
        ...
