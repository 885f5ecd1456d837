"""SQL over a run's log: DuckDB views of what is sealed, and nothing else.

The only file that imports duckdb. A query sees the views `rollouts`, `turns`, `tokens`, `learner`, `metrics`, `evals`
and `attempts`; rows that a later attempt superseded are gone. It may be whatever the user (or a page) typed: only one
SELECT is accepted, it can open no file but the sealed parts, and the settings are locked.
"""

import datetime
import decimal
import json
import math
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl.log.metrics import read_metrics
from rl.log.runs import RunPaths, find_run
from rl.log.schema import ATTEMPTS, DATASETS, EVALS, METRICS, PARTITION
from rl.log.storage import read_manifests
from rl.log.text import shorten, visible

_MEMORY = "4GB"
"""A query must not push a training run on the same machine out of memory."""
_TABLE_ROWS = 1000
_CELL_CHARS = 160
_PIPE_WIDTH = 4000
"""Columns when the output is not a terminal: rows are never folded."""


class QueryError(ValueError):
    """The query is not one SELECT, or DuckDB refused it; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A result under way: columns now, rows as they are fetched."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


class RunLog:
    """An open view of a run's log, of the moment it was opened; a live run may be read at any time."""

    def __init__(self, root: Path) -> None:
        paths = RunPaths(root=root)
        parts = read_manifests(paths.log)
        self.problems = parts.problems
        """One sentence for each part that is listed but damaged or gone; its rows are missing from the views."""
        self._repeated = parts.repeated and any(part.dataset == "rollouts" for part in parts.sealed)
        files: dict[str, list[str]] = {name: [] for name in DATASETS}
        for part in parts.sealed:
            files[part.dataset].append(str(part.path.resolve()))
        self._connection = duckdb.connect(":memory:", config={"memory_limit": _MEMORY, "temp_directory": ""})
        self._load_metrics(paths.metrics)
        for name, schema in DATASETS.items():
            self._create_view(name, schema, files[name])
        self._lock([path for paths_of in files.values() for path in paths_of])

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> Result:
        """Run one SELECT. Raises QueryError."""
        try:
            sql.encode()  # an argument that was not valid text arrives with surrogates, which DuckDB's binding cannot take
            statements = self._connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise QueryError("the log can only be read: give exactly one SELECT statement")
            cursor = self._connection.execute(sql, list(parameters))
            return Result(columns=_distinct([str(column[0]) for column in cursor.description or ()]), rows=self._rows())
        except (duckdb.Error, UnicodeError) as error:
            raise QueryError(str(error).strip()) from error

    def close(self) -> None:
        """Free the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        try:
            while batch := self._connection.fetchmany(1024):
                yield from batch
        except duckdb.Error as error:
            raise QueryError(str(error).strip()) from error

    def _load_metrics(self, path: Path) -> None:
        metrics = read_metrics(path)
        steps = [
            {**asdict(m), "pass_rate": list(m.pass_rate.items()), "phases": list(m.phases.items()), "drops": list(m.drops.items())}
            for m in metrics.steps
        ]
        evals = [{**asdict(e), "pass_rate": e.pass_rate, "low": e.interval[0], "high": e.interval[1]} for e in metrics.evals]
        self._create_table("metrics", pa.Table.from_pylist(steps, schema=METRICS))
        self._create_table("evals", pa.Table.from_pylist(evals, schema=EVALS))
        self._create_table("attempts", pa.Table.from_pylist([asdict(a) for a in metrics.attempts], schema=ATTEMPTS))

    def _create_table(self, name: str, table: pa.Table) -> None:
        self._connection.register("incoming", table)
        self._connection.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
        self._connection.unregister("incoming")

    def _create_view(self, name: str, schema: pa.Schema, files: Sequence[str]) -> None:
        """A view over the sealed parts of one dataset, without the rows that a later attempt did again."""
        if not files:
            self._create_table(name, _empty(schema))
            return
        listed = ", ".join(_quoted(path) for path in files)
        source = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = true, hive_types = {{'{PARTITION}': BIGINT}})"
        if name == "learner":
            stale = "SELECT 1 FROM attempts a WHERE a.attempt > r.attempt AND a.restored_step < r.train_step"
            self._connection.execute(f"CREATE VIEW learner AS SELECT * FROM {source} r WHERE NOT EXISTS ({stale})")
            return
        if name == "rollouts" and self._repeated:
            self._connection.execute(f"CREATE TABLE superseded AS {_superseded(source)}")
        where = " WHERE (rollout_id, attempt, logged) NOT IN (FROM superseded)" if self._repeated else ""
        self._connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}{where}")

    def _lock(self, files: Sequence[str]) -> None:
        """From here on only the sealed parts can be opened, and no setting can be changed."""
        self._connection.execute(f"SET allowed_paths = [{', '.join(_quoted(path) for path in files)}]")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")


def sql_command(run: str, query: str, *, as_json: bool) -> int:
    """`rl sql`: print the result as a table or as JSON lines; 2 when the query is refused. Raises ValueError for an unknown run."""
    with RunLog(find_run(run)) as log:
        for problem in log.problems:
            print(f"left out: {visible(problem, one_line=True)}", file=sys.stderr)
        try:
            result = log.query(query)
            if as_json:
                for row in result.rows:
                    print(json_line(dict(zip(result.columns, row, strict=True))))
            else:
                _print_table(result)
            sys.stdout.flush()
        except QueryError as error:
            print(visible(str(error)), file=sys.stderr)
            return 2
        except BrokenPipeError:  # `rl sql ... | head`: nobody reads on, which is no error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names with `_2`, `_3` on repeated ones (`SELECT r.*, l.*`), so that a JSON object keeps them all."""
    seen: dict[str, int] = {}
    for name in names:
        unique = name
        while unique in seen:
            seen[name] += 1
            unique = f"{name}_{seen[name]}"
        seen[unique] = 1
    return tuple(seen)


