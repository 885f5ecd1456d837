"""The health of a run in sentences: what is wrong, since when, what to look at. Pure, but for the facts it is given."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rl.log.alive import RunState
from rl.log.metrics import EvalMetrics, Metrics, StepMetrics
from rl.view.open_run import OpenRun, Standing
from rl.view.render import ago, number, percent, seconds

Level = Literal["bad", "warn", "note"]
WINDOW = 20
"""Steps that a sentence speaks of."""
_VARIANCE_VERSIONS = 100
"""Policy versions before the window in which the beginning of a trouble is looked for."""
_LEAST_INFRA = 0.005
"""Share of rollouts lost to infrastructure that is worth a sentence."""
_LEAST_ROLLOUTS = 20
"""Fewer say nothing about a share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One sentence, with where to look."""

    level: Level
    text: str
    page: str = ""
    """Page of the run that shows more; empty for none."""
    query: Mapping[str, object] = field(default_factory=dict)
    """Its filters."""
    look: str = ""
    """What the link says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionGroups:
    """Groups of training that one policy version started."""

    version: int
    groups: int
    same: int
    """Of them with equal rewards: they teach nothing."""
    all_won: int
    none_won: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentRollouts:
    """Counts over the rollouts of the last steps."""

    first_version: int
    total: int
    by_stop: Mapping[str, int]
    infra: Sequence[tuple[str, str, int]]
    """Environment, error type and count, most frequent first."""
    groups: Sequence[VersionGroups] = ()
    """In the order of versions, further back than the others."""
    flags: Sequence[tuple[str, int]] = ()
    """Flag and how many rollouts carry it, most frequent first."""


def recent_rollouts(run: OpenRun, metrics: Metrics) -> RecentRollouts:
    """Read the counts from the log. Raises QueryError."""
    first = max(0, (metrics.steps[-1].version if metrics.steps else 0) - WINDOW + 1)
    rows = run.page(
        "SELECT env, coalesce(error_type, ''), stop_reason, status, count(*) FROM rollouts "
        "WHERE split = 'train' AND dispatch_version >= ? GROUP BY ALL",
        (first,),
    ).rows
    stops: dict[str, int] = {}
    infra: dict[tuple[str, str], int] = {}
    for env, error, stop, status, n in rows:
        stops[stop] = stops.get(stop, 0) + n
        if status == "infra":
            infra[env, error] = infra.get((env, error), 0) + n
    groups = run.page(
        "SELECT dispatch_version, groups, same, all_won, none_won FROM zero_variance WHERE dispatch_version >= ? ORDER BY 1",
        (first - _VARIANCE_VERSIONS,),
    ).rows
    flags = run.page(
        "SELECT unnest(flags) AS flag, count(*) AS n FROM rollouts WHERE dispatch_version >= ? GROUP BY 1 ORDER BY n DESC, 1", (first,)
    ).rows
    ordered = sorted(((env, error, n) for (env, error), n in infra.items()), key=lambda item: -item[2])
    return RecentRollouts(
        first_version=first,
        total=sum(row[4] for row in rows),
        by_stop=stops,
        infra=ordered,
        flags=tuple((str(name), int(n)) for name, n in flags),
        groups=tuple(VersionGroups(version=v, groups=n, same=same, all_won=won, none_won=lost) for v, n, same, won, lost in groups),
    )


def findings(metrics: Metrics, *, state: Standing, recent: RecentRollouts | None) -> list[Finding]:
    """Everything worth a sentence, the worst first."""
    found = [*_progress(metrics, state), *(_rollouts(recent) if recent else ()), *(_zero_variance(recent.groups) if recent else ())]
    if metrics.steps:
        for rule in (_numbers, _entropy, _length, _mismatch, _clipping, _reward, _stale, _log_losses, _phases):
            found += rule(metrics.steps)
        found += _generalisation(metrics)
    return sorted(found, key=lambda finding: ("bad", "warn", "note").index(finding.level))


def _progress(metrics: Metrics, state: Standing) -> list[Finding]:
    if state.word == "starting":
        return [Finding(level="note", text="No step is done yet: the first one fills the buffer and warms the engines up.")]
    if state.state in (RunState.STOPPED, RunState.DIED):
        step = f"after step {state.step}" + (f" of {state.total_steps}" if state.total_steps else "")
        ended = "its process went away without a word" if state.state is RunState.DIED else f"it stopped {state.why}".strip()
        text = f"The run is over {step}: {ended}, {ago(state.idle_seconds)}. It goes on with rl train ... --resume."
        return [Finding(level="bad", text=text)]
    if state.state is RunState.LIVE and metrics.steps:
        usual = statistics.median(step.seconds for step in metrics.steps[-WINDOW:])
        if state.idle_seconds > max(10.0, 3 * usual):
            text = f"No step for {seconds(state.idle_seconds)}; usually one takes {seconds(usual)}."
            return [Finding(level="warn", text=text, page="service", look="Look at sandboxes and graders")]
    return []


