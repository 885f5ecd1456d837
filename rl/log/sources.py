"""SQL over the parts of a log: each dataset as one view, whatever wrote its files.

What files of another schema version lack is null, what nobody knows is left out. Files of the current version, which are nearly all,
are alike, so that one of them tells for all and the others are not opened until they are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from rl.log.manifest import Part
from rl.log.metrics import Attempt
from rl.log.schema import PARTITION, REPEATABLE, SCHEMA_VERSION

Columns = Callable[[str], Sequence[str]]
"""Names of the columns of a source."""
_LIVE_SCORES = {
    "live": "true",
    "scored": "logged",
    "value": "reward",
    "components": "parts",
    **{name: name for name in ("rollout_id", "attempt", "logged", "group_id", "status", "reason", PARTITION)},
}
"""`scores` of files that are older than that dataset, from their `rollouts`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Parts that are read by one call."""

    sql: str
    columns: Mapping[str, str]
    """Column of the view: expression."""


def dataset_sql(
    dataset: str, parts: Sequence[Part], *, types: Mapping[str, str], describe: Columns, repeated: bool, attempts: Sequence[Attempt]
) -> str | None:
    """The SELECT of a dataset's view; None without any part.

    `types` are DuckDB's of the view's columns, in order. `repeated`: a table `superseded` names the rows that do not count.
    """
    sources = _sources([part for part in parts if part.dataset == dataset], describe=describe)
    if dataset == "scores":
        old = [part for part in parts if part.dataset == "rollouts" and part.schema_version == 1]
        sources += [Source(sql=source.sql, columns=_LIVE_SCORES) for source in _sources(old, describe=describe)]
    if not sources:
        return None
    counted = _restriction(dataset, repeated=repeated, attempts=attempts)
    return " UNION ALL ".join(f"SELECT {_columns(source, types)} FROM {source.sql}{counted}" for source in sources)


def superseded_sql(parts: Sequence[Part], *, groups: Sequence[str], describe: Columns) -> str:
    """Rows of `rollouts` that the same rollout of a later attempt, or a later one of the same attempt, replaces.

    `groups` are those that were written more than once.
    """
    sources = _sources([part for part in parts if part.dataset == "rollouts"], describe=describe)
    among = f"group_id IN ({', '.join(map(quoted, groups))})"
    every = " UNION ALL ".join(f"SELECT rollout_id, attempt, logged FROM {source.sql} WHERE {among}" for source in sources)
    rank = "row_number() OVER (PARTITION BY rollout_id ORDER BY attempt DESC, logged DESC)"
    return f"SELECT rollout_id, attempt, logged FROM ({every}) QUALIFY {rank} > 1"


def quoted(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def empty(schema: pa.Schema) -> pa.Table:
    """No rows, the types that DuckDB reads from Parquet (it has no 16-bit float), the partition's column last."""
    half = pa.list_(pa.float16())
    fields = [field.with_type(pa.list_(pa.float32())) if field.type == half else field for field in schema]
    return pa.schema([*fields, pa.field(PARTITION, pa.int64())]).empty_table()


def _sources(parts: Sequence[Part], *, describe: Columns) -> list[Source]:
    by_kind: dict[tuple[bool, bool], list[Part]] = {}
    for part in parts:
        by_kind.setdefault((part.schema_version == SCHEMA_VERSION, part.compacted), []).append(part)
    found = []
    for (current, compacted), own in by_kind.items():
        files = ", ".join(quoted(str(part.path.resolve())) for part in own)
        options = [] if current else ["union_by_name = true"]
        options += ["hive_partitioning = false"] if compacted else [f"hive_partitioning = true, hive_types = {{'{PARTITION}': BIGINT}}"]
        sql = f"read_parquet([{files}], {', '.join(options)})"
        columns = {name: name for name in describe(sql)}
        found.append(Source(sql=sql, columns=columns))
    return found


def _columns(source: Source, types: Mapping[str, str]) -> str:
    return ", ".join(f"{source.columns.get(name, 'NULL')}::{kind} AS {name}" for name, kind in types.items())


def _restriction(dataset: str, *, repeated: bool, attempts: Sequence[Attempt]) -> str:
    """Leaves out what a later attempt did again."""
    if dataset == "learner":
        stale = [f"(attempt < {a.attempt} AND train_step > {a.restored_step})" for a in attempts if a.attempt > 1]
        return f" WHERE NOT ({' OR '.join(stale)})" if stale else ""
    if repeated and dataset in REPEATABLE:
        return " ANTI JOIN superseded USING (rollout_id, attempt, logged)"
    return ""
