"""SQL over a run's log: DuckDB views of what is sealed, and nothing else.

The only file that imports duckdb. A query sees a view for each dataset (`rollouts`, `turns`, `tokens`, `learner`, `scores`, `spans`),
the tables `metrics`, `evals`, `attempts`, `run_flags` and `writers`, and the named views of `rl.log.views`; rows that a later attempt
superseded are gone. It may be whatever the user (or a page) typed: only one SELECT is accepted, it can open no file but the sealed
parts, and the settings are locked.
"""

import contextlib
import datetime
import decimal
import fcntl
import json
import math
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl.log.blobs import read_blob
from rl.log.manifest import Parts, read_manifests
from rl.log.metrics import Metrics, read_metrics
from rl.log.runs import RunPaths, find_run
from rl.log.schema import ATTEMPTS, DATASETS, EVALS, METRICS, RUN_FLAGS, WRITERS
from rl.log.sources import dataset_sql, empty, quoted, superseded_sql
from rl.log.text import shorten, visible
from rl.log.views import VIEWS

T = TypeVar("T")
_MEMORY = "4GB"
"""A query must not push a training run on the same machine out of memory."""
_ABOUT_THE_QUERY = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.PermissionException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.OutOfMemoryException,
    duckdb.InterruptException,
    duckdb.NotImplementedException,
    duckdb.SyntaxException,
)
"""Errors that no damaged file is the cause of."""
_BATCH_ROWS = 1024
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The first rows of a result, all fetched."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool
    """Whether the result has further rows."""


