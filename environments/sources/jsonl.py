"""JSON lines: one object a line, read and checked whole before a run starts."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from configs.schema import TaskConfig
from environments.records import Json, Problem
from environments.sources.rows import RowMapper

MAX_LINE_BYTES = 64 << 20


class JsonlSource:
    """The rows of one file, in file order."""

    def __init__(self, name: str, *, config: TaskConfig) -> None:
        """Raises ValueError that names file, line and field for anything that would fail later."""
        assert config.path, "TaskConfig refuses kind=jsonl without a path"
        mapper = RowMapper.of(name, config=config)
        problems: list[Problem] = []
        lines_by_id: dict[str, int] = {}
        for line, row in read_rows(Path(config.path).expanduser(), field=f"tasks.{name}.path"):
            where = f"{config.path}:{line}"
            problem = mapper.problem(row, where=where, default_id=f"{len(problems):08d}")
            first = lines_by_id.setdefault(problem.task.id, line)
            if first != line:
                raise ValueError(
                    f"{where}: field {config.id_field!r}: id {problem.task.id!r} is already used on line {first}; ids must be unique"
                )
            problems.append(problem)
            if len(problems) == config.limit:
                break
        if not problems:
            raise ValueError(f"tasks.{name}.path: {config.path} has no rows")
        self._problems = tuple(problems)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self._problems)

    def problem(self, index: int) -> Problem:
        """The problem of row `index`, counted from 0."""
        return self._problems[index]


def read_rows(path: Path, *, field: str, lone_surrogates: bool = False) -> Iterator[tuple[int, dict[str, Json]]]:
    """Yield (line number from 1, object) for every line that is not blank; one line is held at a time.

    `field` names the setting in errors. `lone_surrogates`: let texts hold them, which can be neither tokenized nor stored.
    Raises ValueError that names file and line.
    """
    try:
        with path.open("rb") as file:
            for line in itertools.count(1):
                raw = file.readline(MAX_LINE_BYTES + 1)
                if not raw:
                    return
                if len(raw) > MAX_LINE_BYTES:
                    raise ValueError(f"{path}:{line}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
                if raw.strip():
                    yield line, _parse(raw, where=f"{path}:{line}", lone_surrogates=lone_surrogates)
    except OSError as error:
        raise ValueError(f"{field}: cannot read {path}: {error.strerror}") from error


def _parse(raw: bytes, *, where: str, lone_surrogates: bool) -> dict[str, Json]:
    try:
        # without its line end, so that an error at the end of the line has a column of this line
        text = raw.decode("utf-8-sig" if where.endswith(":1") else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}:{error.start + 1}: not UTF-8 text ({error.reason})") from None
    try:
        row = json.loads(text, parse_constant=_refuse_constant)
        if (
            not lone_surrogates and "\\ud" in text.lower()
        ):  # an escaped lone surrogate is valid JSON but can be neither tokenized nor stored
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}:{error.colno}: not valid JSON: {error.msg}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{where}: a text holds a lone surrogate (\\ud800 to \\udfff), which is no character") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not usable JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f'{where}: the line is of type {type(row).__name__}; each line must be an object, for example {{"question": ...}}')
    return row


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not a JSON number")
