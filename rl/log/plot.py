"""`rl plot`: the curves of a run as one picture, and the style that all pictures share."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl.log.metrics import Metrics, StepMetrics, read_metrics
from rl.log.query import json_line
from rl.log.runs import RunPaths, find_run

COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#be185d")
_INK = "#1f2937"
STYLE: Any = {
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9ca3af",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.borderpad": 0.2,
    "legend.fontsize": 8,
    "figure.dpi": 150,
}


def plot_command(run: str, *, out: Path | None, as_json: bool) -> int:
    """Draw reward, pass rates, response length, entropy, staleness, mismatch KL and time by phase.

    Writes a PNG to `out`, by default `curves.png` in the run's folder. Raises ValueError for an unknown run, for one
    without any step or evaluation, and when `out` is no PNG or cannot be written.
    """
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: the picture is a PNG file; give it a name that ends in .png")
    root = find_run(run)
    metrics = read_metrics(RunPaths(root=root).metrics)
    if not metrics.steps and not metrics.evals:
        raise ValueError(f"there is nothing to plot in {root}: no training step has finished yet")
    target = out or RunPaths(root=root).curves
    draw(metrics, title=root.resolve().name, out=target)
    summary = {"out": str(target), "steps": len(metrics.steps), "evals": len(metrics.evals)}
    print(json_line(summary) if as_json else f"drew {len(metrics.steps)} steps and {len(metrics.evals)} evaluations: {target}")
    return 0


def draw(metrics: Metrics, *, title: str, out: Path) -> None:
    """Write the picture; `out` appears whole or not at all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 8.5), layout="constrained")
        axes = figure.subplots(3, 2).flat
        panels: Sequence[Callable[[Axes, Metrics], None]] = (_reward, _pass_rate, _length, _entropy_and_kl, _staleness, _phases)
        for axis, panel in zip(axes, panels, strict=True):
            panel(axis, metrics)
            axis.set_xlabel("training step")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", parse_math=False)
        save(figure, out, option="--out")


def save(figure: Figure, out: Path, *, option: str) -> None:
    """Write a PNG, whole or not at all. Raises ValueError that names the command's `option` when it cannot be written."""
    temporary = out.with_name(out.name + ".tmp")
    try:
        figure.savefig(temporary, format="png")
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"cannot write the picture to {out}: {error.strerror or error}; choose another {option}") from error


def _reward(axis: Axes, metrics: Metrics) -> None:
    _curve(axis, metrics.steps, lambda m: m.reward_mean, color=COLORS[0], smooth=True)
    axis.set_title("Mean reward")


def _pass_rate(axis: Axes, metrics: Metrics) -> None:
    """Training curves, and held-out points with their 95% intervals in the same colour; hollow: pass@k of the most samples."""
    names = sorted({name for m in metrics.steps for name in m.pass_rate} | {e.source for e in metrics.evals})
    for i, name in enumerate(names):
        color = COLORS[i % len(COLORS)]
        _curve(axis, metrics.steps, _rate_of(name), color=color, smooth=True, label=_plain(name))
        points = [e for e in metrics.evals if e.source == name and e.graded]
        if points:
            below = [e.pass_rate - e.interval[0] for e in points]
            above = [e.interval[1] - e.pass_rate for e in points]
            axis.errorbar(
                [e.step for e in points],
                [e.pass_rate for e in points],
                yerr=[below, above],
                fmt="o",
                ms=5,
                capsize=3,
                lw=1.2,
                color=color,
                mec="white",
                zorder=4,
                label=_plain(f"{name} held out"),
            )
        tried = [(e.step, *max((int(k), value) for k, value in e.pass_at.items())) for e in points if e.pass_at]
        if tried:
            label = _plain(f"{name} held out, pass@{tried[-1][1]}")
            axis.plot([t[0] for t in tried], [t[2] for t in tried], "o", ms=5, mfc="none", color=color, zorder=4, label=label)
    axis.set_ylim(-0.03, 1.03)
    axis.set_title("Pass rate by task source")
    if names:
        axis.legend(ncols=2)


def _length(axis: Axes, metrics: Metrics) -> None:
    _curve(axis, metrics.steps, lambda m: m.response_length, color=COLORS[2], smooth=True)
    axis.set_ylim(bottom=0)
    axis.set_title("Response length (sampled tokens)")


def _entropy_and_kl(axis: Axes, metrics: Metrics) -> None:
    _curve(axis, metrics.steps, lambda m: m.entropy, color=COLORS[3], smooth=True, label="entropy (left)")
    axis.set_title("Entropy and mismatch KL (nats a token)")
    right = axis.twinx()
    right.grid(False)
    positive = [m for m in metrics.steps if m.kl > 0]
    _curve(right, positive, lambda m: m.kl, color=COLORS[4], smooth=True, label="mismatch KL (right)")
    if positive:
        right.set_yscale("log")
    handles = [*axis.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    if handles:
        axis.legend(handles=handles)


def _staleness(axis: Axes, metrics: Metrics) -> None:
    steps = [m.step for m in metrics.steps]
    axis.plot(steps, [m.staleness_max for m in metrics.steps], color=COLORS[5], lw=1, alpha=0.5, drawstyle="steps-mid", label="maximum")
    _curve(axis, metrics.steps, lambda m: m.staleness_mean, color=COLORS[5], smooth=True, label="mean")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axis.set_title("Staleness of trained tokens (versions)")
    if steps:
        axis.legend()


def _phases(axis: Axes, metrics: Metrics) -> None:
    names = list(dict.fromkeys(name for m in metrics.steps for name in m.phases))
    axis.set_title("Seconds a step by phase")
    if not names:
        return
    steps = [m.step for m in metrics.steps]
    layers = [[m.phases.get(name, 0.0) for m in metrics.steps] for name in names]
    colors = [COLORS[i % len(COLORS)] for i in range(len(names))]
    axis.stackplot(steps, layers, labels=[_plain(name) for name in names], colors=colors, alpha=0.75, lw=0, step="mid")
    axis.set_ylim(bottom=0)
    axis.legend(ncols=3, loc="upper right")


def _curve(
    axis: Axes,
    steps: Sequence[StepMetrics],
    value: Callable[[StepMetrics], float],
    *,
    color: str,
    smooth: bool = False,
    label: str | None = None,
) -> None:
    """One value a step; with `smooth` the raw line is faint behind its running mean."""
    x, y = [m.step for m in steps], [value(m) for m in steps]
    style: dict[str, Any] = {"color": color, "solid_capstyle": "round"}
    if smooth and len(y) > 8:
        axis.plot(x, y, lw=0.8, alpha=0.3, **style)
        y = _running_mean(y, half=max(1, len(y) // 30))
    if any(map(math.isfinite, y)):
        axis.plot(x, y, lw=1.8, marker="o" if len(y) == 1 else None, label=label, **style)


def _rate_of(source: str) -> Callable[[StepMetrics], float]:
    return lambda metrics: metrics.pass_rate.get(source, math.nan)


def _running_mean(values: Sequence[float], *, half: int) -> list[float]:
    """Centred mean over up to 2 half + 1 finite values; NaN where there is none."""
    windows = ([v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)] for i in range(len(values)))
    return [sum(window) / len(window) if window else math.nan for window in windows]


def _plain(text: str) -> str:
    """A label that matplotlib takes literally: no math, not hidden by a leading underscore."""
    literal = text.replace("$", r"\$")
    return f" {literal}" if literal.startswith("_") else literal