class RunLog:
    """An open view of a run's log, of the moment it was opened; a live run may be read at any time.

    While it is open a compaction leaves the files alone that it replaced.
    """

    def __init__(self, root: Path) -> None:
        paths = RunPaths(root=root)
        self._folder = paths.log
        self._hold = _hold(paths.log)
        parts = read_manifests(paths.log)
        self._problems = list(parts.problems)
        self._parts = list(parts.sealed)
        self._repair = threading.RLock()
        self.retired = parts.retired
        """Parts that retention gave up; their rows are missing from the views."""
        self.health = parts.health
        """What each writer had to wait for and to drop."""
        self._connection = duckdb.connect(":memory:", config={"memory_limit": _MEMORY, "temp_directory": ""})
        self._connection.execute("SET parquet_metadata_cache = true")
        metrics = read_metrics(paths.metrics)
        self._load_metrics(metrics)
        self._load_writers(parts)
        self._attempts = metrics.attempts
        self._repeated = parts.repeated
        self._without_damaged(self._create_views)
        self._lock([str(part.path.resolve()) for part in parts.sealed])

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each part that is listed but damaged or gone; its rows are missing from the views."""
        return tuple(self._problems)

    def blob(self, reference: str) -> bytes:
        """The text behind a `stdout_ref` or `log_ref`. Raises ValueError for one that is unknown or damaged."""
        return read_blob(self._folder, reference)

    def check(self, sql: str) -> None:
        """Raises QueryError unless `sql` is one SELECT."""
        with _query_errors(), self._connection.cursor() as cursor:
            _check_one_select(cursor, sql)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> Result:
        """Run one SELECT, rows as they come: for results that may not fit in memory.

        Raises QueryError, while rows are read too: a part that is found damaged after the first rows have been given cannot be left out.
        """
        with _query_errors():
            _check_one_select(self._connection, sql)
            columns, first = self._without_damaged(lambda: self._start(sql, parameters))
            return Result(columns=columns, rows=self._rows(first))

    def table(self, sql: str, parameters: Sequence[Any] = ()) -> Page:
        """All rows of one SELECT, without those of damaged parts. Raises QueryError."""

        def run() -> Page:
            columns, first = self._start(sql, parameters)
            return Page(columns=columns, rows=(*first, *self._connection.fetchall()), more=False)

        with _query_errors():
            _check_one_select(self._connection, sql)
            return self._without_damaged(run)

    def fetch(self, sql: str, parameters: Sequence[Any] = (), *, limit: int, timeout: float) -> Page:
        """The first `limit` rows of one SELECT; several threads may call at once.

        Raises QueryError, also when the query is not done after `timeout` seconds.
        """
        cursor = self._connection.cursor()
        timer = threading.Timer(timeout, cursor.interrupt)

        def run() -> Page:
            cursor.execute(sql, list(parameters))
            columns = _distinct([str(column[0]) for column in cursor.description or ()])
            rows = cursor.fetchmany(limit + 1)
            return Page(columns=columns, rows=tuple(rows[:limit]), more=len(rows) > limit)

        timer.start()
        with _query_errors():
            try:
                _check_one_select(cursor, sql)
                return self._without_damaged(run)
            except duckdb.InterruptException as error:
                raise QueryError(f"stopped: the query took longer than {timeout:g} s; select fewer rows or columns") from error
            finally:
                timer.cancel()
                cursor.close()

    def close(self) -> None:
        """Free the connection, and the files for a compaction."""
        self._connection.close()
        self._hold.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self, sql: str, parameters: Sequence[Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Columns, and the first rows, since DuckDB opens most parts when it needs them and not before."""
        self._connection.execute(sql, list(parameters))
        columns = _distinct([str(column[0]) for column in self._connection.description or ()])
        return columns, self._connection.fetchmany(_BATCH_ROWS)

    def _rows(self, batch: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        try:
            while batch:
                yield from batch
                batch = self._connection.fetchmany(_BATCH_ROWS)
        except duckdb.Error as error:
            raise QueryError(self._late(str(error).strip())) from error

    def _late(self, message: str) -> str:
        """What to do about an error after rows have been given."""
        damaged = [str(part.path) for part in self._parts if not _readable(part.path)]
        if not damaged:
            return message
        return f"{', '.join(damaged)} is damaged, which shows after some rows; move it away, and its rows are left out: {message}"

    def _load_metrics(self, metrics: Metrics) -> None:
        maps = ("pass_rate", "phases", "drops", "log_dropped")
        steps = [{**asdict(m), **{name: list(getattr(m, name).items()) for name in maps}} for m in metrics.steps]
        evals = [
            {**asdict(e), "pass_rate": e.pass_rate, "low": e.interval[0], "high": e.interval[1], "pass_at": list(e.pass_at.items())}
            for e in metrics.evals
        ]
        self._create_table("metrics", pa.Table.from_pylist(steps, schema=METRICS))
        self._create_table("evals", pa.Table.from_pylist(evals, schema=EVALS))
        self._create_table("attempts", pa.Table.from_pylist([asdict(a) for a in metrics.attempts], schema=ATTEMPTS))
        self._create_table("run_flags", pa.Table.from_pylist([asdict(flag) for flag in metrics.flags], schema=RUN_FLAGS))

    def _load_writers(self, parts: Parts) -> None:
        rows = [
            {
                "writer": writer,
                "waits": health.waits,
                "wait_seconds": health.wait_seconds,
                "dropped": list(health.dropped.items()),
                "flag_errors": list(health.flag_errors.items()),
            }
            for writer, health in parts.health.items()
        ]
        self._create_table("writers", pa.Table.from_pylist(rows, schema=WRITERS))

    def _create_table(self, name: str, table: pa.Table) -> None:
        self._connection.register("incoming", table)
        self._connection.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
        self._connection.unregister("incoming")

    def _create_views(self) -> None:
        """Views over the sealed parts, without the rows that a later attempt did again, and the named views over those."""
        run = self._connection.execute
        repeated = bool(self._repeated) and any(part.dataset == "rollouts" for part in self._parts)
        if repeated:
            run(f"CREATE OR REPLACE TABLE superseded AS {superseded_sql(self._parts, groups=self._repeated, describe=self._describe)}")
        for name, schema in DATASETS.items():
            self._connection.register("incoming", empty(schema))
            types = {str(row[0]): str(row[1]) for row in run("DESCRIBE incoming").fetchall()}
            sql = (
                dataset_sql(name, self._parts, types=types, describe=self._describe, repeated=repeated, attempts=self._attempts)
                or "SELECT " + ", ".join(f"NULL::{kind} AS {column}" for column, kind in types.items()) + " WHERE false"
            )
            run(f"CREATE OR REPLACE VIEW {name} AS {sql}")
            self._connection.unregister("incoming")
        for name, view in VIEWS.items():
            run(f"CREATE OR REPLACE VIEW {name} AS {view.sql}")

    def _without_damaged(self, action: Callable[[], T]) -> T:
        """Repeat `action` without the parts that DuckDB cannot read; each becomes one of the `problems`."""
        parts = self._parts
        while True:
            try:
                return action()
            except duckdb.Error as error:
                with self._repair:  # another thread may have met the same part
                    tried, parts = parts, self._parts
                    if tried != parts:
                        continue
                    damaged = [] if isinstance(error, _ABOUT_THE_QUERY) else [part for part in parts if not _readable(part.path)]
                    if not damaged:
                        raise
                    why = str(error).strip().partition("\n")[0]
                    self._problems += [f"{part.path} is damaged: {why}" for part in damaged]
                    self._parts = parts = [part for part in parts if part not in damaged]
                    if action != self._create_views:
                        self._create_views()

    def _describe(self, source: str) -> Sequence[str]:
        return [str(row[0]) for row in self._connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]

    def _lock(self, files: Sequence[str]) -> None:
        """From here on only the sealed parts can be opened, and no setting can be changed."""
        self._connection.execute(f"SET allowed_paths = [{', '.join(quoted(path) for path in files)}]")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")


def sql_command(run: str, query: str, *, as_json: bool) -> int:
    """`rl sql`: print the result as a table or as JSON lines; 2 when the query is refused. Raises ValueError for an unknown run."""
    with RunLog(find_run(run)) as log:
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
        finally:
            for problem in log.problems:
                print(f"left out: {visible(problem, one_line=True)}", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _query_errors() -> Iterator[None]:
    """What DuckDB refuses, and text that it cannot take, as a QueryError."""
    try:
        yield
    except (duckdb.Error, UnicodeError) as error:
        raise QueryError(str(error).strip()) from error


def _check_one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    sql.encode()  # an argument that was not valid text arrives with surrogates, which DuckDB's binding cannot take
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise QueryError("the log can only be read: give exactly one SELECT statement")


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


def _readable(path: Path) -> bool:
    """Whether every byte is as it was written; reads all of them."""
    try:
        with path.open("rb") as stream:
            pq.read_table(stream, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return False
    return True


def _hold(folder: Path) -> contextlib.ExitStack:
    """Keeps the log's files from being deleted until it is closed; nothing where there is no log, or no lock can be had."""
    held = contextlib.ExitStack()
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_SH)
    return held
