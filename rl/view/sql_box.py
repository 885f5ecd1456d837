"""The SQL box: one SELECT over the views of the log, cut to what a page can show."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rl.log.query import QueryError
from rl.log.views import VIEWS
from rl.view.open_run import OpenRun

ROWS = 200
CELL_CHARS = 300
SECONDS = 10.0
_ROLLOUT_ID = re.compile(r"\b((?:h\d{6}s\d+-|demonstration-)?\d{6,}-\d+)\b")
"""Of training, of held-out problems and of demonstrations."""


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
        run.log().check(text)
        page = run.page(f"SELECT left(COLUMNS(*)::VARCHAR, {CELL_CHARS + 1}) FROM (\n{text}\n)", limit=ROWS, timeout=SECONDS)
    except QueryError as error:
        return Answer(error=str(error))
    return Answer(columns=page.columns, rows=page.rows, more=page.more)


def split_ids(text: str) -> list[tuple[str, bool]]:
    """A cell in pieces, and whether each is the id of a rollout: named views hold several under names of their own."""
    return [(piece, index % 2 == 1) for index, piece in enumerate(_ROLLOUT_ID.split(text)) if piece]


def target(columns: Sequence[str], row: Sequence[str | None]) -> tuple[str, str] | None:
    """What a row is about: `rollout`, `group` or `task` with its id; None when it names none of them."""
    cells = dict(zip(columns, row, strict=True))
    for page in ("rollout", "group", "task"):
        if value := cells.get(f"{page}_id"):
            return page, value
    ids = [piece for cell in row if cell and len(cell) <= CELL_CHARS for piece, is_id in split_ids(cell) if is_id]
    return ("rollout", ids[0]) if ids else None


def views(run: OpenRun) -> list[tuple[str, tuple[str, ...]]]:
    """The datasets and tables with their columns. Raises QueryError."""
    rows = run.page("SELECT table_name, column_name FROM information_schema.columns ORDER BY table_name, ordinal_position").rows
    found: dict[str, list[str]] = {}
    for table, column in rows:
        found.setdefault(str(table), []).append(str(column))
    return [(name, tuple(columns)) for name, columns in found.items() if name not in ("superseded", *VIEWS)]
