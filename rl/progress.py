"""What a person sees of a run: a live table on a terminal, one plain line a step otherwise.

Also where the chatter of libraries goes: to a file, so that it never tears the table.
"""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rl.log.metrics import EvalMetrics, StepMetrics, ungraded_text
from rl.log.text import visible

_ROWS = 10
"""Steps kept in the live table."""
_HEARTBEAT_SECONDS = 30.0
"""Plain lines of one unbroken wait are at least this far apart."""
_NOISY = ("ray", "DeepSpeed", "deepspeed", "transformers", "datasets", "huggingface_hub", "torch.distributed", "py.warnings")
"""Loggers whose messages go to the file; `py.warnings` is where Python's own warnings arrive."""


class Progress:
    """Shows a run. Not thread-safe: the loop calls it."""

    def __init__(self, name: str, *, total_steps: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds; only differences count."""
        self._name = name
        self._total = total_steps
        self._console = console or Console()
        self._clock = clock
        self._recent: deque[StepMetrics] = deque(maxlen=_ROWS)
        self._evals: dict[str, EvalMetrics] = {}
        self._drops: Counter[str] = Counter()
        self._waiting = ""
        self._waiting_since = 0.0
        self._last_heartbeat = -math.inf
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def step(self, metrics: StepMetrics) -> None:
        """A training step is done."""
        self._recent.append(metrics)
        self._drops.update(metrics.drops)
        self._waiting = ""
        if self._live is None:
            self._print(_plain_line(metrics, self._total))

    def evaluated(self, metrics: EvalMetrics) -> None:
        """One task source was evaluated."""
        self._evals[metrics.source] = metrics
        if self._live is None:
            self._print(_eval_text(metrics))

    def waiting(self, reason: str) -> None:
        """The learner is not stepping, and why. Call it as often as you like while the wait lasts."""
        now = self._clock()
        if not self._waiting:
            self._waiting_since, self._last_heartbeat = now, -math.inf
        self._waiting = reason
        if self._live is None and now - self._last_heartbeat >= _HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            self._print(self._waiting_line(now))

    def say(self, message: str) -> None:
        """One line for the person, kept above the table."""
        self._print(message)

    def close(self) -> None:
        """Leave the last state on the screen. A second call does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, message: str) -> None:
        self._console.print(Text(visible(message)), soft_wrap=True)

    def _waiting_line(self, now: float) -> str:
        return f"waiting {now - self._waiting_since:.0f} s: {self._waiting}"

    def _render(self) -> Group:
        newest = self._recent[-1] if self._recent else None
        done = newest.step if newest else 0
        head = Text(visible(f"{self._name}  step {done} of {self._total}", one_line=True), style="bold")
        lines = [head]
        if newest:
            lines.append(Text(visible("time   " + _phases(newest.phases), one_line=True)))
        if self._drops:
            dropped = ", ".join(f"{reason} {count}" for reason, count in self._drops.most_common())
            lines.append(Text(visible(f"drops  {dropped}", one_line=True)))
        lines += [Text(visible(_eval_text(e), one_line=True), style="cyan") for e in self._evals.values()]
        if self._waiting:
            lines.append(Text(visible(self._waiting_line(self._clock()), one_line=True), style="yellow"))
        return Group(_step_table(self._recent), *lines)


def redirect_library_noise(path: Path) -> None:
    """Send log records and warnings of Ray, DeepSpeed, Transformers, Datasets and Python to `path`, now and later.

    Safe to call before the libraries are imported (some add a terminal handler on import, which is then refused), more
    than once, and in every process of a run with the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="a", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.__class__ = _FileOnlyLogger
        for other in list(logger.handlers):
            logger.removeHandler(other)
        logger.addHandler(handler)
        logger.propagate = False
    logging.captureWarnings(True)


class _FileOnlyLogger(logging.Logger):
    """A logger that takes file handlers only, whatever a library's import does to it."""

    def addHandler(self, hdlr: logging.Handler) -> None:
        """Ignore handlers that write to a terminal."""
        if isinstance(hdlr, logging.FileHandler | logging.NullHandler):
            super().addHandler(hdlr)


def _step_table(recent: "deque[StepMetrics]") -> Table:
    sources = sorted({source for m in recent for source in m.pass_rate})
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "reward", *sources, "length", "entropy", "KL", "stale", "tokens/s", "seconds"):
        table.add_column(Text(visible(name, one_line=True)), justify="right", no_wrap=True)
    for m in recent:
        rates = [_number(m.pass_rate.get(source, math.nan), ".3f") for source in sources]
        cells = [str(m.step), _number(m.reward_mean, ".3f"), *rates, _number(m.response_length, ".0f"), _number(m.entropy, ".3f")]
        cells += [_number(m.kl, ".1e"), _stale(m), _number(m.tokens_per_s, ".0f"), _number(m.seconds, ".1f")]
        table.add_row(*cells)
    return table


def _plain_line(m: StepMetrics, total: int) -> str:
    rates = " ".join(f"{source}={_number(rate, '.3f')}" for source, rate in m.pass_rate.items())
    fields: dict[str, Any] = {
        "reward": _number(m.reward_mean, ".3f"),
        "pass": f"[{rates}]",
        "length": _number(m.response_length, ".0f"),
        "entropy": _number(m.entropy, ".3f"),
        "kl": _number(m.kl, ".1e"),
        "stale": _stale(m),
        "tokens/s": _number(m.tokens_per_s, ".0f"),
        "seconds": f"{_number(m.seconds, '.1f')} ({_phases(m.phases)})",
    }
    if m.drops:
        fields["drops"] = ", ".join(f"{reason} {count}" for reason, count in m.drops.items())
    return f"step {m.step}/{total}  " + "  ".join(f"{name} {value}" for name, value in fields.items())


def _eval_text(e: EvalMetrics) -> str:
    low, high = e.interval
    missing = f", {ungraded_text(e.ungraded, infra=e.infra, ungradable=e.ungradable)}" if e.ungraded else ""
    return f"{e.split} {e.source} at step {e.step}: {_number(e.pass_rate, '.3f')} [{low:.3f}, {high:.3f}] ({e.passed}/{e.graded}{missing})"


def _phases(phases: Mapping[str, float]) -> str:
    return " ".join(f"{name} {seconds:.1f}s" for name, seconds in phases.items())


def _stale(m: StepMetrics) -> str:
    return f"{_number(m.staleness_mean, '.1f')}/{m.staleness_max}"


def _number(value: float, spec: str) -> str:
    return format(value, spec) if math.isfinite(value) else "-"
