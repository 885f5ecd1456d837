"""The SQL box: one SELECT over the views of the log, cut to what a page can show."""

from dataclasses import dataclass

from rl.log.query import QueryError
from rl.log.views import VIEWS
from rl.view.open_run import OpenRun

ROWS = 200
CELL_CHARS = 300
SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A result as text cells, or why there is none."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str | None, ...], ...] = ()
    more: bool = False
    error: str = ""


def answer(run: OpenRun, sql: str) -> Answer:
    """Run what was typed. Cells become text inside the database, so that no array of a million numbers reaches the page."""
    text = sql.strip().rstrip(";")
    if not text:
        return Answer()
    try:
        page = run.page(f"SELECT left(COLUMNS(*)::VARCHAR, {CELL_CHARS + 1}) FROM (\n{text}\n)", limit=ROWS, timeout=SECONDS)
    except QueryError as error:
        return Answer(error=str(error))
    return Answer(columns=page.columns, rows=page.rows, more=page.more)


def views(run: OpenRun) -> list[tuple[str, tuple[str, ...]]]:
    """The datasets and tables with their columns. Raises QueryError."""
    rows = run.page("SELECT table_name, column_name FROM information_schema.columns ORDER BY table_name, ordinal_position").rows
    found: dict[str, list[str]] = {}
    for table, column in rows:
        found.setdefault(str(table), []).append(str(column))
    return [(name, tuple(columns)) for name, columns in found.items() if name not in ("superseded", *VIEWS)]
