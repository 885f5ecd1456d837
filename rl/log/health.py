"""What the writers of a log had to wait for and to drop, read from the ends of their manifests."""

import os
from pathlib import Path

from rl.log.manifest import WriterHealth, decode, total_health

_TAIL_BYTES = 1 << 17
"""Every line carries the counts; the last whole one is among these."""


def log_health(folder: Path) -> WriterHealth:
    """The sum over all writers of a run's `log` folder; cheap enough for every training step."""
    return total_health([health for manifest in sorted(folder.glob("manifest-*.jsonl")) if (health := _last(manifest, folder))])


def since(now: WriterHealth, before: WriterHealth) -> WriterHealth:
    """What was added between two sums."""
    dropped = {name: count - before.dropped.get(name, 0) for name, count in now.dropped.items()}
    errors = {name: count - before.flag_errors.get(name, 0) for name, count in now.flag_errors.items()}
    return WriterHealth(
        waits=now.waits - before.waits,
        wait_seconds=now.wait_seconds - before.wait_seconds,
        dropped={name: count for name, count in dropped.items() if count},
        flag_errors={name: count for name, count in errors.items() if count},
    )


def _last(manifest: Path, folder: Path) -> WriterHealth | None:
    with manifest.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _TAIL_BYTES))
        lines = stream.read().split(b"\n")
    for line in reversed(lines):
        entry = decode(line, folder)
        if entry is not None and entry.health is not None:
            return entry.health
    return None
