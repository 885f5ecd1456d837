"""Writers of the rollout log: rollouts where they end, learner rows in the driver.

`rollouts`, `turns`, `scores` and `learner` are required: a disk that cannot keep up slows the caller down rather than losing them.
`tokens` and blobs are optional: they are dropped and counted first. After `flush()` everything handed over before is on disk and
visible.
"""

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rl.log.blobs import BlobWriter
from rl.log.learner_table import LearnerRow, learner_pieces, learner_rows
from rl.log.manifest import WriterHealth
from rl.log.queue import SealQueue
from rl.log.runs import RunPaths
from rl.log.storage import PartWriter
from rl.log.tables import LoggedGroup, Provenance, group_pieces
from rl.records import RolloutGroup, StepStats, TrainSample

_CHARS_A_TOKEN = 4
"""What text costs of the queue's bound."""


class Flagger(Protocol):
    """Looks at finished groups on their way to the disk (`rl.log.flags`). Raises nothing."""

    def flags(self, group: RolloutGroup) -> Mapping[str, Mapping[str, str]]:
        """By rollout id: the flags and why they were raised."""
        ...

    @property
    def errors(self) -> Mapping[str, int]:
        """Exceptions of rules so far, by rule."""
        ...


class RolloutWriter:
    """Writes `rollouts`, `turns`, `scores`, `tokens` and blobs of one rollout worker. Raises LogWriteError when the disk fails."""

    def __init__(
        self,
        run_dir: Path,
        *,
        run_id: str,
        attempt: int,
        writer: str,
        tokens: bool,
        provenance: Provenance = Provenance(),  # noqa: B008  # frozen
        flagger: Flagger | None = None,
    ) -> None:
        """`writer` names the worker in file names; without `tokens` that dataset is left out."""
        self._run_id = run_id
        self._attempt = attempt
        self._tokens = tokens
        self._provenance = provenance
        self._flagger = flagger
        folder = RunPaths(root=run_dir).log
        self._blobs = BlobWriter(folder)
        self._parts = PartWriter(folder, writer=writer, attempt=attempt)
        self._sealed: deque[str] = deque()
        self._queue: SealQueue[LoggedGroup] = SealQueue(seal=self._seal, close=self._close)

    @property
    def health(self) -> WriterHealth:
        """What the writer had to wait for and to drop so far."""
        return replace(self._queue.health, flag_errors=dict(self._flagger.errors) if self._flagger else {})

    def write_group(self, group: RolloutGroup) -> None:
        """Hand over a finished group: its rows become visible together."""
        rollouts = group.rollouts
        chars = sum(len(r.score.log) + sum(len(m.content) for m in r.messages) for r in rollouts)
        cost = len(rollouts) + chars // _CHARS_A_TOKEN
        n_tokens = sum(len(t.context_ids_P) + len(t.completion.token_ids_T) for r in rollouts for t in r.turns)
        tokens = self._tokens and self._queue.spare(cost + n_tokens, records={"tokens": len(rollouts)})
        item = LoggedGroup(
            group=group,
            run_id=self._run_id,
            attempt=self._attempt,
            logged=time.time(),
            provenance=self._provenance,
            tokens=tokens,
        )
        self._queue.put(item, cost=cost + (n_tokens if tokens else 0))

    def _seal(self, items: Sequence[LoggedGroup]) -> None:
        if self._flagger is not None:
            items = [replace(item, flags=self._flagger.flags(item.group)) for item in items]
        with self._blobs.pinned():
            pieces = group_pieces(items, keep=self._keep)
            self._parts.seal(pieces, groups=[item.group.group_id for item in items], health=self.health)
        self._sealed.extend(item.group.group_id for item in items)

    def take_sealed(self) -> tuple[str, ...]:
        """Ids of the groups that have become durable since the last call."""
        return tuple(self._sealed.popleft() for _ in range(len(self._sealed)))

    def _keep(self, text: str) -> str | None:
        """Keep a blob, unless the disk is slow or refuses."""
        if not self._queue.pressed:
            with contextlib.suppress(OSError):
                return self._blobs.keep(text)
        self._queue.drop("blobs")
        return None

    def _close(self) -> None:
        self._parts.seal((), health=self.health)
        self._parts.close()

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
        self._queue: SealQueue[list[LearnerRow]] = SealQueue(seal=self._seal, close=self._close)

    @property
    def health(self) -> WriterHealth:
        """What the writer had to wait for so far."""
        return self._queue.health

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
        self._parts.seal(learner_pieces([row for step in steps for row in step]), health=self.health)

    def _close(self) -> None:
        self._parts.seal((), health=self.health)
        self._parts.close()

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
