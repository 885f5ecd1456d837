"""Compaction and retention: many small parts become few large ones, and old tokens make room.

Both work on sealed parts while the run and its readers go on. New parts are written first; one manifest line then makes them visible
and the old ones invisible; only after it are the old files deleted, and only when no reader has the log open. A kill at any point
loses nothing and duplicates nothing: what it leaves behind, the next compaction removes.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rl.durable import exclusive_lock
from rl.log.blob_sweep import NO_ROW, newest_version, sweep_blobs, version_to_free
from rl.log.blobs import blob_sizes
from rl.log.manifest import Part, read_manifests
from rl.log.query import json_line
from rl.log.runs import RunPaths, find_run
from rl.log.schema import ARRAYS, COMPACTED, DATASETS, PARTITION, SCHEMA_VERSION
from rl.log.storage import PartWriter, Piece

_TARGET_BYTES = 128 << 20
"""Of the small parts that become one: its rows are in memory for a moment, about 5 times as large."""
_LARGE_BYTES = 32 << 20
"""A compacted part of this size is left as it is."""
_LEAST_PARTS = 2
_WRITER = "compact"
_ORDER = {
    "rollouts": ("group_index", "sample_index"),
    "turns": ("rollout_id", "message_index"),
    "learner": ("train_step", "rollout_id"),
    "spans": ("started",),
}
"""Rows are sorted by dispatch version and these, so that row groups can be skipped."""


class CompactionRuns(ValueError):
    """Another compaction of the same log is going on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """What is kept of the log's largest columns, and of its blobs."""

    keep_tokens_versions: int = 0
    """Newest dispatch versions that keep their tokens and the learner's arrays; 0 means all."""
    max_bytes: int = 0
    """Tokens, then the learner's arrays, then blobs of the oldest versions are given up until parts and blobs are smaller; 0: no bound."""
    keep_blobs_versions: int = 0
    """Newest dispatch versions whose blobs are kept; 0 means all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What a compaction did."""

    merged: int = 0
    """Parts that were merged."""
    written: int = 0
    """Parts that they became."""
    retired: int = 0
    """Parts that retention gave up."""
    deleted: int = 0
    """Files removed; those of a log that is being read stay until the next time."""


