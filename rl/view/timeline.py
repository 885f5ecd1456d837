"""Who did what when: the spans of a training step, or of one rollout, as bars on a common scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rl.log.metrics import Metrics
from rl.view.open_run import OpenRun, Row
from rl.view.render import seconds

WIDTH = 1000
"""Units of the drawing from its beginning to its end."""
_LEAST = 1.5
"""Width of the shortest bar, in such units: what happened can be seen and pointed at."""
_SPANS = 3000
"""Drawn at most, the longest ones."""
_ROWS = 64
"""Rows of one lane: what ran at the same time lies in rows below each other."""
_COLORS = 11
"""Classes `t0` to `t10` of static/view.css: the loop has six phases and a rollout three, and no two should look alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One span."""

    x: float
    width: float
    row: int
    color: int
    """Of its name; the same in all lanes."""
    text: str
    """What it was, for the pointer."""
    rollout_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """The spans of one actor, or of one phase."""

    name: str
    bars: tuple[Bar, ...]
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """A drawing."""

    seconds: float
    """From its beginning to its end."""
    lanes: tuple[Lane, ...]
    names: tuple[tuple[str, float, int], ...]
    """Name of spans, their seconds in all, and their colour; the longest first."""
    left_out: int
    """Spans that were not drawn: there are too many, or too many at a time."""


def newest_step(run: OpenRun, metrics: Metrics) -> int:
    """The last training step of which the loop's last span, `log`, is there.

    Where none is, as spans are optional: the last that has spans, or else that ended; 0 before the first. Raises QueryError.
    """
    last = metrics.steps[-1].step if metrics.steps else 0
    sql = "SELECT coalesce(max(train_step) FILTER (name = 'log'), max(train_step)) FROM spans WHERE train_step <= ?"
    ((found,),) = run.page(sql, (last,)).rows
    return last if found is None else int(found)


def step_timeline(run: OpenRun, step: int, metrics: Metrics) -> Timeline | None:
    """All actors while the loop was at training step `step`; None without its spans. Raises QueryError."""
    bounds = "SELECT min(started), max(ended) FROM spans WHERE dispatch_version = ? AND train_step = ?"
    ((begun, ended),) = run.page(bounds, (step - 1, step)).rows
    if begun is None:
        return None
    oldest = max((one.staleness_max for one in metrics.steps if abs(one.step - step) <= 1), default=0) + 1
    # The partitions that a span of this time can lie in, so that the others are not read.
    sql = (
        "SELECT actor, name, started, ended, rollout_id, turn, count(*) OVER () AS n FROM spans "
        "WHERE dispatch_version BETWEEN ? AND ? AND started < ? AND ended > ? ORDER BY ended - started DESC"
    )
    rows = run.rows(sql, (step - 1 - oldest, step, ended, begun), limit=_SPANS)
    drawing = drawn(rows, begun=begun, ended=ended, lane="actor", first="loop")
    return replace(drawing, left_out=drawing.left_out + (rows[0]["n"] - len(rows) if rows else 0))


def rollout_timeline(run: OpenRun, rollout_id: str, version: int) -> Timeline | None:
    """One rollout, a lane a phase; None without spans. Raises QueryError."""
    sql = "SELECT actor, name, started, ended, rollout_id, turn FROM spans WHERE dispatch_version = ? AND rollout_id = ? ORDER BY started"
    rows = run.rows(sql, (version, rollout_id), limit=_SPANS)
    if not rows:
        return None
    return drawn(rows, begun=min(row["started"] for row in rows), ended=max(row["ended"] for row in rows), lane="name")


def drawn(rows: Sequence[Row], *, begun: float, ended: float, lane: str, first: str = "") -> Timeline:
    """Bars of `rows` between two times (unix seconds); lanes by the column `lane`, that called `first` on top."""
    scale = WIDTH / max(ended - begun, 1e-6)
    totals: dict[str, float] = {}
    for row in rows:
        totals[row["name"]] = totals.get(row["name"], 0.0) + min(row["ended"], ended) - max(row["started"], begun)
    names = sorted(totals, key=lambda name: (-totals[name], name))
    color = {name: index % _COLORS for index, name in enumerate(names)}
    by_lane: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: float(row["started"])):
        by_lane.setdefault(str(row[lane]), []).append(row)
    lanes, left_out = [], 0
    for name in sorted(by_lane, key=lambda name: (name != first, by_lane[name][0]["started"] if not first else 0.0, name)):
        free: list[float] = []  # each row's end so far
        bars = []
        for row in by_lane[name]:
            at = next((index for index, end in enumerate(free) if end <= row["started"]), len(free))
            if at >= _ROWS:
                left_out += 1
                continue
            free[at : at + 1] = [row["ended"]]
            bars.append(_bar(row, begun=begun, scale=scale, at=at, color=color))
        lanes.append(Lane(name=name, bars=tuple(bars), rows=len(free)))
    return Timeline(
        seconds=ended - begun, lanes=tuple(lanes), names=tuple((name, totals[name], color[name]) for name in names), left_out=left_out
    )


def _bar(row: Row, *, begun: float, scale: float, at: int, color: Mapping[str, int]) -> Bar:
    left = max(0.0, (row["started"] - begun) * scale)
    right = min(float(WIDTH), (row["ended"] - begun) * scale)
    width = max(_LEAST, right - left)
    words = [row["name"], seconds(row["ended"] - row["started"])]
    words += [f"turn {row['turn']}"] if row["turn"] is not None else []
    words += [f"rollout {row['rollout_id']}"] if row["rollout_id"] else []
    return Bar(
        x=round(min(left, WIDTH - width), 2),
        width=round(width, 2),
        row=at,
        color=color[row["name"]],
        text=", ".join(words),
        rollout_id=row["rollout_id"],
    )
