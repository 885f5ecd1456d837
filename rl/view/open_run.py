"""Runs as the viewer holds them open: found by name, their metrics followed, their log opened again when it has grown."""

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rl.log.alive import RunState, run_state
from rl.log.metrics import Metrics, MetricsReader
from rl.log.query import Page, RunLog
from rl.log.runs import RunPaths, find_run, looks_like_run

TIMEOUT = 20.0
"""Seconds that a page's query may take."""
_REOPEN_SECONDS = 5.0
"""Least time between two openings of a growing log: opening reads all manifests."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a run stands."""

    state: RunState
    why: str
    """Why it stopped, where that is known."""
    idle_seconds: float
    """Since something was written."""
    step: int
    """Training steps done."""
    total_steps: int | None
    """As configured; None when the configuration cannot be read."""

    @property
    def is_live(self) -> bool:
        """Whether the run goes on."""
        return self.state is RunState.LIVE

    @property
    def word(self) -> str:
        """For a person: a live run without a step is starting."""
        return "starting" if self.state is RunState.LIVE and not self.step else self.state.value


class OpenRun:
    """One run. Safe to use from several threads."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self._paths = RunPaths(root=root)
        self._reader = MetricsReader(self._paths.metrics)
        self._metrics = Metrics()
        self._metrics_size = -1
        self._config: Row = {}
        self._config_mark = -1
        self._log: RunLog | None = None
        self._log_mark: tuple[tuple[str, int, int], ...] = ()
        self._log_opened = 0.0
        self._lock = threading.RLock()

    def metrics(self) -> Metrics:
        """The curves so far. Raises ValueError that names the file when a line is not one of this program's."""
        with self._lock:
            size = _size(self._paths.metrics)
            if size != self._metrics_size:
                self._metrics = self._reader.read()
                self._metrics_size = size
            return self._metrics

    def config(self) -> Row:
        """The resolved configuration as plain values; empty when it is missing or damaged."""
        try:
            changed = self._paths.config.stat().st_mtime_ns
            if changed != self._config_mark:
                values = yaml.safe_load(self._paths.config.read_text())
                self._config, self._config_mark = values if isinstance(values, dict) else {}, changed
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return self._config

    def state(self) -> Standing:
        """Where the run stands."""
        steps = self.metrics().steps
        newest = max((path.stat().st_mtime for path in (self._paths.metrics, *self._manifests()) if path.exists()), default=time.time())
        run = self.config().get("run")
        total = run.get("steps") if isinstance(run, dict) else None
        done, total = steps[-1].step if steps else 0, total if isinstance(total, int) else None
        state, why = run_state(self._paths.alive, all_steps_done=total is not None and done >= total)
        return Standing(state=state, why=why, idle_seconds=max(0.0, time.time() - newest), step=done, total_steps=total)

    def page(self, sql: str, parameters: Sequence[Any] = (), *, limit: int = 1000, timeout: float = TIMEOUT) -> Page:
        """The first rows of a query. Raises QueryError."""
        return self.log().fetch(sql, parameters, limit=limit, timeout=timeout)

    def rows(self, sql: str, parameters: Sequence[Any] = (), *, limit: int = 1000) -> list[Row]:
        """The same as one mapping a row."""
        page = self.page(sql, parameters, limit=limit)
        return [dict(zip(page.columns, row, strict=True)) for row in page.rows]

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each part that is damaged or gone."""
        return self.log().problems

    def log(self) -> RunLog:
        """The log as of a few seconds ago at most. Raises QueryError when it cannot be opened at all."""
        with self._lock:
            now, mark = time.monotonic(), self._mark()
            if self._log is not None and (mark == self._log_mark or now - self._log_opened < _REOPEN_SECONDS):
                return self._log
            # The old one is freed with the last request that reads it.
            self._log, self._log_mark, self._log_opened = RunLog(self.root), mark, now
            return self._log

    def mark(self) -> str:
        """Changes with what pages that read the log show: its rows, and whether the run goes on. Raises QueryError."""
        with self._lock:
            self.log()
            return digest(self._log_mark, self.state().word)

    def written(self) -> str:
        """Changes when something was written to the log; nothing is opened."""
        return digest(self._mark())

    def _mark(self) -> tuple[tuple[str, int, int], ...]:
        """Changes when something was written to the log."""
        stats = [(path.name, path.stat()) for path in (*self._manifests(), self._paths.metrics) if path.exists()]
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

    def _manifests(self) -> list[Path]:
        return sorted(self._paths.log.glob("manifest-*.jsonl"))


class RunsFolder:
    """The runs that one viewer shows, looked up by name: a name from a URL is never joined to a path."""

    def __init__(self, folder: Path, *, only: str | None = None) -> None:
        """All runs in `folder`, or the one named `only`, a path or a name under `runs/`. Raises ValueError for an unknown one."""
        self._folder = folder
        self._only = find_run(only) if only is not None else None
        self._open: dict[str, OpenRun] = {}
        self._lock = threading.Lock()

    @property
    def place(self) -> str:
        """Where the runs lie, for a person."""
        return str(self._only or self._folder)

    def runs(self) -> list[OpenRun]:
        """Newest activity first."""
        with self._lock:
            roots = [self._only.resolve()] if self._only is not None else _run_folders(self._folder)
            found = {root.name: root for root in roots}
            self._open = {name: self._open.get(name) or OpenRun(name, root) for name, root in found.items()}
            return sorted(self._open.values(), key=lambda run: (-_modified(run.root), run.name))

    def get(self, name: str) -> OpenRun | None:
        """The run called so; None when there is none."""
        known = self._open.get(name)
        if known is not None and known.root.is_dir():
            return known
        return next((run for run in self.runs() if run.name == name), None)


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and looks_like_run(path)]


def _modified(root: Path) -> float:
    paths = RunPaths(root=root)
    return max((path.stat().st_mtime for path in (paths.metrics, paths.identity) if path.exists()), default=0.0)


def digest(*values: object) -> str:
    """A short mark of plain values."""
    return hashlib.blake2s(repr(values).encode(), digest_size=8).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
