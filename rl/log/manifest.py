"""Manifests: what a log holds, line by line.

Each writer appends to a manifest of its own. A line makes all its parts visible at once, and all that it supersedes or retires
invisible: a compaction replaces many parts by few in one line. A torn last line counts as not written.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.log.schema import COMPACTED, DATASETS, PARTITION, SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One sealed part, as its manifest lists it."""

    dataset: str
    path: Path
    n_bytes: int
    n_rows: int
    schema_version: int = SCHEMA_VERSION
    versions: tuple[int, int] = (-1, -1)
    """First and last dispatch version in it."""
    lean: bool = False
    """Retention has emptied its arrays."""

    @property
    def compacted(self) -> bool:
        """Whether it holds several partitions, with `dispatch_version` as a column."""
        return self.path.parent.name == COMPACTED


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterHealth:
    """Counts of one writer since it started."""

    waits: int = 0
    """Calls that had to wait for the disk."""
    wait_seconds: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Optional records that were left out, by dataset."""
    flag_errors: Mapping[str, int] = field(default_factory=dict)
    """Exceptions of flag rules, by rule."""

    def __add__(self, other: "WriterHealth") -> "WriterHealth":
        return WriterHealth(
            waits=self.waits + other.waits,
            wait_seconds=self.wait_seconds + other.wait_seconds,
            dropped=_added(self.dropped, other.dropped),
            flag_errors=_added(self.flag_errors, other.flag_errors),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of a manifest."""

    parts: tuple[Part, ...] = ()
    groups: tuple[str, ...] = ()
    """Ids of the rollout groups in them."""
    supersedes: tuple[str, ...] = ()
    """Paths of parts whose rows are all in `parts` now, relative to the log."""
    retired: tuple[str, ...] = ()
    """Paths of parts that retention gave up; what is kept of their rows is in `parts`."""
    health: WriterHealth | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a reader may open."""

    sealed: tuple[Part, ...]
    problems: tuple[str, ...]
    """One sentence for each listed part that is missing or has another size than the manifest says."""
    repeated: tuple[str, ...]
    """Groups that were written more than once: by two attempts, or by a worker that died before it delivered."""
    retired: tuple[Part, ...]
    """Parts that retention gave up."""
    superseded: tuple[Part, ...]
    """Parts whose rows lie in compacted ones now."""
    health: Mapping[str, WriterHealth]
    """By writer."""


def encode(entry: Entry, folder: Path) -> bytes:
    """The line of an entry."""
    record: dict[str, Any] = {
        "parts": [
            {
                "dataset": part.dataset,
                "path": str(part.path.relative_to(folder)),
                "bytes": part.n_bytes,
                "rows": part.n_rows,
                "schema": part.schema_version,
                "versions": list(part.versions),
                **({"lean": True} if part.lean else {}),
            }
            for part in entry.parts
        ],
        "groups": list(entry.groups),
    }
    if entry.supersedes:
        record["supersedes"] = list(entry.supersedes)
    if entry.retired:
        record["retired"] = list(entry.retired)
    if entry.health is not None:
        health = entry.health
        record["health"] = {
            "waits": health.waits,
            "wait_seconds": round(health.wait_seconds, 3),
            "dropped": dict(health.dropped),
            "flag_errors": dict(health.flag_errors),
        }
    return json.dumps(record).encode() + b"\n"


def decode(line: bytes, folder: Path) -> Entry | None:
    """The entry of a line; None for one that is torn or points out of the folder."""
    try:
        record = json.loads(line)
        entry = Entry(
            parts=tuple(_part(values, folder) for values in record["parts"]),
            groups=tuple(str(group) for group in record["groups"]),
            supersedes=tuple(str(path) for path in record.get("supersedes", ())),
            retired=tuple(str(path) for path in record.get("retired", ())),
            health=_health(record["health"]) if "health" in record else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # torn by a kill, or being written right now
    inside = all(part.dataset in DATASETS and ".." not in part.path.parts and part.path.is_relative_to(folder) for part in entry.parts)
    return entry if inside else None


def read_manifests(folder: Path) -> Parts:
    """All sealed parts of a run's `log` folder, in a stable order."""
    listed: dict[Path, Part] = {}
    groups: Counter[str] = Counter()
    superseded: set[Path] = set()
    retired: set[Path] = set()
    health: dict[str, WriterHealth] = {}
    for manifest in sorted(folder.glob("manifest-*.jsonl")):
        for line in manifest.read_bytes().split(b"\n"):
            entry = decode(line, folder)
            if entry is None:
                continue
            listed.update((part.path, part) for part in entry.parts)
            groups.update(entry.groups)
            superseded.update(folder / path for path in entry.supersedes)
            retired.update(folder / path for path in entry.retired)
            if entry.health is not None:
                health[manifest.stem.removeprefix("manifest-")] = entry.health
    sealed: list[Part] = []
    problems: list[str] = []
    for path, part in listed.items():
        if path in superseded or path in retired:
            continue
        size = _size(path)
        if size == part.n_bytes:
            sealed.append(part)
        else:
            found = "is missing" if size is None else f"has {size} bytes"
            problems.append(f"{path} {found}; its manifest says {part.n_bytes} bytes")
    return Parts(
        sealed=tuple(sealed),
        problems=tuple(problems),
        repeated=tuple(group for group, count in groups.items() if count > 1),
        retired=tuple(part for path, part in listed.items() if path in retired),
        superseded=tuple(part for path, part in listed.items() if path in superseded),
        health=health,
    )


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _part(values: Mapping[str, Any], folder: Path) -> Part:
    path = folder / str(values["path"])
    key, _, version = path.parent.name.partition("=")
    first, last = values.get("versions") or ((int(version),) * 2 if key == PARTITION else (-1, -1))
    return Part(
        dataset=str(values["dataset"]),
        path=path,
        n_bytes=int(values["bytes"]),
        n_rows=int(values["rows"]),
        schema_version=int(values.get("schema", 1)),
        versions=(int(first), int(last)),
        lean=bool(values.get("lean", False)),
    )


def _health(values: Mapping[str, Any]) -> WriterHealth:
    return WriterHealth(
        waits=int(values["waits"]),
        wait_seconds=float(values["wait_seconds"]),
        dropped={str(name): int(count) for name, count in values["dropped"].items()},
        flag_errors={str(name): int(count) for name, count in values["flag_errors"].items()},
    )


def total_health(all_of: Sequence[WriterHealth]) -> WriterHealth:
    """The sum over writers."""
    return sum(all_of, WriterHealth())


def _added(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in (*first, *(name for name in second if name not in first))}