def json_line(value: Any) -> str:
    """Strict JSON in ASCII: what is not finite becomes null, what JSON lacks becomes text."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, decimal.Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | uuid.UUID):
        return str(value)
    return value


def _print_table(result: Result) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in result.columns:
        table.add_column(Text(visible(column, one_line=True)), overflow="fold", no_wrap=not console.is_terminal)
    shown, more = 0, False
    for row in result.rows:
        if shown == _TABLE_ROWS:
            more = True
            break
        table.add_row(*(Text(_cell(value)) for value in row))
        shown += 1
    console.print(table)
    if more:
        print(f"only the first {_TABLE_ROWS} rows are shown: add a LIMIT, or --json for all", file=sys.stderr)
    elif not shown:
        print("no rows", file=sys.stderr)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return shorten(visible(value if isinstance(value, str) else str(value), one_line=True), _CELL_CHARS)


def _superseded(source: str) -> str:
    """Rows of `rollouts` that the same rollout of a later attempt, or a later one of the same attempt, replaces."""
    repeated = f"SELECT rollout_id FROM {source} GROUP BY rollout_id HAVING count(*) > 1"
    rank = "row_number() OVER (PARTITION BY rollout_id ORDER BY attempt DESC, logged DESC)"
    return f"SELECT rollout_id, attempt, logged FROM {source} WHERE rollout_id IN ({repeated}) QUALIFY {rank} > 1"


def _empty(schema: pa.Schema) -> pa.Table:
    """No rows, the types that DuckDB reads from Parquet (it has no 16-bit float), the partition's column last."""
    half = pa.list_(pa.float16())
    fields = [field.with_type(pa.list_(pa.float32())) if field.type == half else field for field in schema]
    return pa.schema([*fields, pa.field(PARTITION, pa.int64())]).empty_table()


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "''") + "'"
