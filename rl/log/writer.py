"""Writers of the rollout log: rollouts where they end, learner rows in the driver.

Callers hand over immutable records and go on; a thread turns what has gathered into Parquet, at most once a second,
because many tiny files are slow to read. A bound on what waits makes a disk that cannot keep up slow the caller down
instead of filling the memory. After `flush()` everything handed over before is on disk and visible.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from rl.log.runs import RunPaths
from rl.log.storage import LogWriteError, PartWriter
from rl.log.tables import LearnerRow, LoggedGroup, group_pieces, learner_pieces, learner_rows
from rl.records import RolloutGroup, StepStats, TrainSample

_SEAL_SECONDS = 1.0
"""Least time between two seals, unless someone waits for a flush."""
_MAX_WAITING_TOKENS = 4_000_000
"""About 50 MB of arrays: callers wait while more than this is not yet on disk."""

Item = TypeVar("Item")


class _Queue(Generic[Item]):
    """A bounded queue whose thread seals what has gathered. Its first failure is everyone's."""

    def __init__(self, *, seal: Callable[[Sequence[Item]], None], close: Callable[[], None]) -> None:
        self._seal = seal
        self._close = close
        self._changed = threading.Condition()
        self._waiting: list[tuple[Item, int]] = []
        self._cost = 0
        self._n_put = 0
        self._n_sealed = 0
        self._flush_to = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rollout-log", daemon=True)
        self._thread.start()

    def put(self, item: Item, *, cost: int) -> None:
        """Hand over; waits only while too much is not yet on disk."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self._cost or self._cost + cost <= _MAX_WAITING_TOKENS)
            self._check()
            if self._closing:
                raise LogWriteError("the log writer is closed; nothing more can be written through it")
            self._waiting.append((item, cost))
            self._cost += cost
            self._n_put += 1
            self._changed.notify_all()

    def flush(self) -> None:
        """Return once everything handed over so far is durable."""
        with self._changed:
            target = self._flush_to = self._n_put
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._failure or self._n_sealed >= target)
            self._check()

    def close(self) -> None:
        """Flush and end the thread. A second call does nothing."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._close()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise LogWriteError(str(self._failure)) from self._failure

    def _run(self) -> None:
        last_seal = -_SEAL_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                pause = last_seal + _SEAL_SECONDS - time.monotonic()
                self._changed.wait_for(self._urgent, timeout=max(0.0, pause))
                batch, self._waiting = self._waiting, []
            try:
                self._seal([item for item, _ in batch])
            except BaseException as error:  # whatever it is, the callers must hear of it
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            last_seal = time.monotonic()
            with self._changed:
                self._n_sealed += len(batch)
                self._cost -= sum(cost for _, cost in batch)
                self._changed.notify_all()

    def _urgent(self) -> bool:
        return self._closing or self._flush_to > self._n_sealed or self._cost > _MAX_WAITING_TOKENS // 2


class RolloutWriter:
    """Writes `rollouts`, `turns` and `tokens` of one rollout worker. Raises LogWriteError when the disk fails."""

    def __init__(self, run_dir: Path, *, run_id: str, attempt: int, writer: str, tokens: bool) -> None:
        """`writer` names the worker in file names; without `tokens` that dataset is left out."""
        self._run_id = run_id
        self._attempt = attempt
        self._tokens = tokens
        self._parts = PartWriter(RunPaths(root=run_dir).log, writer=writer, attempt=attempt)
        self._queue: _Queue[LoggedGroup] = _Queue(seal=self._seal, close=self._parts.close)

    def write_group(self, group: RolloutGroup) -> None:
        """Hand over a finished group: its rows become visible together."""
        item = LoggedGroup(group=group, run_id=self._run_id, attempt=self._attempt, logged=time.time())
        cost = sum(len(t.context_ids_P) + len(t.completion.token_ids_T) for r in group.rollouts for t in r.turns)
        self._queue.put(item, cost=cost + 1)

    def _seal(self, items: Sequence[LoggedGroup]) -> None:
        self._parts.seal(group_pieces(items, tokens=self._tokens), groups=[item.group.group_id for item in items])

    def flush(self) -> None:
        """Make every group handed over durable and visible; call it before a checkpoint that relies on them."""
        self._queue.flush()

    def close(self) -> None:
        """Flush and end the writer's thread."""
        self._queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class LearnerWriter:
    """Writes the `learner` dataset from the driver. Raises LogWriteError when the disk fails."""

    def __init__(self, run_dir: Path, *, attempt: int) -> None:
        self._attempt = attempt
        self._parts = PartWriter(RunPaths(root=run_dir).log, writer="learner", attempt=attempt)
        self._queue: _Queue[list[LearnerRow]] = _Queue(seal=self._seal, close=self._parts.close)

    def write_step(
        self,
        *,
        train_step: int,
        groups: Sequence[RolloutGroup],
        samples: Sequence[TrainSample],
        stats: Sequence[StepStats],
        rejected: Sequence[tuple[RolloutGroup, str]] = (),
    ) -> None:
        """Hand over one training step (1-based).

        `groups` is the batch, `samples` what of it was trained on, `stats` every rank's statistics, `rejected` the groups
        turned away since the last step with the reason. Rollouts of the batch that carry no gradient get a row that
        says why: `infra`, `ungradable`, `zero_variance`, `no_tokens`, or `left_out` when no rule explains it.
        """
        rows = learner_rows(
            attempt=self._attempt,
            logged=time.time(),
            train_step=train_step,
            groups=groups,
            samples=samples,
            stats=stats,
            rejected=rejected,
        )
        if rows:
            self._queue.put(rows, cost=len(rows) + sum(len(sample.token_ids_T) for sample in samples))

    def _seal(self, steps: Sequence[list[LearnerRow]]) -> None:
        self._parts.seal(learner_pieces([row for step in steps for row in step]))

    def flush(self) -> None:
        """Make every step handed over durable and visible."""
        self._queue.flush()

    def close(self) -> None:
        """Flush and end the writer's thread."""
        self._queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
