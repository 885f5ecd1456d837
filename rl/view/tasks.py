"""Tasks: how each fares over training, and the biography of one across policy versions."""

from dataclasses import dataclass
from itertools import groupby

from rl.statistics import wilson_interval
from rl.view.open_run import OpenRun, Row

SORTS = {"newest": "last_version DESC", "hardest": "rate, n DESC", "easiest": "rate DESC, n DESC", "gained": "gain DESC", "lost": "gain"}
"""Choice on the page: order in SQL."""
_LEAST_GAIN_N = 2
"""Rollouts in each half of training that a change of pass rate needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chapter:
    """A task at one policy version."""

    version: int
    rollouts: tuple[Row, ...]
    won: int
    graded: int
    low: float
    """95% interval of the pass rate."""
    high: float
    reward: float | None
    """Mean over graded rollouts."""
    tokens: float
    """Mean sampled tokens."""


def task_list(run: OpenRun, *, text: str, sort: str, limit: int) -> list[Row]:
    """Tasks with counts and their change from the first half of training to the second. Raises QueryError, ValueError for `sort`."""
    if sort not in SORTS:
        raise ValueError(f"sort={sort}: tasks can be sorted by {', '.join(SORTS)}")
    where = "WHERE contains(lower(task_id), lower(?))" if text else ""
    graded = "status IN ('ok', 'policy_fail')"
    halves = "(SELECT (min(dispatch_version) + max(dispatch_version)) / 2 AS middle FROM rollouts)"
    having = f" HAVING n_early >= {_LEAST_GAIN_N} AND n_late >= {_LEAST_GAIN_N}" if sort in ("gained", "lost") else ""
    return run.rows(
        f"SELECT task_id, any_value(source) AS source, any_value(env) AS env, count(*) AS n, count(*) FILTER ({graded}) AS graded, "
        f"avg((status = 'ok')::INT) FILTER ({graded}) AS rate, avg(reward) AS reward, "
        f"count(*) FILTER ({graded} AND dispatch_version <= middle) AS n_early, "
        f"count(*) FILTER ({graded} AND dispatch_version > middle) AS n_late, "
        f"avg((status = 'ok')::INT) FILTER ({graded} AND dispatch_version > middle) "
        f"- avg((status = 'ok')::INT) FILTER ({graded} AND dispatch_version <= middle) AS gain, "
        "min(dispatch_version) AS first_version, max(dispatch_version) AS last_version "
        f"FROM rollouts, {halves} {where} GROUP BY task_id{having} ORDER BY {SORTS[sort]} NULLS LAST, task_id LIMIT {limit}",
        (text,) if text else (),
    )


def biography(run: OpenRun, task_id: str, *, limit: int = 4000) -> list[Chapter]:
    """One chapter a policy version, the first one first; at most `limit` rollouts. Raises QueryError."""
    rows = run.rows(
        "SELECT rollout_id, group_id, dispatch_version, split, status, reward, sampled_tokens, reason, preview FROM rollouts "
        "WHERE task_id = ? ORDER BY dispatch_version, rollout_id",
        (task_id,),
        limit=limit,
    )
    chapters = []
    for version, group in groupby(rows, key=lambda row: row["dispatch_version"]):
        own = tuple(group)
        graded = [row for row in own if row["reward"] is not None]
        won = sum(row["status"] == "ok" for row in graded)
        low, high = wilson_interval(won, len(graded))
        chapters.append(
            Chapter(
                version=version,
                rollouts=own,
                won=won,
                graded=len(graded),
                low=low,
                high=high,
                reward=sum(row["reward"] for row in graded) / len(graded) if graded else None,
                tokens=sum(row["sampled_tokens"] for row in own) / len(own),
            )
        )
    return chapters


def task_prompt(run: OpenRun, version: int, rollout_id: str) -> list[Row]:
    """The messages that open the task of a rollout. Raises QueryError."""
    sql = (
        "SELECT role, name, left(text, 20001) AS text, length(text) AS n_chars FROM turns WHERE dispatch_version = ? AND rollout_id = ? "
        "AND message_index < (SELECT coalesce(min(message_index), 1000000) FROM turns "
        "WHERE dispatch_version = ? AND rollout_id = ? AND turn IS NOT NULL) ORDER BY message_index"
    )
    return run.rows(sql, (version, rollout_id, version, rollout_id))
