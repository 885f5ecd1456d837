"""What a run tells the world: metrics, the learner's part of the rollout log, trackers, and the person at the terminal."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from configs.schema import Config
from rl.buffer import Rejection
from rl.evaluate import EvalReport, PassRate
from rl.filters import DropReason
from rl.log.alive import Heartbeat
from rl.log.flags.run import RunRules
from rl.log.health import log_health, since
from rl.log.manifest import WriterHealth
from rl.log.metrics import EvalMetrics, MetricsWriter, summarize_step
from rl.log.runs import RunIdentity, RunPaths
from rl.log.spans import SpanWriter
from rl.log.upkeep import Upkeep
from rl.log.writer import LearnerWriter
from rl.loop import StepResult
from rl.progress import Progress
from rl.records import Span
from rl.trackers import make_trackers


class RunObserver:
    """Receives the loop's events in the driver process. Writing is quick: Parquet goes through a writer thread."""

    def __init__(self, config: Config, *, run: RunPaths, identity: RunIdentity, restored_step: int) -> None:
        """`restored_step`: training steps in the checkpoint that this attempt goes on from; 0 for a fresh start."""
        self._metrics = MetricsWriter(run.metrics, attempt=identity.attempt, restored_step=restored_step)
        self._learner_log = LearnerWriter(run.root, attempt=identity.attempt)
        self._spans = SpanWriter(run.root, attempt=identity.attempt, actor="loop")
        self._upkeep = Upkeep(run.root, config.log)
        self._heartbeat: Heartbeat | None = None
        self._alive = run.alive
        self._rules = RunRules()
        self._log = run.log
        self._log_before = log_health(run.log)
        self._steps_done = restored_step
        self._config = config
        self._trackers = make_trackers(config, run.root, restored_step=restored_step)
        self._progress = Progress(config.run.name, total_steps=config.run.steps)
        self._reports: list[EvalReport] = []
        self._drops: Counter[str] = Counter()
        self._last = time.monotonic()
        self._log_seconds = 0.0

    def __enter__(self) -> Self:
        self._heartbeat = Heartbeat(self._alive)
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.close()
        for tracker in self._trackers:
            tracker.close()
        self._metrics.close()
        self._spans.close()
        try:
            self._learner_log.close()
            if error is None:
                self._upkeep.finish()
        finally:
            if self._heartbeat is not None:
                self._heartbeat.end(self._how_it_ended(error))

    def _how_it_ended(self, error: BaseException | None) -> str:
        if error is not None:
            return f"{type(error).__name__}: {error}"[:500]
        return "finished" if self._steps_done >= self._config.run.steps else f"interrupted after step {self._steps_done}"

    def step(self, result: StepResult) -> None:
        """One training step is done."""
        now = time.monotonic()
        phases: Mapping[str, float] = {**result.phases, "log": self._log_seconds}
        metrics = summarize_step(
            result.step,
            groups=result.groups,
            samples=result.samples,
            stats=result.stats[0] if result.stats else None,
            seconds=now - self._last,
            phases=phases,
            drops=result.dropped,
            weights_checksum=result.checksum,
            sync_bytes=result.sync_bytes,
            broadcasts_failed=result.broadcasts_failed,
            log=self._log_since(),
        )
        self._steps_done = result.step
        self._last = now
        self._drops.update(result.dropped)
        self._learner_log.write_step(
            train_step=result.step,
            groups=result.groups,
            samples=result.samples,
            stats=result.stats,
        )
        self._metrics.step(metrics)
        for tracker in self._trackers:
            tracker.step(metrics)
        self._progress.step(metrics)
        self._rules.step(metrics)
        if problem := self._upkeep.problem():
            self.say(problem)
        if result.step % self._config.checkpoint.every == 0:
            self._upkeep.tick(version=result.step)
        self._log_seconds = time.monotonic() - now
        ended = time.time()
        self.span(Span(name="log", started=ended - self._log_seconds, ended=ended, version=result.step - 1, train_step=result.step))

    def _log_since(self) -> WriterHealth:
        """What the log's writers, those of other processes too, have waited for and dropped since the last step."""
        now = log_health(self._log)
        new, self._log_before = since(now, self._log_before), now
        if new.dropped:
            lost = ", ".join(f"{count} of {name}" for name, count in new.dropped.items())
            self.say(f"the log's disk is too slow: optional records were left out ({lost})")
        for rule, count in new.flag_errors.items():
            self.say(f"the flag rule {rule} raised {count} exceptions")
        return new

    def span(self, span: Span) -> None:
        """A phase of the loop is over."""
        self._spans.record(span)

    def rejected(self, rejections: Sequence[Rejection], *, step: int) -> None:
        """Groups that will not be trained on; `step` is the training step under way."""
        pairs = [(rejection.group, str(rejection.reason)) for rejection in rejections]
        self._learner_log.write_step(train_step=step, groups=(), samples=(), stats=(), rejected=pairs)

    def evaluated(self, report: EvalReport) -> None:
        """A held-out evaluation is done."""
        self._reports.append(report)
        for line in eval_metrics(report):
            self._metrics.evaluated(line)
            if raised := self._rules.evaluated(line):
                self._metrics.flagged(raised)
                self.say(f"flag {raised.name}: {raised.reason}")
            for tracker in self._trackers:
                tracker.evaluated(line)
            self._progress.evaluated(line)

    def waiting(self, reason: str) -> None:
        """Why the learner is not stepping."""
        self._progress.waiting(reason)

    def say(self, message: str) -> None:
        """One line for the person who watches."""
        self._progress.say(message)

    def flush(self) -> None:
        """Make the learner's log durable."""
        self._learner_log.flush()

    def summary(self) -> list[str]:
        """Held-out pass rates before and after, a line a task source, and how many rollouts have no reward."""
        counts = [f"{reason} {self._drops[reason]}" for reason in (DropReason.INFRA, DropReason.UNGRADABLE) if self._drops[reason]]
        missing = [f"training rollouts without a reward: {', '.join(counts)}"] if counts else []
        if len(self._reports) < 2:
            return missing
        first, last = self._reports[0], self._reports[-1]
        return [
            f"{name}: held-out pass rate {first.by_env[name].value:.3f} at step {first.step} -> {rate.value:.3f} at step {last.step}"
            + (f", {rate.ungraded_text}" if rate.ungraded else "")
            for name, rate in last.by_env.items()
            if name in first.by_env
        ] + missing


def eval_metrics(report: EvalReport) -> list[EvalMetrics]:
    """One record a task source."""
    return [_eval_metrics(report.step, name, rate) for name, rate in report.by_env.items()]


def _eval_metrics(step: int, source: str, rate: PassRate) -> EvalMetrics:
    low, high = rate.interval
    return EvalMetrics(
        step=step,
        time=time.time(),
        split="heldout",
        source=source,
        passed=rate.passed,
        graded=rate.graded,
        ungraded=rate.ungraded,
        infra=rate.infra,
        ungradable=rate.ungradable,
        low=low,
        high=high,
        pass_at={str(k): value for k, value in rate.mean_pass_at().items()},
    )
