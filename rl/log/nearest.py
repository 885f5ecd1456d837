"""The answer to a mistyped id of the log."""

from rl.log.query import RunLog

_SHOWN = 3


def nearest(log: RunLog, column: str, typed: str) -> str:
    """End of an error message: the values of a column of `rollouts` that are spelled most like `typed`. Raises QueryError."""
    sql = f"SELECT {column} FROM rollouts GROUP BY {column} ORDER BY levenshtein({column}, ?), {column} LIMIT {_SHOWN}"
    found = [str(row[0]) for row in log.query(sql, (typed,)).rows]
    return f"; the nearest ids are {', '.join(found)}" if found else ": its log has no rollouts yet"


def no_rollout(log: RunLog, rollout_id: str) -> ValueError:
    """The error for a rollout that is not there."""
    return ValueError(f"there is no rollout {rollout_id!r} in this run{nearest(log, 'rollout_id', rollout_id)}")
