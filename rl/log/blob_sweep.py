"""Removes blobs that no row refers to: what a killed writer left behind, and what retention gives up.

What may go is found while writers go on. Then they are held up for a moment, the rows that came in between are read, and what is still
not referred to is deleted. A kill at any moment leaves blobs that the next sweep removes.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rl.log.blobs import blob_files, digest_of, unpinned
from rl.log.manifest import Part, Parts, read_manifests
from rl.log.schema import PARTITION

_COLUMNS = {"scores": "log_ref", "turns": "stdout_ref"}
"""Where references stand."""
_WAIT_SECONDS = 10.0
"""For writers to come to the end of what they are writing."""


def sweep_blobs(folder: Path, *, keep_versions: int) -> int:
    """Delete blobs without a row, and with `keep_versions` above 0 those that only rows of older versions refer to; how many files.

    The caller holds the log's compaction lock, and no reader has the log open. Nothing is deleted while a part that may refer to blobs
    is missing or damaged, or while a writer does not come to its end.
    """
    files = list(blob_files(folder))
    if not files:
        return 0
    unused = {path.stem: path for path in files if path.suffix == ".zst"}
    before = read_manifests(folder)
    cutoff = newest_version(before.sealed) - keep_versions if keep_versions else None
    if not _forget_used(unused, before, cutoff=cutoff):
        return 0
    with unpinned(folder, seconds=_WAIT_SECONDS) as alone:
        if not alone:
            return 0
        seen = {part.path for part in before.sealed}
        since = read_manifests(folder)
        if not _forget_used(unused, since, cutoff=cutoff, without=seen):
            return 0
        # Nobody writes now, so a temporary file is what somebody's end has left.
        leftovers = [path for path in blob_files(folder) if path.suffix == ".tmp"]
        deleted = 0
        for path in {*unused.values(), *leftovers}:
            path.unlink(missing_ok=True)
            deleted += 1
    return deleted


def newest_version(parts: Collection[Part]) -> int:
    """The newest dispatch version that has rollouts; 0 without any."""
    return max((part.versions[1] for part in parts if part.dataset == "rollouts"), default=0)


def _forget_used(unused: dict[str, Path], parts: Parts, *, cutoff: int | None, without: Collection[Path] = ()) -> bool:
    """Take out what rows of versions above `cutoff` refer to; False when not all rows can be read."""
    if any(f"/{dataset}/" in problem for problem in parts.problems for dataset in _COLUMNS):
        return False
    for part in parts.sealed:
        if part.dataset not in _COLUMNS or part.path in without or (cutoff is not None and part.versions[1] <= cutoff):
            continue
        try:
            for digest in _digests(part, cutoff=cutoff):
                unused.pop(digest, None)
        except (OSError, pa.ArrowException):
            return False
    return True


def _digests(part: Part, *, cutoff: int | None) -> Iterator[str]:
    name = _COLUMNS[part.dataset]
    with part.path.open("rb") as stream:
        file = pq.ParquetFile(stream)
        present = set(file.schema_arrow.names)
        if name not in present:
            return
        mixed = cutoff is not None and part.compacted
        found = file.read(columns=[name, *([PARTITION] if mixed else [])], use_threads=False)
    column = found.column(name)
    if mixed:
        column = column.filter(pa.array([version > cutoff for version in found.column(PARTITION).to_pylist()]))
    for reference in column.unique().to_pylist():
        if reference is not None and (digest := digest_of(reference)) is not None:
            yield digest
