"""Scores that are appended to a log: rows of `scores` by a scorer that was not there when the rollouts ended.

What is there is never rewritten, and the run may go on meanwhile: the appender has parts and a manifest of its own. A kill loses what
was scored in the last seconds, and nothing else.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from rewards.score import Score
from rl.durable import exclusive_lock
from rl.history.recorded import Played, among
from rl.log.blobs import BlobWriter
from rl.log.query import RunLog
from rl.log.runs import RunPaths
from rl.log.schema import SCORES
from rl.log.storage import PartWriter, Piece
from rl.log.tables import log_columns
from rl.log.text import storable

_SEAL_ROWS, _SEAL_SECONDS = 256, 5.0
Json = dict[str, Any]
_COLUMNS = ("rollout_id", "value", "status")
BY_SCORER = "NOT live AND scorer = ? AND scorer_hash = ?"
"""Condition on `scores`: appended by a scorer."""


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


def read_scores(log: RunLog, scorer: Scorer, *, groups: Mapping[str, int]) -> dict[str, Value]:
    """What a scorer has appended so far for some groups (their dispatch versions by id), by rollout; of several scores the newest.

    Raises QueryError.
    """
    condition, parameters = among("group_id", groups)
    sql = f"SELECT {', '.join(_COLUMNS)} FROM scores WHERE {BY_SCORER} AND {condition} ORDER BY scored"
    rows = log.table(sql, (scorer.name, scorer.hash, *parameters)).rows
    return {row[0]: Value(reward=row[1], status=row[2]) for row in rows}


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
        self._waiting: list[tuple[Json, int, Score]] = []
        self._sealed = time.monotonic()

    def add(self, row: Played, score: Score) -> None:
        """Append the score of a rollout."""
        # Not the row itself, whose outcome may be long.
        values = {
            "rollout_id": row.rollout_id,
            "attempt": row.attempt,
            "logged": row.logged,
            "group_id": row.group_id,
            "scored": time.time(),
        }
        self._waiting.append((values, row.dispatch_version, score))
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
        by_version: dict[int, list[Json]] = {}
        with self._blobs.pinned():
            for values, version, score in waiting:
                by_version.setdefault(version, []).append({**values, **self._values(score)})
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

    def _values(self, score: Score) -> Json:
        parts = score.parts.items()
        return {
            "scorer": self._scorer.name,
            "scorer_hash": self._scorer.hash,
            "live": False,
            "value": score.reward,
            "status": score.status.value,
            "components": [(storable(name), {"value": p.value, "weight": p.weight, "reason": storable(p.reason)}) for name, p in parts],
            "reason": storable(score.reason),
            **log_columns(score.log, keep=self._blobs.keep),
        }


def _piece(version: int, rows: Sequence[Json]) -> Piece:
    return Piece(dataset="scores", dispatch_version=version, table=pa.Table.from_pylist(list(rows), schema=SCORES))
