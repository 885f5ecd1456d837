"""Scores that are appended to a log: rows of `scores` by a scorer that was not there when the rollouts ended.

What is there is never rewritten, and the run may go on meanwhile: the appender has parts and a manifest of its own. A kill loses what
was scored in the last seconds, and nothing else.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from rewards.score import Score
from rl.durable import exclusive_lock
from rl.history.recorded import Row
from rl.log.blobs import BlobWriter
from rl.log.query import RunLog
from rl.log.runs import RunPaths
from rl.log.schema import SCORES
from rl.log.storage import PartWriter, Piece
from rl.log.tables import log_columns
from rl.log.text import storable

_SEAL_ROWS, _SEAL_SECONDS = 256, 5.0
_COLUMNS = ("rollout_id", "value", "status")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """Who gave scores."""

    name: str
    hash: str
    """Of the reward's name and source: another code is another scorer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A score in the log."""

    reward: float | None
    status: str


def read_scores(log: RunLog, scorer: Scorer) -> dict[str, Value]:
    """What a scorer has appended so far, by rollout; of several scores the newest. Raises QueryError."""
    sql = f"SELECT {', '.join(_COLUMNS)} FROM scores WHERE NOT live AND scorer = ? AND scorer_hash = ? ORDER BY scored"
    return {row[0]: Value(reward=row[1], status=row[2]) for row in log.query(sql, (scorer.name, scorer.hash)).rows}


class ScoreAppender:
    """Appends scores of one scorer, a few seconds after they are given at the latest. Raises LogWriteError when the disk fails."""

    def __init__(self, root: Path, scorer: Scorer) -> None:
        """Raises ValueError while another one appends to the same run: both would score the same rollouts."""
        self._folder = RunPaths(root=root).log
        lock = exclusive_lock(self._folder / "rescore.lock")
        if lock is None:
            raise ValueError(f"{root} is being rescored already: wait for it to end")
        self._lock = lock
        self._scorer = scorer
        self._blobs = BlobWriter(self._folder)
        self._writer: PartWriter | None = None
        self._waiting: list[tuple[Row, Score, float]] = []
        self._sealed = time.monotonic()

    def add(self, row: Row, score: Score) -> None:
        """Append the score of a rollout."""
        self._waiting.append((row, score, time.time()))
        if len(self._waiting) >= _SEAL_ROWS or time.monotonic() - self._sealed >= _SEAL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make all that was added durable and visible."""
        waiting, self._waiting = self._waiting, []
        self._sealed = time.monotonic()
        if not waiting:
            return
        if self._writer is None:
            self._writer = PartWriter(self._folder, writer="rescore", attempt=0)
        by_version: dict[int, list[dict[str, Any]]] = {}
        with self._blobs.pinned():
            for row, score, scored in waiting:
                by_version.setdefault(row.dispatch_version, []).append(self._values(row, score, scored))
            self._writer.seal([_piece(version, rows) for version, rows in sorted(by_version.items())])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.flush()
        finally:
            if self._writer is not None:
                self._writer.close()
            self._lock.close()

    def _values(self, row: Row, score: Score, scored: float) -> dict[str, Any]:
        parts = score.parts.items()
        return {
            "rollout_id": row.rollout_id,
            "attempt": row.attempt,
            "logged": row.logged,
            "group_id": row.group_id,
            "scorer": self._scorer.name,
            "scorer_hash": self._scorer.hash,
            "live": False,
            "scored": scored,
            "value": score.reward,
            "status": score.status.value,
            "components": [(storable(name), {"value": p.value, "weight": p.weight, "reason": storable(p.reason)}) for name, p in parts],
            "reason": storable(score.reason),
            **log_columns(score.log, keep=self._blobs.keep),
        }


def _piece(version: int, rows: Sequence[dict[str, Any]]) -> Piece:
    return Piece(dataset="scores", dispatch_version=version, table=pa.Table.from_pylist(list(rows), schema=SCORES))
