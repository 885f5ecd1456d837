"""The picture of `rl plan --plot`: speed over numbers of cards, and where the seconds of a step go."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl.log.plot import COLORS, STYLE, save
from rl.planner.scaling import Scaling


def draw_scaling(scaling: Scaling, *, title: str, out: Path) -> None:
    """Write a PNG to `out`. Raises ValueError when it is no PNG or cannot be written."""
    if out.suffix.lower() != ".png":
        raise ValueError(f"--plot {out}: the picture is a PNG file; give it a name that ends in .png")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        _speed(left, scaling)
        _phases(right, scaling)
        figure.suptitle(
            f"{title} on {scaling.card.upper()}, predicted", x=0.01, ha="left", fontsize=13, fontweight="bold", parse_math=False
        )
        save(figure, out, option="--plot")


def _speed(axis: Axes, scaling: Scaling) -> None:
    for points, name, color in ((scaling.grown_batch, "batch grows", COLORS[0]), (scaling.same_batch, "same batch", COLORS[1])):
        axis.plot([p.cards for p in points], [p.tokens_per_s for p in points], marker="o", ms=4, lw=1.8, color=color, label=name)
    first = scaling.grown_batch[0]
    last = scaling.grown_batch[-1].cards
    ideal = [first.tokens_per_s, first.tokens_per_s * last / first.cards]
    axis.plot([first.cards, last], ideal, lw=1, ls="--", color="#9ca3af", label="proportional")
    axis.axvline(scaling.configured, lw=1, ls=":", color="#6b7280", label=f"configured: {scaling.configured}")
    axis.set(xscale="log", yscale="log", xlabel="cards", title="Sampled tokens a second")
    axis.legend()


def _phases(axis: Axes, scaling: Scaling) -> None:
    points = scaling.same_batch
    for name, color in zip(("rollout", "train", "sync"), COLORS, strict=False):
        axis.plot([p.cards for p in points], [p.phases[name] for p in points], marker="o", ms=4, lw=1.8, color=color, label=name)
    axis.plot([p.cards for p in points], [p.step_seconds for p in points], lw=1, ls="--", color="#6b7280", label="whole step")
    axis.set(xscale="log", yscale="log", xlabel="cards", title="Seconds a step by phase, same batch")
    axis.legend()
