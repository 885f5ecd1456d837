"""Held-out evaluation through the same ring that trains: same prompts, generators, environments and graders."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

from configs.schema import Config
from environments.records import Problem
from rewards.score import ScoreStatus
from rl.log.metrics import ungraded_text
from rl.records import Sampling
from rl.rollout import GroupJob, GroupOutcome
from rl.statistics import wilson_interval


class Rollouts(Protocol):
    """Whoever can collect a group."""

    async def expect(self, jobs: Sequence[GroupJob]) -> None: ...
    async def run(self, job: GroupJob) -> GroupOutcome: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRate:
    """Share of graded samples that passed."""

    passed: int
    graded: int
    ungraded: int
    """Samples without a verdict: infrastructure failures, unusable references, prompts over the limit."""
    infra: int = 0
    """Of the ungraded: the infrastructure failed, again after the retries."""
    ungradable: int = 0
    """Of the ungraded: the reference cannot be used."""

    @property
    def value(self) -> float:
        """Between 0 and 1; NaN when nothing was graded."""
        return self.passed / self.graded if self.graded else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson score interval (Wilson 1927)."""
        return wilson_interval(self.passed, self.graded)

    @property
    def ungraded_text(self) -> str:
        """The ungraded and why, for a person."""
        return ungraded_text(self.ungraded, infra=self.infra, ungradable=self.ungradable)

    def __add__(self, other: "PassRate") -> "PassRate":
        return PassRate(**{spec.name: getattr(self, spec.name) + getattr(other, spec.name) for spec in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """One evaluation."""

    step: int
    """Policy version that was evaluated."""
    by_env: Mapping[str, PassRate]
    """Pass rate by task source."""
    mean_tokens: float
    """Sampled tokens a rollout."""

    def to_json(self) -> dict[str, Any]:
        """Plain values: pass rate, counts and interval by task source."""
        rates = {name: {**asdict(rate), "pass_rate": rate.value, "interval_95": list(rate.interval)} for name, rate in self.by_env.items()}
        return {"step": self.step, "by_env": rates, "mean_tokens": self.mean_tokens}

    def table(self) -> str:
        """For a person."""
        lines = [f"held-out pass rate of version {self.step} (95% interval)"]
        for name, rate in self.by_env.items():
            low, high = rate.interval
            lines.append(
                f"  {name:<20} {rate.value:.3f}  [{low:.3f}, {high:.3f}]  {rate.passed}/{rate.graded} passed, {rate.ungraded_text}"
            )
        return "\n".join(lines)


async def evaluate_heldout(
    config: Config, *, problems: Sequence[Problem], rollouts: Rollouts, sampling: Sampling, step: int, seed: int
) -> EvalReport:
    """Sample every held-out problem `evaluation.samples` times at `evaluation.temperature`."""
    drawn = replace(sampling, temperature=config.evaluation.temperature)
    jobs = [
        GroupJob(
            group_id=f"h{step:06d}s{seed}-{index:06d}",
            index=index,
            problem=problem,
            split="heldout",
            n_samples=config.evaluation.samples,
            dispatch_version=step,
            sampling=drawn,
            seed=seed,
        )
        for index, problem in enumerate(problems)
    ]
    if config.rollout.max_staleness == 0:
        await rollouts.expect(jobs)
    outcomes = await asyncio.gather(*(rollouts.run(job) for job in jobs))
    by_env: dict[str, PassRate] = {}
    tokens, count = 0, 0
    for outcome in outcomes:
        name = outcome.job.problem.source
        rate = _pass_rate(outcome)
        by_env[name] = by_env[name] + rate if name in by_env else rate
        for rollout in outcome.group.rollouts if outcome.group else ():
            tokens, count = tokens + rollout.n_sampled, count + 1
    return EvalReport(step=step, by_env=by_env, mean_tokens=tokens / count if count else 0.0)


def _pass_rate(outcome: GroupOutcome) -> PassRate:
    if outcome.group is None:
        return PassRate(passed=0, graded=0, ungraded=outcome.job.n_samples)
    statuses = [rollout.score.status for rollout in outcome.group.rollouts]
    passed = statuses.count(ScoreStatus.OK)
    graded = passed + statuses.count(ScoreStatus.POLICY_FAIL)
    return PassRate(
        passed=passed,
        graded=graded,
        ungraded=len(statuses) - graded,
        infra=statuses.count(ScoreStatus.INFRA),
        ungradable=statuses.count(ScoreStatus.UNGRADABLE),
    )
