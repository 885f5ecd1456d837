"""Curves of a run as plain data for the charts of the page; the drawing is the browser's."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl.log.metrics import EvalMetrics, Metrics, StepMetrics

Data = dict[str, Any]

_SIMPLE: Sequence[tuple[str, str, str, Callable[[StepMetrics], float]]] = (
    ("reward", "Mean reward", "over graded rollouts of a step", lambda m: m.reward_mean),
    ("length", "Response length", "sampled tokens a rollout", lambda m: m.response_length),
    ("entropy", "Entropy", "nats a trained token", lambda m: m.entropy),
    ("kl", "Mismatch KL", "behaviour to learner, nats a token", lambda m: m.kl),
    ("speed", "Sampling speed", "sampled tokens a second", lambda m: m.tokens_per_s),
)


def mark(metrics: Metrics) -> str:
    """Changes whenever the curves do; the part before the dot changes when earlier points are no longer true."""
    last = metrics.steps[-1].step if metrics.steps else 0
    return f"{len(metrics.attempts)}.{last}.{len(metrics.evals)}"


def curves(metrics: Metrics, *, seen: str = "") -> Data:
    """Everything the charts show; with the `seen` mark of an earlier call only the points after it, and `from` says so."""
    after = _seen_step(seen, metrics)
    steps = [step for step in metrics.steps if step.step > after]
    sources = sorted({source for step in metrics.steps for source in step.pass_rate} | {line.source for line in metrics.evals})
    phases = _names(metrics.steps, lambda m: m.phases)
    drops = _names(metrics.steps, lambda m: m.drops)
    charts = [_chart(key, title, unit, {title: [value(m) for m in steps]}) for key, title, unit, value in _SIMPLE]
    rates = {source: [step.pass_rate.get(source, math.nan) for step in steps] for source in sources}
    rate = _chart("pass_rate", "Pass rate", "by task source; points are held out, with 95% intervals", rates)
    rate["points"] = {source: _points([line for line in metrics.evals if line.source == source]) for source in sources}
    stale = _chart(
        "staleness",
        "Staleness",
        "versions between sampling and training",
        {"mean": [m.staleness_mean for m in steps], "oldest": [float(m.staleness_max) for m in steps]},
    )
    time = _stack("phases", "Where a step's time goes", "seconds by phase", steps, phases, lambda m: m.phases)
    lost = _stack("drops", "Dropped before training", "groups or rollouts by reason", steps, drops, lambda m: m.drops)
    order = [charts[0], rate, *charts[1:4], stale, charts[4], time, *([lost] if drops else [])]
    return {"mark": mark(metrics), "from": after, "x": [step.step for step in steps], "charts": order}


def _chart(key: str, title: str, unit: str, series: Mapping[str, list[float]]) -> Data:
    return {"key": key, "title": title, "unit": unit, "series": [{"label": label, "values": values} for label, values in series.items()]}


def _stack(
    key: str,
    title: str,
    unit: str,
    steps: Sequence[StepMetrics],
    names: Sequence[str],
    of: Callable[[StepMetrics], Mapping[str, float]],
) -> Data:
    chart = _chart(key, title, unit, {name: [float(of(step).get(name, 0.0)) for step in steps] for name in names})
    return {**chart, "stacked": True}


def _points(lines: Sequence[EvalMetrics]) -> list[list[float]]:
    """[step, pass rate, low, high] of each held-out evaluation."""
    return [[line.step, line.pass_rate, *line.interval] for line in lines if line.graded]


def _names(steps: Sequence[StepMetrics], of: Callable[[StepMetrics], Mapping[str, float]]) -> list[str]:
    """Names in the order of their totals, largest first; those below a thousandth of the sum are left out."""
    totals: dict[str, float] = {}
    for step in steps:
        for name, value in of(step).items():
            totals[name] = totals.get(name, 0.0) + value
    least = sum(totals.values()) / 1000
    return sorted((name for name, total in totals.items() if total > least), key=lambda name: -totals[name])


def _seen_step(seen: str, metrics: Metrics) -> int:
    """The last step that the page has; 0 when it must draw everything anew."""
    attempts, _, rest = seen.partition(".")
    step = rest.partition(".")[0]
    if attempts != str(len(metrics.attempts)) or not step.isdecimal():
        return 0
    return int(step)