class Compactor:
    """Works on one log. Raises CompactionRuns when another one does already."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = RunPaths(root=run_dir).log
        lock = exclusive_lock(self._folder / "compact.lock")
        if lock is None:
            raise CompactionRuns(f"{self._folder} is being compacted already: wait for it to end")
        self._lock = lock
        self._writer: PartWriter | None = None

    def __enter__(self) -> "Compactor":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        self._lock.close()

    def run(self, retention: Retention, *, before: int | None = None, least_parts: int = _LEAST_PARTS) -> Compacted:
        """Retire what `retention` no longer keeps, merge parts of versions below `before` (None: all), remove what is left over.

        Blobs are looked through when `retention` may give some up, and with `before` None: it costs reading all references.

        Datasets with fewer than `least_parts` small parts are left alone. Raises LogWriteError when the disk fails.
        """
        retired = self._retire(retention)
        merged = written = 0
        for batch in self._batches(before=before, least_parts=least_parts):
            self._merge(batch)
            merged, written = merged + len(batch), written + 1
        through = self._blobs_given_up(retention)
        deleted = self._sweep(blobs=before is None or through is not None, through=NO_ROW if through is None else through)
        return Compacted(merged=merged, written=written, retired=retired, deleted=deleted)

    def _batches(self, *, before: int | None, least_parts: int) -> Iterator[list[Part]]:
        """Parts of one dataset that become one, in the order of their versions."""
        small: dict[str, list[Part]] = {}
        for part in read_manifests(self._folder).sealed:
            large = part.compacted and part.n_bytes >= _LARGE_BYTES
            # Files of other schema versions stay what they are: readers know what they mean.
            if (before is None or part.versions[1] < before) and not large and part.schema_version == SCHEMA_VERSION:
                small.setdefault(part.dataset, []).append(part)
        for parts in small.values():
            if len(parts) < least_parts:
                continue
            batch: list[Part] = []
            for part in sorted(parts, key=lambda part: (part.versions, str(part.path))):
                if batch and sum(one.n_bytes for one in batch) + part.n_bytes > _TARGET_BYTES:
                    if len(batch) > 1:
                        yield batch
                    batch = []
                batch.append(part)
            if len(batch) > 1:
                yield batch

    def _merge(self, parts: Sequence[Part], *, without: Sequence[str] = ()) -> None:
        """Replace parts of one dataset by one, with the columns `without` emptied."""
        dataset = parts[0].dataset
        table = pa.concat_tables([_read(part, without=without) for part in parts])
        order = [(PARTITION, "ascending"), *((name, "ascending") for name in _ORDER.get(dataset, ("rollout_id",)))]
        versions = (min(part.versions[0] for part in parts), max(part.versions[1] for part in parts))
        lean = bool(without) or all(part.lean for part in parts)
        piece = Piece(dataset=dataset, dispatch_version=-1, table=table.sort_by(order), versions=versions, lean=lean)
        self._manifest().seal([piece], supersedes=() if without else parts, retired=parts if without else ())

    def _retire(self, retention: Retention) -> int:
        """Give up tokens and learner arrays of versions that are no longer kept."""
        sealed = read_manifests(self._folder).sealed
        newest = newest_version(sealed)
        heavy = _heavy(sealed)
        given_up: list[Part] = []
        if retention.keep_tokens_versions:
            cutoff = newest - retention.keep_tokens_versions
            given_up = [part for part in heavy if part.versions[1] <= cutoff]
        if retention.max_bytes:
            excess = self._excess(sealed, retention) - sum(part.n_bytes for part in given_up)
            for part in (*_of(heavy, "tokens"), *_of(heavy, "learner")):
                if excess > 0 and part not in given_up:
                    given_up.append(part)
                    excess -= part.n_bytes
        tokens = _of(given_up, "tokens")
        if tokens:
            self._manifest().seal((), retired=tokens)
        for part in given_up:
            if part.dataset in ARRAYS:
                self._merge([part], without=ARRAYS[part.dataset])
        return len(given_up)

    def _excess(self, sealed: Sequence[Part], retention: Retention) -> int:
        """Bytes of parts and blobs beyond what `retention` allows."""
        return sum(part.n_bytes for part in sealed) + sum(blob_sizes(self._folder).values()) - retention.max_bytes

    def _blobs_given_up(self, retention: Retention) -> int | None:
        """The version through which blobs are no longer kept; None when they all are."""
        sealed = read_manifests(self._folder).sealed
        found = []
        if retention.keep_blobs_versions:
            found.append(newest_version(sealed) - retention.keep_blobs_versions)
        if retention.max_bytes and not _heavy(sealed) and (excess := self._excess(sealed, retention)) > 0:
            found.append(version_to_free(self._folder, n_bytes=excess))
        return max(found, default=None)

    def _sweep(self, *, blobs: bool, through: int) -> int:
        """Delete files that nothing refers to any more, unless a reader has the log open."""
        parts = read_manifests(self._folder)
        files = [part.path for part in (*parts.superseded, *parts.retired)]
        listed = {part.path for part in (*parts.sealed, *parts.superseded, *parts.retired)}
        for dataset in DATASETS:  # of a compaction that was killed; no other one is going on now
            files += [path for path in (self._folder / dataset / COMPACTED).glob(f"part-{_WRITER}-*") if path not in listed]
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
        else:
            removed = sum(_removed(path) for path in files)
            return removed + (sweep_blobs(self._folder, through=through) if blobs else 0)
        finally:
            os.close(fd)

    def _manifest(self) -> PartWriter:
        if self._writer is None:
            self._writer = PartWriter(self._folder, writer=_WRITER, attempt=0)
        return self._writer


def compact_command(run: str, *, as_json: bool) -> int:
    """`rl compact`: merge the parts of a run's log. Raises ValueError for an unknown run and while another compaction runs."""
    root = find_run(run)
    with Compactor(root) as compactor:
        done = compactor.run(Retention())
    if as_json:
        print(json_line(asdict(done)))
    else:
        print(f"{root}: {done.merged} parts became {done.written}; {done.deleted} old files removed")
    return 0


def _read(part: Part, *, without: Sequence[str]) -> pa.Table:
    """The rows of a part, with its dispatch version as a column."""
    schema = DATASETS[part.dataset].append(pa.field(PARTITION, pa.int64()))
    with part.path.open("rb") as stream:  # by path, the folder's name would become a column
        found = pq.read_table(stream)
    if not part.compacted:
        found = found.append_column(PARTITION, pa.array([part.versions[0]] * len(found), pa.int64()))
    columns = [pa.nulls(len(found), field.type) if field.name in without else found.column(field.name).cast(field.type) for field in schema]
    return pa.table(columns, schema=schema)


def _heavy(parts: Sequence[Part]) -> list[Part]:
    """Those that retention can make smaller, the oldest first."""
    found = [part for part in parts if part.dataset in ("tokens", *ARRAYS) and part.schema_version == SCHEMA_VERSION and not part.lean]
    return sorted(found, key=lambda part: part.versions[1])


def _of(parts: Sequence[Part], dataset: str) -> list[Part]:
    return [part for part in parts if part.dataset == dataset]


def _removed(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.unlink()
        return True
    return False
