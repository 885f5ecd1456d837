"""Sandboxes and graders: what failed by infrastructure, where rollouts spend their time, which grades were slow."""

from dataclasses import dataclass

from rl.view.open_run import OpenRun, Row

WINDOWS = (20, 100)
"""Policy versions that the page can be limited to, the newest ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """What the page shows, over the rollouts since `first_version`."""

    first_version: int | None
    """None for all."""
    by_env: list[Row]
    infra: list[Row]
    timings: list[Row]
    slowest: list[Row]


def service(run: OpenRun, *, window: int | None) -> Service:
    """`window`: newest policy versions to look at; None for all. Raises QueryError."""
    first = None
    if window is not None:
        newest = run.page("SELECT max(dispatch_version) FROM rollouts").rows[0][0]
        first = None if newest is None else int(newest) - window + 1
    where, parameters = ("WHERE dispatch_version >= ?", (first,)) if first is not None else ("", ())
    and_where = f"{where} AND" if where else "WHERE"
    by_env = run.rows(
        "SELECT env, count(*) AS n, count(*) FILTER (status = 'ok') AS ok, count(*) FILTER (status = 'policy_fail') AS policy_fail, "
        "count(*) FILTER (status = 'infra') AS infra, count(*) FILTER (status = 'ungradable') AS ungradable, "
        f"avg(n_turns) AS turns, quantile_cont(ended - started, 0.5) AS median, max(ended - started) AS longest "
        f"FROM rollouts {where} GROUP BY env ORDER BY n DESC",
        parameters,
    )
    infra = run.rows(
        "SELECT env, status, coalesce(error_type, '') AS error_type, reason, count(*) AS n, min(dispatch_version) AS first_version, "
        "max(dispatch_version) AS last_version, max(rollout_id) AS example FROM rollouts "
        f"{and_where} status IN ('infra', 'ungradable') GROUP BY ALL ORDER BY n DESC, env, reason LIMIT 50",
        parameters,
    )
    timings = run.rows(
        "SELECT env, e.key AS phase, count(*) AS n, avg(e.value) AS mean, quantile_cont(e.value, 0.5) AS p50, "
        "quantile_cont(e.value, 0.95) AS p95, max(e.value) AS longest "
        f"FROM (SELECT env, unnest(map_entries(timings)) AS e FROM rollouts {where}) GROUP BY ALL ORDER BY env, mean DESC",
        parameters,
    )
    slowest = run.rows(
        "SELECT rollout_id, env, task_id, status, reason, dispatch_version, timings['score'] AS score_seconds FROM rollouts "
        f"{and_where} timings['score'] IS NOT NULL ORDER BY score_seconds DESC, rollout_id LIMIT 20",
        parameters,
    )
    return Service(first_version=first, by_env=by_env, infra=infra, timings=timings, slowest=slowest)