def _zero_variance(versions: Sequence[VersionGroups]) -> list[Finding]:
    """Groups whose rewards were all the same, which teach nothing."""

    def share(window: Sequence[VersionGroups]) -> float:
        total = sum(one.groups for one in window)
        return sum(one.same for one in window) / total if total else 0.0

    window = versions[-WINDOW:]
    now, total = share(window), sum(one.groups for one in window)
    if now < 0.4 or total < _LEAST_ROLLOUTS:
        return []
    start = len(versions)
    while start > WINDOW and share(versions[start - WINDOW : start]) >= 0.4:
        start -= 1
    since = f", since version {versions[start].version}" if WINDOW < start < len(versions) else ""
    won, lost = sum(one.all_won for one in window) / total, sum(one.none_won for one in window) / total
    text = f"{percent(now, 0)} of groups had zero variance in the last {len(window)} policy versions{since}: "
    text += f"in {percent(won, 0)} all rollouts won, in {percent(lost, 0)} none did."
    query = {"sort": "easiest" if won > lost else "hardest"}
    return [Finding(level="bad" if now > 0.75 else "warn", text=text, page="tasks", query=query, look="Find the tasks")]


def _numbers(steps: Sequence[StepMetrics]) -> list[Finding]:
    broken = [step.step for step in steps if step.groups_trained and not (math.isfinite(step.loss) and math.isfinite(step.grad_norm))]
    if not broken:
        return []
    text = f"Loss or gradient was not finite in {len(broken)} steps, first in step {broken[0]}."
    return [Finding(level="bad", text=text, page="rollouts", query={"vmin": broken[0] - 1, "vmax": broken[0] - 1}, look="See its rollouts")]


def _entropy(steps: Sequence[StepMetrics]) -> list[Finding]:
    early, late = _mean(steps[:WINDOW], lambda m: m.entropy), _mean(steps[-WINDOW:], lambda m: m.entropy)
    if len(steps) < 2 * WINDOW or not early > 0 or late > 0.25 * early:
        return []
    since = _since(steps, lambda w: _mean(w, lambda m: m.entropy) <= 0.25 * early)
    text = f"Entropy fell to {number(late)} nats a token, {percent(late / early, 0)} of the first {WINDOW} steps{since}."
    return [Finding(level="warn", text=text + " Little is left to explore.")]


def _length(steps: Sequence[StepMetrics]) -> list[Finding]:
    if len(steps) < 3 * WINDOW:
        return []
    before = _mean(steps[-3 * WINDOW : -WINDOW], lambda m: m.response_length)
    late = _mean(steps[-WINDOW:], lambda m: m.response_length)
    if not before > 0 or 2 / 3 < late / before < 1.5:
        return []
    way = "longer" if late > before else "shorter"
    text = f"Responses grew {way}: {number(late)} sampled tokens, against {number(before)} in the {2 * WINDOW} steps before."
    return [Finding(level="warn", text=text, page="rollouts", query={"sort": "sampled_tokens"}, look="See the longest")]


def _mismatch(steps: Sequence[StepMetrics]) -> list[Finding]:
    window = [step for step in steps[-WINDOW:] if step.staleness_max == 0]
    kl = _mean(window, lambda m: m.kl)
    if len(window) < WINDOW // 2 or not kl > 1e-2:
        return []
    text = f"Generator and learner disagree by {number(kl)} nats a token though training is on-policy: an engine mismatch."
    return [Finding(level="bad", text=text, page="sql", query={"q": _MISMATCH_SQL}, look="Find the rollouts")]


_MISMATCH_SQL = "SELECT rollout_id, kl, n_tokens, train_step FROM learner WHERE admitted ORDER BY kl DESC LIMIT 50"


def _clipping(steps: Sequence[StepMetrics]) -> list[Finding]:
    share = _mean(steps[-WINDOW:], lambda m: m.clip_fraction)
    if not share > 0.2:
        return []
    since = _since(steps, lambda w: _mean(w, lambda m: m.clip_fraction) > 0.2)
    return [Finding(level="warn", text=f"{percent(share, 0)} of trained tokens are clipped{since}: the policy moves far in a step.")]


