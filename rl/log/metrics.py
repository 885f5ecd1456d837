"""`metrics.jsonl`: one JSON line a training step and one an evaluated task source.

The file is only ever appended to. A resumed attempt starts with a line that names the step it was restored to; readers
then forget what earlier attempts did beyond it. A line torn by a kill is skipped. JSON has no NaN: a float that is not
finite is written as null and read as NaN.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rewards.score import ScoreStatus
from rl.log.manifest import WriterHealth
from rl.log.storage import LogWriteError, explain, write_all
from rl.records import RolloutGroup, StepStats, TrainSample
from rl.statistics import wilson_interval

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """One training step. Floats without a value (nothing graded, nothing trained) are NaN."""

    step: int
    """1-based; equals the policy version after the step."""
    version: int
    """Policy version that the step started from."""
    time: float
    """Unix seconds at the end of the step."""
    seconds: float
    """Wall clock since the end of the previous step."""
    reward_mean: float
    """Over graded rollouts of the step's groups."""
    pass_rate: Mapping[str, float]
    """By task source: share of graded rollouts with status ok."""
    response_length: float
    """Mean sampled tokens a rollout."""
    entropy: float
    """Nats, mean over trained tokens."""
    kl: float
    """k3 between behaviour and learner policy, nats, mean over trained tokens: the engine mismatch when on-policy."""
    clip_fraction: float
    grad_norm: float
    learning_rate: float
    loss: float
    staleness_mean: float
    """Versions between sampling and training, mean over trained tokens."""
    staleness_max: int
    """Of the oldest trained token; the get door bounds the newest tokens of each rollout."""
    tokens: int
    """Sampled tokens of the step's groups."""
    tokens_per_s: float
    """`tokens / seconds`."""
    phases: Mapping[str, float]
    """Seconds by phase: rollout (the wait for it), train, sync, log, checkpoint, evaluate."""
    drops: Mapping[str, int]
    """Counts by reason since the previous step."""
    groups_trained: int
    groups_skipped: int
    """Groups of the batch without any trained sample (zero variance)."""
    weights_checksum: str = ""
    """Of the weights that were published after the step: the same in two runs that computed the same."""
    sync_bytes: int = 0
    """What the learner handed to the generators after the step: all weights, or what has changed."""
    broadcasts_failed: int = 0
    """Broadcasts of weights to the generators after the step that failed, so that the version went through the object store."""
    log_waits: int = 0
    """Times since the previous step that something waited for the log's disk."""
    log_dropped: Mapping[str, int] = field(default_factory=dict)
    """Optional records since the previous step that were left out of the log, by dataset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalMetrics:
    """One evaluated task source."""

    step: int
    """Policy version that was evaluated."""
    time: float
    split: str
    source: str
    passed: int
    graded: int
    ungraded: int = 0
    """Samples without a verdict: `infra`, `ungradable`, and prompts over the limit."""
    infra: int = 0
    """Of them: the infrastructure failed, again after the retries."""
    ungradable: int = 0
    """Of them: the reference cannot be used."""
    low: float = math.nan
    """Of the 95% interval that knows which samples are of the same problem; NaN where nobody knows that."""
    high: float = math.nan
    pass_at: Mapping[str, float] = field(default_factory=dict)
    """k: pass@k, without bias, over problems with at least k graded samples."""

    @property
    def pass_rate(self) -> float:
        """NaN when nothing was graded."""
        return self.passed / self.graded if self.graded else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the pass rate; Wilson's over samples where their problems are not known."""
        return (self.low, self.high) if math.isfinite(self.low) else wilson_interval(self.passed, self.graded)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A start (restored_step 0) or a resume of the run."""

    attempt: int
    time: float
    restored_step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFlag:
    """A flag on the run as a whole."""

    name: str
    step: int
    time: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """What `metrics.jsonl` says once superseded lines are gone; steps in order."""

    steps: tuple[StepMetrics, ...] = ()
    evals: tuple[EvalMetrics, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    flags: tuple[RunFlag, ...] = ()


def ungraded_text(ungraded: int, *, infra: int, ungradable: int) -> str:
    """How many samples have no verdict and why, for a person."""
    others = {"infra": infra, "ungradable": ungradable, "prompt too long": ungraded - infra - ungradable}
    why = ", ".join(f"{name} {count}" for name, count in others.items() if count)
    return f"{ungraded} ungraded" + (f" ({why})" if why else "")


def summarize_step(
    step: int,
    *,
    groups: Sequence[RolloutGroup],
    samples: Sequence[TrainSample],
    stats: StepStats | None,
    seconds: float,
    phases: Mapping[str, float],
    drops: Mapping[str, int],
    weights_checksum: str = "",
    sync_bytes: int = 0,
    broadcasts_failed: int = 0,
    log: WriterHealth | None = None,
) -> StepMetrics:
    """Metrics of training step `step` (1-based). `stats` is one rank's (they are reduced); None when nothing was trained.

    `log` counts what the writers of the log have waited for and dropped since the previous step.
    """
    rollouts = [(group.problem.source, rollout) for group in groups for rollout in group.rollouts]
    graded = [(source, rollout.score) for source, rollout in rollouts if rollout.score.reward is not None]
    passes: dict[str, list[bool]] = {}
    for source, score in graded:
        passes.setdefault(source, []).append(score.status is ScoreStatus.OK)
    tokens = sum(rollout.n_sampled for _, rollout in rollouts)
    n_trained_groups = len({sample.group_index for sample in samples})
    stale = [step - 1 - int(v) for sample in samples for v in sample.versions_T[sample.agent_mask_T]]
    return StepMetrics(
        step=step,
        version=step - 1,
        time=time.time(),
        seconds=seconds,
        reward_mean=_mean([score.reward for _, score in graded if score.reward is not None]),
        pass_rate={source: _mean(passed) for source, passed in sorted(passes.items())},
        response_length=tokens / len(rollouts) if rollouts else math.nan,
        entropy=stats.entropy if stats else math.nan,
        kl=stats.kl if stats else math.nan,
        clip_fraction=stats.clip_fraction if stats else math.nan,
        grad_norm=stats.grad_norm if stats else math.nan,
        learning_rate=stats.learning_rate if stats else math.nan,
        loss=stats.loss if stats else math.nan,
        staleness_mean=_mean(stale),
        staleness_max=max(stale, default=0),
        tokens=tokens,
        tokens_per_s=tokens / seconds if seconds > 0 else math.nan,
        phases=dict(phases),
        drops=dict(drops),
        groups_trained=n_trained_groups,
        groups_skipped=len(groups) - n_trained_groups,
        weights_checksum=weights_checksum,
        sync_bytes=sync_bytes,
        broadcasts_failed=broadcasts_failed,
        log_waits=log.waits if log else 0,
        log_dropped=dict(log.dropped) if log else {},
    )


class MetricsWriter:
    """Appends to `metrics.jsonl`; each line is on disk when the call returns. Raises LogWriteError when it cannot be."""

    def __init__(self, path: Path, *, attempt: int, restored_step: int) -> None:
        """`restored_step`: training steps done in the checkpoint that this attempt goes on from; 0 for a fresh start."""
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._fd).st_size
            if size and os.pread(self._fd, 1, size - 1) != b"\n":  # a kill tore the last line: end it, readers skip it
                write_all(self._fd, b"\n")
        except OSError as error:
            raise LogWriteError(explain(error, path)) from error
        self._append("attempt", asdict(Attempt(attempt=attempt, time=time.time(), restored_step=restored_step)))

    def step(self, metrics: StepMetrics) -> None:
        """Append one training step."""
        self._append("step", asdict(metrics))

    def evaluated(self, metrics: EvalMetrics) -> None:
        """Append one evaluated task source, with its interval for those who read the file directly."""
        low, high = metrics.interval
        self._append("eval", {**asdict(metrics), "pass_rate": metrics.pass_rate, "low": low, "high": high})

    def flagged(self, flag: RunFlag) -> None:
        """Append a flag on the run."""
        self._append("flag", asdict(flag))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _append(self, kind: str, record: Mapping[str, Any]) -> None:
        line = json.dumps({"kind": kind, **_finite(record)}, allow_nan=False) + "\n"
        before = os.fstat(self._fd).st_size
        try:
            write_all(self._fd, line.encode())
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, before)
            raise LogWriteError(explain(error, self._path)) from error


class MetricsReader:
    """Follows a `metrics.jsonl` that may still be written: each `read` parses only what was appended since the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self._steps: dict[int, StepMetrics] = {}
        self._evals: dict[tuple[int, str, str], EvalMetrics] = {}
        self._attempts: list[Attempt] = []
        self._flags: list[RunFlag] = []

    def read(self) -> Metrics:
        """The lines that count; empty when there is no file yet. Raises ValueError for a line that is not one of this program's."""
        try:
            return self._read()
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            self._forget()
            raise ValueError(f"{self._path} holds a line that is no metrics record: {error}") from error

    def _read(self) -> Metrics:
        for kind, record in _lines(self._appended()):
            if kind == "attempt":
                attempt = _record(Attempt, record)
                self._attempts.append(attempt)
                self._steps = {step: line for step, line in self._steps.items() if step <= attempt.restored_step}
                self._evals = {key: line for key, line in self._evals.items() if key[0] <= attempt.restored_step}
                self._flags = [flag for flag in self._flags if flag.step <= attempt.restored_step]
            elif kind == "step":
                metrics = _record(StepMetrics, record)
                self._steps[metrics.step] = metrics
            elif kind == "eval":
                result = _record(EvalMetrics, record)
                self._evals[result.step, result.split, result.source] = result
            elif kind == "flag":
                self._flags.append(_record(RunFlag, record))
        return Metrics(
            steps=tuple(self._steps[step] for step in sorted(self._steps)),
            evals=tuple(self._evals[key] for key in sorted(self._evals)),
            attempts=tuple(self._attempts),
            flags=tuple(self._flags),
        )

    def _appended(self) -> bytes:
        """Whole lines that no read has seen."""
        if not self._path.is_file():
            return b""
        if self._path.stat().st_size < self._offset:  # another run has taken the name (`rl train --clean`)
            self._forget()
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        data = data[: data.rfind(b"\n") + 1]  # the rest is being written right now, or was torn by a kill
        self._offset += len(data)
        return data


def read_metrics(path: Path) -> Metrics:
    """The lines that count; empty when there is no file yet. Raises ValueError for a line that is not one of this program's."""
    return MetricsReader(path).read()


def _lines(data: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for line in data.splitlines():
        try:
            record = json.loads(line)
            kind = record.pop("kind")
        except (ValueError, AttributeError, KeyError, TypeError):
            continue  # torn by a kill
        yield kind, record


def _record(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build `cls` from a line, null floats as NaN; lines may hold more (derived) values than the record."""
    specs = fields(cls)  # type: ignore[arg-type]  # every caller passes a dataclass
    return cls(**{spec.name: _restored(values[spec.name], spec.type is float) for spec in specs if spec.name in values})


def _restored(value: Any, is_float: bool) -> Any:
    if isinstance(value, dict):
        return {key: math.nan if item is None else item for key, item in value.items()}
    return math.nan if value is None and is_float else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
