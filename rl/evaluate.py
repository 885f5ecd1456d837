"""Held-out evaluation through the same ring that trains: same prompts, generators, environments and graders."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from configs.schema import Config
from environments.records import Problem
from rewards.score import ScoreStatus
from rl.errors import PartDied
from rl.log.metrics import ungraded_text
from rl.records import Sampling
from rl.rollout import GroupJob, GroupOutcome
from rl.score_details import ScoreDetails
from rl.statistics import Estimate, Tally, mean_pass_at_k, pass_at_k, pass_rate


class Rollouts(Protocol):
    """Whoever can collect a group."""

    async def expect(self, jobs: Sequence[GroupJob]) -> None: ...
    async def run(self, job: GroupJob) -> GroupOutcome: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRate:
    """Share of graded samples that passed."""

    by_problem: Mapping[str, Tally]
    """By the id of the problem: samples without a verdict are counted apart (infrastructure failures, unusable references, prompts
    over the limit)."""
    infra: int = 0
    """Of the ungraded: the infrastructure failed, again after the retries."""
    ungradable: int = 0
    """Of the ungraded: the reference cannot be used."""
    details: ScoreDetails = field(default_factory=ScoreDetails)

    @property
    def passed(self) -> int:
        """Over all problems."""
        return sum(tally.passed for tally in self.by_problem.values())

    @property
    def graded(self) -> int:
        """Samples with a verdict."""
        return sum(tally.graded for tally in self.by_problem.values())

    @property
    def ungraded(self) -> int:
        """Samples without one."""
        return sum(tally.ungraded for tally in self.by_problem.values())

    @property
    def value(self) -> float:
        """Between 0 and 1; NaN when nothing was graded."""
        return self.passed / self.graded if self.graded else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval that knows that samples of one problem are alike (`rl.statistics.pass_rate`)."""
        estimate = pass_rate(list(self.by_problem.values()))
        return estimate.low, estimate.high

    def pass_at(self) -> Mapping[int, Estimate]:
        """Chance that one of k samples passes, for k = 2, 4, 8, ... and the samples a problem; k = 1 is `value`."""
        tallies = list(self.by_problem.values())
        return {k: pass_at_k(tallies, k=k) for k in self._ks()}

    def mean_pass_at(self) -> Mapping[int, float]:
        """The values of `pass_at` without their intervals."""
        tallies = list(self.by_problem.values())
        return {k: mean_pass_at_k(tallies, k=k) for k in self._ks()}

    def _ks(self) -> list[int]:
        most = max((tally.graded + tally.ungraded for tally in self.by_problem.values()), default=0)
        doubled = [2**power for power in range(1, most.bit_length()) if 2**power < most]
        return [k for k in (*doubled, most) if k > 1]

    @property
    def ungraded_text(self) -> str:
        """The ungraded and why, for a person."""
        return ungraded_text(self.ungraded, infra=self.infra, ungradable=self.ungradable)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "pass_rate": self.value,
            "interval_95": list(self.interval),
            "pass_at": {str(k): _estimate_json(estimate) for k, estimate in self.pass_at().items()},
            "passed": self.passed,
            "graded": self.graded,
            "ungraded": self.ungraded,
            "infra": self.infra,
            "ungradable": self.ungradable,
            **self.details.to_json(),
        }

    def lines(self, name: str) -> list[str]:
        """For a person: the pass rate of task source `name`, then pass@k, the components of the reward, and why samples failed."""
        low, high = self.interval
        first = f"  {name:<20} {self.value:.3f}  [{low:.3f}, {high:.3f}]  {self.passed}/{self.graded} passed, {self.ungraded_text}"
        pass_at = [
            f"  {f'  pass@{k}':<20} {one.value:.3f}  [{one.low:.3f}, {one.high:.3f}]  {one.problems} problems"
            + (f", {one.left_out} with fewer than {k} graded samples left out" if one.left_out else "")
            for k, one in self.pass_at().items()
        ]
        return [first, *pass_at, *self.details.lines()]

    def __add__(self, other: "PassRate") -> "PassRate":
        """Further samples: of the same problems, or of others."""
        nothing = Tally(passed=0, graded=0)
        names = dict.fromkeys([*self.by_problem, *other.by_problem])
        merged = {name: self.by_problem.get(name, nothing) + other.by_problem.get(name, nothing) for name in names}
        infra, ungradable = self.infra + other.infra, self.ungradable + other.ungradable
        return PassRate(by_problem=merged, infra=infra, ungradable=ungradable, details=self.details + other.details)


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
        """Plain values by task source: pass rate, pass@k, intervals and counts, means of the reward's components, reasons of failures."""
        rates = {name: rate.to_json() for name, rate in self.by_env.items()}
        return {"step": self.step, "by_env": rates, "mean_tokens": self.mean_tokens}

    def table(self) -> str:
        """For a person."""
        lines = [f"held-out pass rate of version {self.step} (95% interval)"]
        for name, rate in self.by_env.items():
            lines += rate.lines(name)
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
    outcomes = await _all_outcomes([asyncio.ensure_future(rollouts.run(job)) for job in jobs], jobs, timeout=config.rollout.timeout)
    by_env: dict[str, PassRate] = {}
    tokens, count = 0, 0
    for outcome in outcomes:
        name = outcome.job.problem.source
        rate = _pass_rate(outcome)
        by_env[name] = by_env[name] + rate if name in by_env else rate
        for rollout in outcome.group.rollouts if outcome.group else ():
            tokens, count = tokens + rollout.n_sampled, count + 1
    return EvalReport(step=step, by_env=by_env, mean_tokens=tokens / count if count else 0.0)


async def _all_outcomes(calls: "Sequence[asyncio.Future[GroupOutcome]]", jobs: Sequence[GroupJob], *, timeout: float) -> list[GroupOutcome]:
    """Of all jobs, in order. Raises PartDied when none lands for `timeout` seconds."""
    pending = set(calls)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for call in done:
                call.result()
            if not done:
                late = ", ".join(job.group_id for job, call in zip(jobs, calls, strict=True) if call in pending)
                raise PartDied(
                    f"the evaluation waits for {len(pending)} of {len(calls)} problems, and none was finished within rollout.timeout="
                    f"{timeout:.0f} s: {late[:200]}; rl status tells what the parts do"
                )
        return [call.result() for call in calls]
    finally:
        for call in pending:
            call.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def _pass_rate(outcome: GroupOutcome) -> PassRate:
    name = outcome.job.problem.task.id
    if outcome.group is None:
        return PassRate(by_problem={name: Tally(passed=0, graded=0, ungraded=outcome.job.n_samples)})
    scores = [rollout.score for rollout in outcome.group.rollouts]
    statuses = [score.status for score in scores]
    passed = statuses.count(ScoreStatus.OK)
    graded = passed + statuses.count(ScoreStatus.POLICY_FAIL)
    return PassRate(
        by_problem={name: Tally(passed=passed, graded=graded, ungraded=len(statuses) - graded)},
        infra=statuses.count(ScoreStatus.INFRA),
        ungradable=statuses.count(ScoreStatus.UNGRADABLE),
        details=ScoreDetails.of(name, scores),
    )


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "interval_95": [estimate.low, estimate.high],
        "problems": estimate.problems,
        "left_out": estimate.left_out,
    }