def _reward(steps: Sequence[StepMetrics]) -> list[Finding]:
    if len(steps) < 3 * WINDOW:
        return []
    means = [_mean(steps[i : i + WINDOW], lambda m: m.reward_mean) for i in range(0, len(steps) - WINDOW + 1, WINDOW // 2)]
    best, late = max(means), _mean(steps[-WINDOW:], lambda m: m.reward_mean)
    spread = best - min(means)
    if not spread > 0.02 or best - late <= 0.5 * spread:
        return []
    text = f"Mean reward fell from {number(best)} at its best to {number(late)} in the last {WINDOW} steps."
    return [Finding(level="bad", text=text, page="rollouts", query={"sort": "started"}, look="See the newest rollouts")]


def _phases(steps: Sequence[StepMetrics]) -> list[Finding]:
    total = sum(step.seconds for step in steps[-WINDOW:])
    waited = sum(step.phases.get("rollout", 0.0) for step in steps[-WINDOW:])
    if not total > 0 or waited / total < 0.7:
        return []
    text = f"The learner waits for rollouts {percent(waited / total, 0)} of the time: sampling or grading is the bottleneck."
    return [Finding(level="note", text=text, page="service", look="See where rollouts spend it")]


def _stale(steps: Sequence[StepMetrics]) -> list[Finding]:
    share = _stale_share(steps[-WINDOW:])
    if not share > 0.1:
        return []
    since = _since(steps, lambda w: _stale_share(w) > 0.1)
    text = f"{percent(share, 0)} of groups were dropped as stale{since}: the policy moved on while they waited or were sampled."
    return [Finding(level="warn", text=text, page="sql", query={"q": _STALE_SQL}, look="See them by step")]


_STALE_SQL = "SELECT * FROM drops WHERE reason = 'stale' ORDER BY train_step DESC"


def _stale_share(steps: Sequence[StepMetrics]) -> float:
    stale = sum(step.drops.get("stale", 0) for step in steps)
    used = sum(step.groups_trained + step.groups_skipped for step in steps)
    return stale / (stale + used) if stale else 0.0


def _log_losses(steps: Sequence[StepMetrics]) -> list[Finding]:
    """Optional records that the log had to leave out: pages lack them."""
    lost: dict[str, int] = {}
    for step in steps:
        for dataset, n in step.log_dropped.items():
            lost[dataset] = lost.get(dataset, 0) + n
    if not any(lost.values()):
        return []
    first = next(step.step for step in steps if any(step.log_dropped.values()))
    names = ", ".join(f"{dataset} {n:,}" for dataset, n in sorted(lost.items(), key=lambda item: -item[1]) if n)
    text = f"The log left optional records out, first in step {first}: {names}. Its disk did not keep up; the run lost nothing else."
    return [Finding(level="warn", text=text)]


def _generalisation(metrics: Metrics) -> list[Finding]:
    """Training reward up while held-out pass rates went down by more than their intervals allow."""
    by_source: dict[str, list[EvalMetrics]] = {}
    for line in metrics.evals:
        by_source.setdefault(line.source, []).append(line)
    found = []
    for source, lines in by_source.items():
        best, last = max(lines, key=lambda line: line.pass_rate if line.graded else -1.0), lines[-1]
        if last.graded and last.interval[1] < best.interval[0]:
            text = f"Held-out pass rate of {source} fell from {percent(best.pass_rate)} at step {best.step} to {percent(last.pass_rate)}"
            risen = _mean(metrics.steps[-WINDOW:], lambda m: m.reward_mean) > _reward_at(metrics.steps, best.step)
            text += f" at step {last.step}" + (", while training reward rose." if risen else ".")
            query = {"source": source, "split": "heldout", "sort": "started"}
            found.append(Finding(level="bad", text=text, page="rollouts", query=query, look="See held-out rollouts"))
    return found


def _rollouts(recent: RecentRollouts) -> list[Finding]:
    found = []
    if recent.total >= _LEAST_ROLLOUTS:
        for env, error, n in recent.infra[:3]:
            share = n / recent.total
            if share < _LEAST_INFRA:
                continue
            text = f"{percent(share)} of recent rollouts ended as infra: {error or 'no error type'} in {env}."
            query = {"status": "infra", "env": env, "vmin": recent.first_version}
            level: Level = "bad" if share > 0.1 else "warn" if share > 0.01 else "note"
            found.append(Finding(level=level, text=text, page="rollouts", query=query, look="See them"))
        if recent.flags:
            names = ", ".join(f"{flag} {n:,}" for flag, n in recent.flags)
            text = f"Flags on the {recent.total:,} rollouts of the last {WINDOW} policy versions: {names}."
            found.append(Finding(level="warn", text=text, page="sql", query={"q": "SELECT * FROM flags"}, look="See examples"))
        cut = recent.by_stop.get("max_tokens", 0) + recent.by_stop.get("context_full", 0)
        if cut > 0.2 * recent.total:
            text = f"{percent(cut / recent.total, 0)} of recent rollouts ran out of tokens."
            query = {"stop": "max_tokens", "vmin": recent.first_version}
            found.append(Finding(level="warn", text=text, page="rollouts", query=query, look="See them"))
    return found


def _since(steps: Sequence[StepMetrics], holds: Callable[[Sequence[StepMetrics]], bool]) -> str:
    """`, since step 40`: the first step of the streak, in windows, for which it held; empty when it always did."""
    end = len(steps)
    while end > WINDOW and holds(steps[max(0, end - WINDOW) : end]):
        end -= 1
    return f", since step {steps[end].step}" if WINDOW < end < len(steps) else ""


def _reward_at(steps: Sequence[StepMetrics], step: int) -> float:
    return _mean([line for line in steps if step - WINDOW < line.step <= step] or steps[:1], lambda m: m.reward_mean)


def _mean(steps: Sequence[StepMetrics], value: Callable[[StepMetrics], float]) -> float:
    """Of the finite values; NaN without any."""
    values = [value(step) for step in steps if math.isfinite(value(step))]
    return sum(values) / len(values) if values else math.nan
