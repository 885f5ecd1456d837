"""The timeline: who did what, from when to when. Cheap and optional: a slow or failing disk costs spans, never time."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from rl.log.manifest import WriterHealth
from rl.log.queue import SealQueue
from rl.log.runs import RunPaths
from rl.log.schema import SPANS
from rl.log.storage import LogWriteError, PartWriter, Piece
from rl.records import Span

_SEAL_SECONDS = 5.0
_MOST_WAITING = 100_000
"""Spans; about 30 MB."""


class SpanWriter:
    """Writes `spans` of one process. Never waits, and raises nothing once it is made."""

    def __init__(self, run_dir: Path, *, attempt: int, actor: str) -> None:
        """`actor` names the process on the timeline. Raises LogWriteError when the folder cannot be written."""
        self._attempt = attempt
        self._actor = actor
        self._parts = PartWriter(RunPaths(root=run_dir).log, writer=f"spans-{actor}", attempt=attempt)
        self._queue: SealQueue[Span] = SealQueue(seal=self._seal, close=self._close, seconds=_SEAL_SECONDS, limit=_MOST_WAITING)

    @property
    def health(self) -> WriterHealth:
        """What was dropped so far."""
        return self._queue.health

    def record(self, span: Span) -> None:
        """Hand over a span that has ended."""
        self._queue.offer(span, cost=1, dataset="spans")

    def _seal(self, spans: Sequence[Span]) -> None:
        by_version: dict[int, list[Span]] = {}
        for span in spans:
            by_version.setdefault(span.version, []).append(span)
        pieces = [Piece(dataset="spans", dispatch_version=version, table=self._table(own)) for version, own in sorted(by_version.items())]
        self._parts.seal(pieces, health=self.health)

    def _table(self, spans: Sequence[Span]) -> pa.Table:
        rows = [{**asdict(span), "attempt": self._attempt, "actor": self._actor} for span in spans]
        return pa.Table.from_pylist(rows, schema=SPANS)

    def _close(self) -> None:
        with contextlib.suppress(LogWriteError):
            self._parts.seal((), health=self.health)
        self._parts.close()

    def close(self) -> None:
        """Write what waits and end the thread."""
        with contextlib.suppress(LogWriteError):
            self._queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
