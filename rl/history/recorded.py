"""Rollouts as the log recorded them, whole again: what a grader or a fresh environment needs of them.

The log has every message (long ones as blobs), the outcome and the budgets' figures. It does not have the problem: the hidden reference
and the payload come from the run's task sources (`rl.history.problems`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from environments.records import Episode, Json, Message, Role, StopReason
from rl.log.manifest import read_manifests
from rl.log.nearest import no_rollout
from rl.log.query import RunLog
from rl.log.runs import RunPaths
from rl.log.whole_text import whole_text

T = TypeVar("T", bound="Played")
_TURN_COLUMNS = (
    *("rollout_id", "message_index", "role", "name", "text", "text_chars", "stdout_ref", "exit_code", "turn", "started", "ended"),
    *("token_start", "token_end", "finish_reason"),
)
_IDS_A_QUERY = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """One row of `rollouts` without what may be long: which problem was played, and how it ended."""

    rollout_id: str
    attempt: int
    logged: float
    group_id: str
    group_index: int
    sample_index: int
    task_id: str
    task_hash: str | None
    source: str
    env: str
    split: str
    dispatch_version: int
    image_digest: str | None
    status: str
    stop_reason: str
    reward: float | None

    @property
    def finished(self) -> bool:
        """Whether the episode came to an end of its own; otherwise the infrastructure cut it off, and there is nothing to grade."""
        return self.stop_reason != StopReason.ERROR.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Row(Played):
    """One row of `rollouts`, as far as it is needed here."""

    error_type: str | None
    reason: str | None
    parts: Mapping[str, Mapping[str, Any]] | None
    outcome: str | None
    env_version: str | None
    scorer: str | None
    scorer_hash: str | None
    sampled_tokens: int

    def read_outcome(self) -> Mapping[str, Json]:
        """What the environment handed over."""
        return cast(Mapping[str, Json], json.loads(self.outcome)) if self.outcome else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One message of a rollout."""

    message: Message
    whole: bool
    """False for a long text whose blob the log does not have: the message holds its beginning and its end."""
    turn: int | None
    """Turn of the policy; None on what it was shown."""
    started: float | None
    """Unix seconds in which it was sampled, to `ended`; None on what the policy was shown, and so for the rest."""
    ended: float | None
    token_start: int | None
    """Of its sampled tokens in the rollout's token stream, to `token_end`."""
    token_end: int | None
    finish_reason: str | None


def read_rows(log: RunLog, *, where: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """The rollouts that an SQL condition selects, by policy version and group. Raises QueryError."""
    return _read(log, Row, where=where, parameters=parameters)


def read_played(log: RunLog, *, where: str, parameters: Sequence[Any] = ()) -> list[Played]:
    """The same without what may be long."""
    return _read(log, Played, where=where, parameters=parameters)


def among(column: str, names: Mapping[str, int]) -> tuple[str, tuple[Any, ...]]:
    """Condition for rows in which `column` is one of `names`, and its parameters; their dispatch versions spare reading other parts."""
    marks = ", ".join("?" * len(names))
    return f"dispatch_version BETWEEN ? AND ? AND {column} IN ({marks})", (min(names.values()), max(names.values()), *names)


def find_row(log: RunLog, rollout_id: str) -> Row:
    """One rollout. Raises ValueError with the nearest ids for one that is not there."""
    found = read_rows(log, where="rollout_id = ?", parameters=(rollout_id,))
    if found:
        return found[0]
    raise no_rollout(log, rollout_id)


def read_messages(log: RunLog, rows: Sequence[Played]) -> dict[str, tuple[Said, ...]]:
    """All messages of rollouts, by id and in order."""
    found: dict[str, list[Said]] = {row.rollout_id: [] for row in rows}
    for start in range(0, len(rows), _IDS_A_QUERY):
        condition, parameters = among("rollout_id", {row.rollout_id: row.dispatch_version for row in rows[start : start + _IDS_A_QUERY]})
        sql = f"SELECT {', '.join(_TURN_COLUMNS)} FROM turns WHERE {condition} ORDER BY rollout_id, message_index"
        result = log.table(sql, parameters)
        for values in result.rows:
            row = dict(zip(_TURN_COLUMNS, values, strict=True))
            found[row["rollout_id"]].append(_said(log, row))
    return {rollout_id: tuple(messages) for rollout_id, messages in found.items()}


def episode_of(row: Row, messages: Sequence[Said]) -> Episode:
    """What the grader of the run saw."""
    return Episode(
        messages=tuple(said.message for said in messages),
        stop_reason=StopReason(row.stop_reason),
        n_sampled_tokens=row.sampled_tokens,
        outcome=row.read_outcome(),
        policy_version=row.dispatch_version,
    )


def check_schema(root: Path) -> None:
    """Refuse a log whose rollouts lack what the environment handed to the grader. Raises ValueError."""
    old = {part.schema_version for part in read_manifests(RunPaths(root=root).log).sealed if part.dataset == "rollouts"} & {1}
    if old:
        raise ValueError(
            f"the log of {root} was written by an older version (schema 1), which did not keep the outcomes of episodes: "
            "its rollouts cannot be graded or played again; rl diff and rl sql still read them"
        )


def _read(log: RunLog, kind: type[T], *, where: str, parameters: Sequence[Any]) -> list[T]:
    columns = [field.name for field in fields(kind)]
    sql = f"SELECT {', '.join(columns)} FROM (SELECT * FROM rollouts WHERE {where}\n) ORDER BY dispatch_version, group_index, rollout_id"
    return [kind(**dict(zip(columns, row, strict=True))) for row in log.table(sql, parameters).rows]


def _said(log: RunLog, row: Mapping[str, Any]) -> Said:
    text, left_out = whole_text(log, row)
    message = Message(role=cast(Role, row["role"]), content=text, name=row["name"], exit_code=row["exit_code"])
    timed = {name: row[name] for name in ("turn", "started", "ended", "token_start", "token_end", "finish_reason")}
    return Said(message=message, whole=not left_out, **timed)
