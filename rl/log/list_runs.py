"""`rl runs`: which runs there are, how they are doing, and what their logs want you to know."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl.log.alive import RunState, run_state
from rl.log.manifest import total_health
from rl.log.metrics import read_metrics
from rl.log.query import QueryError, RunLog, json_line
from rl.log.runs import RUNS, RunPaths, looks_like_run
from rl.log.text import visible

_COLORS = {RunState.LIVE: "green", RunState.FINISHED: "", RunState.STOPPED: "yellow", RunState.DIED: "red"}
_PIPE_WIDTH = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """One run."""

    name: str
    path: str
    state: RunState
    why: str
    """Why it stopped; empty otherwise."""
    steps: int
    """Training steps done."""
    steps_in_all: int | None
    """As configured; None when nobody knows any more."""
    last_step: float | None
    """Unix seconds at the end of the newest step."""
    pass_rate: dict[str, float]
    """Newest held-out pass rate by task source; of training where nothing is held out."""
    rollouts: int
    drops: dict[str, int]
    """Rollouts that were not trained on, by reason."""
    log_drops: dict[str, int]
    """Optional records of the log that were left out, by dataset."""
    log_waits: int
    """Times that something waited for the log's disk."""
    flags: dict[str, int]
    """Flags, of rollouts and of the run."""
    problems: int
    """Parts of the log that are damaged or gone."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "state": self.state.value}


def runs_command(folder: Path | None, *, as_json: bool) -> int:
    """Print the runs of a folder (default: `runs`), the newest first. Raises ValueError when there is no such folder."""
    place = folder or RUNS
    if not place.is_dir():
        raise ValueError(f"{place} is not a folder: name the one that holds your runs (run.dir)")
    found = list_runs(place)
    if as_json:
        print(json_line([run.to_json() for run in found]))
    elif found:
        _print(found)
    else:
        print(f"no runs in {place}/")
    return 0


def list_runs(folder: Path) -> list[RunSummary]:
    """All runs in a folder, the most recently active first."""
    runs = [summarize_run(path) for path in sorted(folder.iterdir()) if path.is_dir() and looks_like_run(path)]
    return sorted(runs, key=lambda run: run.last_step or 0.0, reverse=True)


def summarize_run(root: Path) -> RunSummary:
    """Look at one run; it may be live, damaged, or have nothing yet."""
    paths = RunPaths(root=root)
    metrics = read_metrics(paths.metrics)
    steps, in_all = metrics.steps[-1].step if metrics.steps else 0, _configured_steps(paths.config)
    state, why = run_state(paths.alive, all_steps_done=in_all is not None and steps >= in_all)
    with RunLog(root) as log:
        drops = _counts(log, "SELECT reason, sum(n)::BIGINT FROM drops WHERE what = 'rollout' GROUP BY reason ORDER BY 2 DESC")
        flags = _counts(log, "SELECT name, sum(count)::BIGINT FROM flags GROUP BY name ORDER BY 2 DESC")
        rollouts = _counts(log, "SELECT 'n', count(*) FROM rollouts").get("n", 0)
        problems = len(log.problems)
        health = total_health(list(log.health.values()))
    newest = {line.source: line.pass_rate for line in metrics.evals}
    return RunSummary(
        name=root.name,
        path=str(root),
        state=state,
        why=why,
        steps=steps,
        steps_in_all=in_all,
        last_step=metrics.steps[-1].time if metrics.steps else None,
        pass_rate=newest or (dict(metrics.steps[-1].pass_rate) if metrics.steps else {}),
        rollouts=rollouts,
        drops=drops,
        log_drops=dict(health.dropped),
        log_waits=health.waits,
        flags=flags,
        problems=problems,
    )


def _counts(log: RunLog, sql: str) -> dict[str, int]:
    try:
        return {str(name): int(count) for name, count in log.query(sql).rows}
    except QueryError:  # a damaged part; `problems` or `rl sql` says which
        return {}


def _configured_steps(config: Path) -> int | None:
    try:
        return int(yaml.safe_load(config.read_text())["run"]["steps"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None


def _print(runs: Sequence[RunSummary]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table("run", "state", "steps", "pass rate", "rollouts", "not trained on", "flags", "log", box=None, pad_edge=False)
    for run in runs:
        steps = f"{run.steps}/{run.steps_in_all}" if run.steps_in_all is not None else str(run.steps)
        cells = [
            _pairs({name: f"{rate:.3f}" for name, rate in run.pass_rate.items()}),
            str(run.rollouts),
            _pairs(run.drops),
            _pairs(run.flags),
            _log_text(run),
        ]
        state = Text(run.state.value, style=_COLORS[run.state])
        if run.why:
            state.append(f": {visible(run.why, one_line=True)}")
        table.add_row(Text(visible(run.name, one_line=True)), state, Text(steps), *(Text(visible(cell, one_line=True)) for cell in cells))
    console.print(table)


def _log_text(run: RunSummary) -> str:
    parts = [f"dropped {_pairs(run.log_drops)}" if run.log_drops else "", f"waited {run.log_waits} times" if run.log_waits else ""]
    parts.append(f"{run.problems} damaged parts" if run.problems else "")
    return ", ".join(filter(None, parts)) or "whole"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
