"""Optional trackers: TensorBoard and Weights & Biases, each through its own library, imported only when asked for."""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from configs.schema import Config, resolved
from rl.log.metrics import EvalMetrics, StepMetrics


class Tracker(Protocol):
    """Another place that wants a run's numbers."""

    def step(self, metrics: StepMetrics) -> None:
        """A training step is done."""
        ...

    def evaluated(self, metrics: EvalMetrics) -> None:
        """One task source was evaluated."""
        ...

    def close(self) -> None:
        """Write what is buffered."""
        ...


def make_trackers(config: Config, run_dir: Path, *, restored_step: int = 0) -> tuple[Tracker, ...]:
    """The trackers that `config.log` asks for; their files go to `run_dir`.

    `restored_step` is where a resumed run goes on from. Raises ValueError when a library is missing.
    """
    trackers: list[Tracker] = []
    if config.log.tensorboard:
        trackers.append(TensorBoardTracker(run_dir / "tensorboard", restored_step=restored_step))
    if config.log.wandb:
        trackers.append(WandbTracker(config, run_dir))
    return tuple(trackers)


class TensorBoardTracker:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, folder: Path, *, restored_step: int) -> None:
        """Points beyond `restored_step`, written by an earlier attempt, are hidden."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("log.tensorboard is true, but the package is missing: pip install tensorboard, or set it to false") from error
        self._writer = SummaryWriter(str(folder), purge_step=restored_step + 1 if restored_step else None)

    def step(self, metrics: StepMetrics) -> None:
        """One scalar a number."""
        for name, value in step_scalars(metrics):
            self._writer.add_scalar(name, value, metrics.step, walltime=metrics.time)
        self._writer.flush()

    def evaluated(self, metrics: EvalMetrics) -> None:
        """The pass rate and its interval."""
        for name, value in eval_scalars(metrics):
            self._writer.add_scalar(name, value, metrics.step, walltime=metrics.time)
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run: offline (`wandb sync` uploads it) unless WANDB_MODE says otherwise."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("log.wandb is true, but the package is missing: pip install wandb, or set it to false") from error
        self._teardown = wandb.teardown
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "rl"),
            name=config.run.name,
            group=config.run.name,  # every attempt is a run of its own: an offline run cannot be resumed
            dir=str(run_dir),
            config=dict(resolved(config)),
            mode=_wandb_mode(),
            settings=wandb.Settings(silent=True, console="off"),
        )
        for prefix, axis in (("train/*", "train_step"), ("heldout/*", "eval_step")):
            self._run.define_metric(axis)
            self._run.define_metric(prefix, step_metric=axis)

    def step(self, metrics: StepMetrics) -> None:
        """One metric a number."""
        self._run.log({**dict(step_scalars(metrics)), "train_step": metrics.step})

    def evaluated(self, metrics: EvalMetrics) -> None:
        """The pass rate and its interval."""
        self._run.log({**dict(eval_scalars(metrics)), "eval_step": metrics.step})

    def close(self) -> None:
        """End the run, and wait for W&B's own process: only it knows when the file is complete."""
        self._run.finish()
        self._teardown()


def step_scalars(metrics: StepMetrics) -> Iterator[tuple[str, float]]:
    """`train/<name>` for every finite number of a step; maps give `train/<map>/<key>`."""
    for name, value in asdict(metrics).items():
        if name in ("step", "time", "weights_checksum"):
            continue
        for key, number in value.items() if isinstance(value, dict) else (("", value),):
            if math.isfinite(number):
                yield f"train/{name}/{key}" if key else f"train/{name}", float(number)


def eval_scalars(metrics: EvalMetrics) -> Iterator[tuple[str, float]]:
    """`<split>/<source>/<name>` of pass rate, interval and pass@k; nothing when nothing was graded."""
    if metrics.graded:
        low, high = metrics.interval
        for name, value in (("pass_rate", metrics.pass_rate), ("low", low), ("high", high)):
            yield f"{metrics.split}/{metrics.source}/{name}", value
        for k, value in metrics.pass_at.items():
            yield f"{metrics.split}/{metrics.source}/pass_at_{k}", value


def _wandb_mode() -> Any:
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode not in ("online", "offline", "disabled", "shared"):
        raise ValueError(f"WANDB_MODE is {mode!r}; it must be online, offline, disabled or shared")
    return mode
