"""The list of runs: a line for each. What a line needs from the log itself, the flags, is counted apart: it opens the log."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.log.metrics import EvalMetrics, Metrics
from rl.view.curves import mark
from rl.view.health import WINDOW, findings
from rl.view.open_run import OpenRun, RunsFolder, digest

RECOUNT_SECONDS = 30.0
"""Least time between two counts over the rollouts of a run that goes on."""
_FLAGS = 3
"""Most frequent ones that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlagCounts:
    """The most frequent flags of a run."""

    rows: Sequence[tuple[str, int]]
    more: bool
    """Whether it has further ones."""


class FlagMemory:
    """Flags of each run as they were last counted."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float, FlagCounts]] = {}

    def count(self, run: OpenRun) -> FlagCounts:
        """Of now, or of `RECOUNT_SECONDS` ago at most. Raises QueryError."""
        if self.is_due(run):
            written = run.written()
            found = run.page("SELECT name, sum(count)::BIGINT AS n FROM flags GROUP BY name ORDER BY n DESC, name", limit=_FLAGS)
            counts = FlagCounts(rows=[(str(name), int(n)) for name, n in found.rows], more=found.more)
            self._known[run.name] = written, time.monotonic(), counts
        return self._known[run.name][2]

    def last(self, run: OpenRun) -> FlagCounts | None:
        """As they were counted last; None when they never were."""
        known = self._known.get(run.name)
        return None if known is None else known[2]

    def is_due(self, run: OpenRun) -> bool:
        """Whether it is time to count again. A run that goes on writes all the time; one that ended is counted once more."""
        known = self._known.get(run.name)
        if known is None:
            return True
        is_new = run.state().is_live and time.monotonic() < known[1] + RECOUNT_SECONDS
        return not is_new and known[0] != run.written()


def lines(folder: RunsFolder, flags: FlagMemory) -> list[Mapping[str, Any]]:
    """What the list shows of each run: those that go on by name, so that they keep their places, then the others, the newest first."""
    rows = [_line(run, flags) for run in folder.runs()]
    going = [row for row in rows if row["error"] == "" and row["state"].is_live]
    return [*sorted(going, key=lambda row: str(row["run"].name)), *(row for row in rows if row not in going)]


def lines_mark(folder: RunsFolder) -> str:
    """Changes with the list."""
    return digest(*(_line_mark(run) for run in folder.runs()))


def newest(metrics: Metrics) -> list[EvalMetrics]:
    """The last evaluation of each task source."""
    return list({line.source: line for line in metrics.evals}.values())


def latest_drops(metrics: Metrics) -> dict[str, int]:
    """Groups and rollouts that the last steps did not train on, by reason, most frequent first.

    A group that the learner took and got no gradient from is one of equal rewards: the log calls its rollouts `zero_variance`, too.
    """
    counts: Counter[str] = Counter()
    for step in metrics.steps[-WINDOW:]:
        counts.update(step.drops)
        counts["zero_variance"] += step.groups_skipped
    return {reason: n for reason, n in counts.most_common() if n}


def _line(run: OpenRun, flags: FlagMemory) -> Mapping[str, Any]:
    """A damaged run is named, not fatal."""
    try:
        metrics, state = run.metrics(), run.state()
    except (ValueError, OSError) as error:
        return {"run": run, "error": str(error)}
    return {
        "run": run,
        "error": "",
        "state": state,
        "last": metrics.steps[-1] if metrics.steps else None,
        "reward": [step.reward_mean for step in metrics.steps],
        "held_out": newest(metrics),
        "drops": sum(latest_drops(metrics).values()),
        "flags": flags.last(run),
        "flags_due": flags.is_due(run),
        "findings": [one for one in findings(metrics, state=state, recent=None) if one.level != "note"],
    }


def _line_mark(run: OpenRun) -> tuple[object, ...]:
    try:
        metrics, state = run.metrics(), run.state()
    except (ValueError, OSError) as error:
        return run.name, str(error)
    silent = int(state.idle_seconds / 60) if state.is_live else None
    return run.name, mark(metrics), len(metrics.flags), state.word, state.total_steps, silent
