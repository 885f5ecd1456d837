"""Removes blobs that no row refers to: what a killed writer left behind, and what retention gives up.

What may go is found while writers go on. Then they are held up for a moment, the rows that came in between are read, and what is still
not referred to is deleted. A kill at any moment leaves blobs that the next sweep removes.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rl.log.blobs import blob_files, blob_sizes, digest_of, unpinned
from rl.log.manifest import Part, Parts, read_manifests
from rl.log.schema import PARTITION

_COLUMNS = {"scores": "log_ref", "turns": "stdout_ref"}
"""Where references stand."""
_WAIT_SECONDS = 10.0
"""For writers to come to the end of what they are writing."""
NO_ROW = -1
"""The version up to which only blobs without a row go."""


def sweep_blobs(folder: Path, *, through: int = NO_ROW) -> int:
    """Delete blobs without a row, and those that only rows of versions up to `through` refer to; how many files.

    The caller holds the log's compaction lock, and no reader has the log open. Nothing is deleted while a part that may refer to blobs
    is missing or damaged, or while a writer does not come to its end.
    """
    files = list(blob_files(folder))
    if not files:
        return 0
    before = read_manifests(folder)
    used = _used(before, above=through)
    if used is None:
        return 0
    unused = {path.stem: path for path in files if path.suffix == ".zst" and path.stem not in used}
    with unpinned(folder, seconds=_WAIT_SECONDS) as alone:
        if not alone:
            return 0
        since = _used(read_manifests(folder), above=through, without={part.path for part in before.sealed})
        if since is None:
            return 0
        # Nobody writes now, so a temporary file is what somebody's end has left.
        leftovers = [path for path in blob_files(folder) if path.suffix == ".tmp"]
        deleted = 0
        for path in {*(path for digest, path in unused.items() if digest not in since), *leftovers}:
            path.unlink(missing_ok=True)
            deleted += 1
    return deleted


def version_to_free(folder: Path, *, n_bytes: int) -> int:
    """The first version such that a sweep `through` it frees at least so many bytes; the newest one when all blobs are fewer.

    `NO_ROW` where blobs without a row are enough, and where not all rows can be read.
    """
    used = _used(read_manifests(folder), above=NO_ROW)
    if used is None:
        return NO_ROW
    by_version: Counter[int] = Counter()
    for digest, size in blob_sizes(folder).items():
        by_version[used.get(digest, NO_ROW)] += size
    freed, version = 0, NO_ROW
    for version in sorted({NO_ROW, *by_version}):
        freed += by_version[version]
        if freed >= n_bytes:
            break
    return version


def newest_version(parts: Collection[Part]) -> int:
    """The newest dispatch version that has rollouts; 0 without any."""
    return max((part.versions[1] for part in parts if part.dataset == "rollouts"), default=0)


def _used(parts: Parts, *, above: int, without: Collection[Path] = ()) -> dict[str, int] | None:
    """The blobs that rows of versions above `above` refer to, with the newest of these versions; None when not all rows can be read."""
    if any(f"/{dataset}/" in problem for problem in parts.problems for dataset in _COLUMNS):
        return None
    used: dict[str, int] = {}
    for part in parts.sealed:
        if part.dataset not in _COLUMNS or part.path in without or part.versions[1] <= above:
            continue
        try:
            for digest, version in _references(part):
                if version > above:
                    used[digest] = max(version, used.get(digest, version))
        except (OSError, pa.ArrowException):
            return None
    return used


def _references(part: Part) -> Iterator[tuple[str, int]]:
    """Each blob that a part refers to, with the newest version of its rows."""
    name = _COLUMNS[part.dataset]
    with part.path.open("rb") as stream:
        file = pq.ParquetFile(stream)
        if name not in file.schema_arrow.names:
            return
        found = file.read(columns=[name, *([PARTITION] if part.compacted else [])], use_threads=False)
    if not part.compacted:
        found = found.append_column(PARTITION, pa.array([part.versions[1]] * len(found), pa.int64()))
    newest = found.group_by(name, use_threads=False).aggregate([(PARTITION, "max")])
    for reference, version in zip(newest.column(name).to_pylist(), newest.column(f"{PARTITION}_max").to_pylist(), strict=True):
        if reference is not None and (digest := digest_of(reference)) is not None:
            yield digest, version
