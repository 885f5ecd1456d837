"""The record of a prepared image, as a file beside the tasks and as a label of the image itself."""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from environments.swe.records import RepoImage

LABEL = "codeworld-rl.swe.record"
"""Record of an image, without its id, as JSON that is compressed and in base 64. It is no file of the image: agents do not see it."""
RUNS_LABEL = "codeworld-rl.swe.runs"
"""From how many runs of the tests the record is."""


def write_image(record: RepoImage, path: Path) -> None:
    """As JSON; folders are made. An existing file is replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(asdict(record), indent=1) + "\n")
    partial.replace(path)


def read_image(path: Path) -> RepoImage:
    """Raises ValueError for a file that is no such record; OSError when there is none."""
    try:
        return _record(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of an image ({error}); make it with rl swe image") from error


def record_label(record: RepoImage) -> str:
    """For LABEL."""
    values = {name: value for name, value in asdict(record).items() if name != "image_id"}
    return base64.b64encode(zlib.compress(json.dumps(values).encode(), 9)).decode()


def from_label(text: str, *, image_id: str) -> RepoImage:
    """The record of an image's label. Raises ValueError for a text that is none."""
    try:
        return _record({**json.loads(zlib.decompress(base64.b64decode(text))), "image_id": image_id})
    except (ValueError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"label {LABEL} of image {image_id} is damaged: {error}") from error


def _record(values: Mapping[str, Any]) -> RepoImage:
    names = {spec.name for spec in fields(RepoImage)}
    if missing := sorted(names - values.keys()):
        raise ValueError(f"it has no {missing[0]}")
    if unknown := sorted(values.keys() - names):
        raise ValueError(f"it has an unknown {unknown[0]}")
    return RepoImage(
        **{name: str(values[name]) for name in ("image", "image_id", "name", "source", "base_commit", "work_dir")},
        tests={str(test): float(seconds) for test, seconds in values["tests"].items()},
        flaky=tuple(map(str, values["flaky"])),
        failing=tuple(map(str, values["failing"])),
        covered={str(function): tuple(map(str, tests)) for function, tests in values["covered"].items()},
        suite_seconds=float(values["suite_seconds"]),
    )
