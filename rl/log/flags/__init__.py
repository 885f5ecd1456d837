"""Flags: deterministic rules that look at every rollout when it is written, for reward hacks and failing health.

    from rl.log.flags import RolloutView, flag

    @flag("apology")
    def apology(rollout: RolloutView) -> str | None:
        return "it says sorry" if "sorry" in rollout.response.lower() else None

A plugin (`run.plugins`) that says this adds a rule. What the rules found is in `rollouts.flags` and the view `flags`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rl.log.flags import health as _health
from rl.log.flags import tricks as _tricks
from rl.log.flags.base import History, RolloutView, Rule, flag, known_rules, view_of
from rl.records import Rollout, RolloutGroup

__all__ = ["Flags", "History", "RolloutView", "Rule", "flag", "known_rules"]
_BUILT_IN = (_health, _tricks)
_REASON_CHARS = 200
_DECAY = 0.995
"""Of the running statistics, a rollout: they remember about the last 200."""


@dataclass(kw_only=True, slots=True)
class _Running:
    """Mean and variance with exponentially fading weights (West 1979)."""

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        weight = max(1.0 - _DECAY, 1.0 / self.count)
        delta = value - self.mean
        self.mean += weight * delta
        self.variance = (1.0 - weight) * (self.variance + weight * delta * delta)


class Flags:
    """The rules with their running history; one instance a process. Raises nothing: errors of rules are counted."""

    def __init__(self) -> None:
        self._rules = dict(known_rules())
        self._lengths: dict[str, _Running] = {}
        self._surprises: dict[str, _Running] = {}
        self.errors: dict[str, int] = {}
        """Exceptions so far, by rule."""

    def flags(self, group: RolloutGroup) -> Mapping[str, Mapping[str, str]]:
        """By rollout id: name of the flag -> why it was raised. All rollouts of a group see the same history."""
        history = self._history(group.problem.source)
        found = {rollout.rollout_id: self._look(group, rollout, history) for rollout in group.rollouts}
        for rollout in group.rollouts:
            self._remember(group.problem.source, rollout)
        return found

    def _look(self, group: RolloutGroup, rollout: Rollout, history: History) -> dict[str, str]:
        view = view_of(group, rollout, surprise=_surprise(rollout), history=history)
        raised = {}
        for name, rule in self._rules.items():
            try:
                reason = rule(view)
            except Exception:
                self.errors[name] = self.errors.get(name, 0) + 1
                continue
            if reason:
                raised[name] = str(reason)[:_REASON_CHARS]
        return raised

    def _history(self, source: str) -> History:
        lengths, surprises = self._lengths.get(source, _Running()), self._surprises.get(source, _Running())
        return History(
            count=lengths.count,
            length_mean=lengths.mean,
            length_std=math.sqrt(lengths.variance),
            surprise_mean=surprises.mean,
            surprise_std=math.sqrt(surprises.variance),
        )

    def _remember(self, source: str, rollout: Rollout) -> None:
        if rollout.n_sampled:
            self._lengths.setdefault(source, _Running()).add(float(rollout.n_sampled))
            self._surprises.setdefault(source, _Running()).add(_surprise(rollout))


def _surprise(rollout: Rollout) -> float:
    total = sum(float(np.sum(turn.completion.logprobs_T, dtype=np.float64)) for turn in rollout.turns)
    return -total / rollout.n_sampled if rollout.n_sampled else 0.0
