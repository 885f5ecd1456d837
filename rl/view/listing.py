"""The rollouts page: filters, order and place in the list, all in the URL; the SQL that answers it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from rl.view.open_run import OpenRun, Row

PAGE_ROWS = 50
_LAST_PAGE = 2000
"""Further pages would make the database sort everything; filters lead there faster."""
SORTS = ("started", "reward", "sampled_tokens", "n_turns", "dispatch_version", "rollout_id", "advantage")
_CHOICES = ("split", "source", "env", "status", "stop", "flag", "drop")
_COLUMNS = (
    "rollout_id, group_id, task_id, source, env, split, status, stop_reason, error_type, n_turns, sampled_tokens, "
    "reward, dispatch_version, flags, preview, learnt.advantage, learnt.drop_reason"
)
_TIES = "group_index, sample_index, rollout_id"
"""Rollouts that the chosen order takes for equal come in that of their groups, sample 2 before sample 10."""
_LEARNT = "SELECT rollout_id, any_value(advantage) AS advantage, any_value(drop_reason) AS drop_reason FROM learner"


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """What the URL of the rollouts page says. Empty text and None mean no limit."""

    split: str = ""
    source: str = ""
    env: str = ""
    status: str = ""
    stop: str = ""
    flag: str = ""
    drop: str = ""
    """Why the learner did not train on it."""
    task: str = ""
    vmin: int | None = None
    """First policy version when the rollout was started."""
    vmax: int | None = None
    rmin: float | None = None
    """Least reward."""
    rmax: float | None = None
    text: str = ""
    """Found in the task id, the reason or the last message's beginning."""
    messages: str = ""
    """Found in any whole message."""
    sort: str = "started"
    up: bool = False
    page: int = 1

    def to_query(self, **changes: Any) -> str:
        """The query string of this state with `changes`."""
        values = {spec.name: getattr(replace(self, **changes), spec.name) for spec in fields(self)}
        defaults = {spec.name: spec.default for spec in fields(self)}
        kept = {name: ("1" if value is True else value) for name, value in values.items() if value != defaults[name]}
        return urlencode(kept)

    @property
    def n_active(self) -> int:
        """How many filters limit the list."""
        kept = (spec.name for spec in fields(self) if spec.name not in ("sort", "up", "page"))
        return sum(getattr(self, name) not in ("", None) for name in kept)


