"""Hugging Face data sets: by name from the hub, from a folder, or from a single data file."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import TaskConfig
from environments.lookup import unknown
from environments.records import Problem
from environments.sources.code_rows import CODE_ENVS
from environments.sources.options import read_options
from environments.sources.rows import RowMapper

if TYPE_CHECKING:
    from datasets import Dataset

FILE_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """`options` of an hf source."""

    name: str = ""
    """Configuration (subset) of the data set, for example `main` of gsm8k."""
    revision: str = ""
    """Branch, tag or commit on the hub."""


class HfSource:
    """The rows of one split, memory-mapped: checked once when loaded, made into problems when asked for."""

    def __init__(self, name: str, *, config: TaskConfig) -> None:
        """Raises ValueError when the data set cannot be found or is empty, and for the first row that cannot be used."""
        assert config.path, "TaskConfig refuses kind=hf without a path"
        hub_names = frozenset(spec.name for spec in fields(HubOptions))
        hub_options = {key: value for key, value in config.options.items() if key in hub_names or config.env not in CODE_ENVS}
        options = read_options(HubOptions, hub_options, where=f"tasks.{name}.options")
        self._label = f"{config.path}[{config.split}]"
        self._mapper = RowMapper.of(name, config=config, own_options=hub_names)
        self._rows = _load(name, config=config, options=options)
        self._size = min(len(self._rows), config.limit or len(self._rows))
        if self._size == 0:
            raise ValueError(f"tasks.{name}.path: {self._label} has no rows")
        self._check_rows(config.id_field)

    @property
    def size(self) -> int:
        """Number of rows of the split, at most the configured limit."""
        return self._size

    def problem(self, index: int) -> Problem:
        """The problem of row `index`. Raises ValueError for a row with nulls or values that are not JSON."""
        where = f"{self._label} row {index}"
        problem = self._mapper.problem(self._rows[index], where=where, default_id=f"{index:08d}")
        try:
            json.dumps(problem.reference, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}; answers and tests must be JSON values") from None
        return problem

    def _check_rows(self, id_field: str) -> None:
        rows_by_id: dict[str, int] = {}
        for index in range(self._size):
            task_id = self.problem(index).task.id
            first = rows_by_id.setdefault(task_id, index)
            if first != index:
                raise ValueError(f"{self._label} row {index}: field {id_field!r}: id {task_id!r} is already used in row {first}")


def _load(name: str, *, config: TaskConfig, options: HubOptions) -> "Dataset":
    import datasets

    assert config.path is not None, "checked by the caller"
    local = Path(config.path).expanduser()
    if not local.exists() and (config.path[0] in "./~" or local.suffix in FILE_FORMATS):
        raise ValueError(f"tasks.{name}.path: no file or folder {config.path}")
    datasets.utils.logging.disable_progress_bar()
    try:
        if (local / "dataset_info.json").is_file() or (local / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(local))
            if isinstance(saved, datasets.Dataset):
                return saved  # saved without splits
            if config.split not in saved:
                raise unknown("split", config.split, map(str, saved))
            return saved[config.split]
        if local.is_file():
            if local.suffix not in FILE_FORMATS:
                raise ValueError(f"a data file ends in one of {', '.join(FILE_FORMATS)}")
            return datasets.load_dataset(FILE_FORMATS[local.suffix], data_files=str(local), split="train")
        return datasets.load_dataset(
            str(local) if local.is_dir() else config.path, options.name or None, split=config.split, revision=options.revision or None
        )
    except Exception as error:  # the library raises a dozen unrelated types for data that is not there or not readable
        reason = f"{type(error).__name__}: {error}".strip()
        raise ValueError(f"tasks.{name}: cannot load {config.path!r}, split {config.split!r}: {reason}") from error