def read_filters(query: Mapping[str, str]) -> Filters:
    """From a URL. Raises ValueError that names the field, its value and what it takes."""
    sort = query.get("sort") or "started"
    if sort not in SORTS:
        raise ValueError(f"sort={sort}: rollouts can be sorted by {', '.join(SORTS)}")
    words = {name: query.get(name, "").strip() for name in (*_CHOICES, "task", "text", "messages")}
    number = _whole("page", query)
    page = 1 if number is None else number
    if not 1 <= page <= _LAST_PAGE:
        raise ValueError(f"page={page}: pages go from 1 to {_LAST_PAGE}; narrow the list by filters")
    return Filters(
        **words,
        vmin=_whole("vmin", query),
        vmax=_whole("vmax", query),
        rmin=_number("rmin", query),
        rmax=_number("rmax", query),
        sort=sort,
        up=query.get("up") == "1",
        page=page,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A part of the filtered list."""

    rows: Sequence[Row]
    """Columns of `rollouts`, with what the learner did: `advantage`, or `drop_reason`."""
    total: int
    """Rollouts that the filters keep."""


def listed(run: OpenRun, filters: Filters, *, offset: int | None = None, limit: int = PAGE_ROWS) -> Listing:
    """The page, or `limit` rows from `offset` of the same list. Raises QueryError.

    The texts that a filter searches are read once: what it keeps is counted and ordered by narrow columns, and only the rows of the
    page are looked up again for the others.
    """
    found, parameters = _found(filters)
    start = (filters.page - 1) * PAGE_ROWS if offset is None else offset
    rows = run.rows(
        f"WITH found AS MATERIALIZED ({found}), "
        f"top AS MATERIALIZED (SELECT rollout_id, sort_key FROM found ORDER BY {_order(filters)} LIMIT {limit} OFFSET {start}), "
        f"learnt AS ({_LEARNT} WHERE rollout_id IN (SELECT rollout_id FROM top) GROUP BY rollout_id), "
        f"shown AS (SELECT {_COLUMNS}, group_index, sample_index, sort_key FROM rollouts JOIN top USING (rollout_id) "
        "LEFT JOIN learnt USING (rollout_id)) "
        f"SELECT shown.*, total FROM (SELECT count(*) AS total FROM found) LEFT JOIN shown ON true ORDER BY {_order(filters)}",
        parameters,
        limit=max(1, limit),
    )
    return Listing(rows=[row for row in rows if row["rollout_id"] is not None], total=rows[0]["total"])


def place_of(run: OpenRun, filters: Filters, rollout_id: str) -> int | None:
    """Where in the list a rollout stands, from 0; None when the filters leave it out. Raises QueryError."""
    found, parameters = _found(filters)
    places = f"SELECT rollout_id, row_number() OVER (ORDER BY {_order(filters)}) - 1 AS place FROM ({found})"
    rows = run.page(f"SELECT place FROM ({places}) WHERE rollout_id = ?", (*parameters, rollout_id), limit=1).rows
    return int(rows[0][0]) if rows else None


def _found(filters: Filters) -> tuple[str, Sequence[Any]]:
    """What the filters keep, with the keys of its order alone."""
    where, parameters = _where(filters)
    learnt = f" LEFT JOIN ({_LEARNT} WHERE admitted GROUP BY rollout_id) USING (rollout_id)" if filters.sort == "advantage" else ""
    key = "group_id" if filters.sort == "rollout_id" else filters.sort
    return f"SELECT {_TIES}, {key} AS sort_key FROM rollouts{learnt}{where}", parameters


def _order(filters: Filters) -> str:
    return f"sort_key {'ASC' if filters.up else 'DESC'} NULLS LAST, {_TIES}"


def choices(run: OpenRun) -> dict[str, list[str]]:
    """What each choice can be, most frequent first. Raises QueryError."""
    rows = run.page("SELECT split, source, env, status, stop_reason, count(*) FROM rollouts GROUP BY ALL", limit=10_000).rows
    found = {}
    for column, name in enumerate(("split", "source", "env", "status", "stop")):
        counts: dict[str, int] = {}
        for row in rows:
            if row[column] is not None:
                counts[row[column]] = counts.get(row[column], 0) + row[-1]
        found[name] = sorted(counts, key=lambda value: (-counts[value], value))
    flags = run.page("SELECT unnest(flags) AS flag, count(*) AS n FROM rollouts GROUP BY 1 ORDER BY n DESC, 1")
    found["flag"] = [str(row[0]) for row in flags.rows]
    found["drop"] = list(drop_counts(run))
    return found


def drop_counts(run: OpenRun) -> dict[str, int]:
    """Why rollouts were not trained on, and how many; most frequent first. Raises QueryError."""
    sql = "SELECT drop_reason, count(*) AS n FROM learner WHERE drop_reason IS NOT NULL GROUP BY 1 ORDER BY n DESC, 1"
    return {str(reason): int(n) for reason, n in run.page(sql).rows}


def _where(filters: Filters) -> tuple[str, Sequence[Any]]:
    """The condition with its parameters: nothing of the URL ever becomes SQL text."""
    terms: list[tuple[str, Sequence[Any]]] = []
    columns = {"split": "split", "source": "source", "env": "env", "status": "status", "stop": "stop_reason", "task": "task_id"}
    for name, column in columns.items():
        if value := getattr(filters, name):
            terms.append((f"{column} = ?", (value,)))
    if filters.flag:
        terms.append(("list_contains(flags, ?)", (filters.flag,)))
    if filters.drop:
        terms.append(("rollout_id IN (SELECT rollout_id FROM learner WHERE drop_reason = ?)", (filters.drop,)))
    bounds = (
        ("dispatch_version >= ?", filters.vmin),
        ("dispatch_version <= ?", filters.vmax),
        ("reward >= ?", filters.rmin),
        ("reward <= ?", filters.rmax),
    )
    terms += [(term, (value,)) for term, value in bounds if value is not None]
    if filters.text:
        where = " OR ".join(f"contains(lower({column}), lower(?))" for column in ("task_id", "rollout_id", "reason", "preview"))
        terms.append((f"({where})", (filters.text,) * 4))
    if filters.messages:
        found = "SELECT rollout_id FROM turns WHERE contains(lower(text), lower(?))"
        terms.append((f"rollout_id IN ({found})", (filters.messages,)))
    text = " AND ".join(term for term, _ in terms)
    return (f" WHERE {text}" if text else ""), [value for _, values in terms for value in values]


def _whole(name: str, query: Mapping[str, str]) -> int | None:
    text = query.get(name, "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text}: give a whole number") from None


def _number(name: str, query: Mapping[str, str]) -> float | None:
    text = query.get(name, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}={text}: give a number") from None
