"""Reads the rollouts that an export takes, a bounded number at a time, and counts what it met.

The log is the view of the moment it was opened (`rl.log.query.RunLog`), so that a live run can be exported. Rollouts come in the order
of policy versions and groups.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rl.export.records import Learned, LearnedTokens, LoggedMessage, LoggedRollout, LoggedSpan, LoggedTokens, RolloutRow
from rl.log.query import QueryError, RunLog
from rl.log.runs import RunPaths
from rl.log.whole_text import whole_text

_RANGE_ROLLOUTS = 2048
"""Rollouts of neighbouring policy versions whose ids are listed together."""
_CHUNK_ROLLOUTS = 256
_CHUNK_TOKENS = 1 << 19
"""Rollouts that are in memory together have no more than these; one rollout may have more."""
_MESSAGE = (
    *("message_index", "role", "name", "text", "tool", "arguments", "exit_code", "turn", "started", "ended", "token_start"),
    *("token_end", "finish_reason", "policy_version"),
)
_SPAN = """SELECT {columns},
    CASE WHEN rollout_id IS NULL THEN started ELSE min(started) OVER unit END AS first,
    CASE WHEN rollout_id IS NULL THEN ended ELSE max(ended) OVER unit END AS last
    FROM spans WHERE {condition} WINDOW unit AS (PARTITION BY actor, attempt, rollout_id)
    ORDER BY actor, first, rollout_id, started, ended"""

Row = dict[str, Any]


class Source:
    """The rollouts and spans of one run that fulfil a condition."""

    def __init__(self, log: RunLog, *, root: Path, where: str | None) -> None:
        """`where` is an SQL condition over the columns of `rollouts`; None takes all. Raises ValueError for one that DuckDB refuses."""
        self._log = log
        self._condition = "true" if where is None else f"coalesce((\n{where}\n), false)"
        self.model = _model_name(root)
        """Name of the model that the run trains; the run's own where its configuration is not there."""
        self.in_log = int(self._all("SELECT count(*) AS n FROM rollouts")[0]["n"])
        self.selected = self._statuses(where)
        """Rollouts that fulfil the condition, by status."""
        self.exported: Counter[str] = Counter()
        """Rollouts that were handed out, by status."""
        self.lost = 0
        """Rollouts that were there when the export began and whose rows can no longer be read."""
        self.without_tokens = 0
        """Of them, those whose tokens the log does not have."""
        self.shortened = 0
        """Messages of which the log has the beginning and the end only."""

    def rollouts(self, *, tokens: bool) -> Iterator[LoggedRollout]:
        """Each rollout once; with its token stream if `tokens`."""
        for low, high in self._version_ranges():
            chosen = f"dispatch_version BETWEEN {low} AND {high}"
            ids = self._all(
                "SELECT rollout_id, coalesce(prompt_tokens, 0) + coalesce(sampled_tokens, 0) + coalesce(env_tokens, 0) AS n FROM rollouts "
                f"WHERE {chosen} AND {self._condition} ORDER BY dispatch_version, group_index, sample_index, rollout_id"
            )
            for chunk in _chunks(ids):
                yield from self._chunk(chunk, chosen=chosen, tokens=tokens)

    def spans(self) -> Iterator[LoggedSpan]:
        """Spans of the selected rollouts and of the loop, by actor; those of a rollout follow each other."""
        own = [field.name for field in dataclasses.fields(LoggedSpan) if field.name not in ("first", "last")]
        condition = f"rollout_id IS NULL OR rollout_id IN (SELECT rollout_id FROM rollouts WHERE {self._condition})"
        if self._condition == "true":
            condition = "true"
        result = self._log.query(_SPAN.format(columns=", ".join(own), condition=condition))
        for row in result.rows:
            yield LoggedSpan(**dict(zip(result.columns, row, strict=True)))

    def n_spans(self) -> int:
        """Of the whole log."""
        return int(self._all("SELECT count(*) AS n FROM spans")[0]["n"])

    def _statuses(self, where: str | None) -> Counter[str]:
        try:
            rows = self._all(f"SELECT status, count(*) AS n FROM rollouts WHERE {self._condition} GROUP BY status ORDER BY status")
        except QueryError as error:
            hint = "rl sql RUN 'DESCRIBE rollouts' lists the columns"
            raise ValueError(f"--where {where!r} is no condition on rollouts: {error}; {hint}") from error
        return Counter({str(row["status"]): int(row["n"]) for row in rows})

    def _version_ranges(self) -> Iterator[tuple[int, int]]:
        rows = self._all(
            f"SELECT dispatch_version AS v, count(*) AS n FROM rollouts WHERE {self._condition} GROUP BY dispatch_version ORDER BY v"
        )
        first, last, n = None, 0, 0
        for row in rows:
            if first is not None and n + row["n"] > _RANGE_ROLLOUTS:
                yield first, last
                first, n = None, 0
            first = row["v"] if first is None else first
            last, n = row["v"], n + row["n"]
        if first is not None:
            yield first, last

    def _chunk(self, ids: Sequence[str], *, chosen: str, tokens: bool) -> Iterator[LoggedRollout]:
        where = f"WHERE {chosen} AND rollout_id IN (SELECT unnest(?::VARCHAR[]))"
        rows = {row["rollout_id"]: row for row in self._of(RolloutRow, "rollouts", where, ids)}
        messages = self._grouped(
            f"SELECT rollout_id, {', '.join(_MESSAGE)}, text_chars, stdout_ref FROM turns {where} ORDER BY rollout_id, message_index", ids
        )
        wanted = ", ".join(field.name for field in dataclasses.fields(Learned))
        arrays = ", learner_logprob, entropy" if tokens else ""
        learned = self._grouped(f"SELECT rollout_id, {wanted}{arrays} FROM learner {where} ORDER BY train_step", ids)
        streams = self._grouped(f"SELECT rollout_id, {_names(LoggedTokens)} FROM tokens {where}", ids) if tokens else {}
        for rollout_id in ids:
            if rollout_id not in rows:  # its part was found damaged meanwhile
                self.lost += 1
                continue
            row = RolloutRow(**rows[rollout_id])
            stream = streams.get(rollout_id)
            self.exported[row.status] += 1
            self.without_tokens += tokens and not stream
            yield LoggedRollout(
                row=row,
                messages=[self._message(message) for message in messages.get(rollout_id, ())],
                learned=[_learned(one) for one in learned.get(rollout_id, ())],
                tokens=LoggedTokens(**_without(stream[0], "rollout_id")) if stream else None,
                learned_tokens=_learned_tokens(learned.get(rollout_id, ())) if tokens else None,
            )

    def _message(self, row: Row) -> LoggedMessage:
        text, left_out = whole_text(self._log, row)
        self.shortened += left_out > 0
        return LoggedMessage(**{**{name: row[name] for name in _MESSAGE}, "text": text, "left_out": left_out})

    def _of(self, record: type, dataset: str, where: str, ids: Sequence[str]) -> list[Row]:
        return self._all(f"SELECT {_names(record)} FROM {dataset} {where}", ids)

    def _grouped(self, sql: str, ids: Sequence[str]) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self._all(sql, ids):
            found[row["rollout_id"]].append(row)
        return found

    def _all(self, sql: str, *parameters: Any) -> list[Row]:
        result = self._log.table(sql, parameters)
        return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def _names(record: type) -> str:
    return ", ".join(field.name for field in dataclasses.fields(record))


def _without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def _learned(row: Row) -> Learned:
    return Learned(**_without(row, "rollout_id", "learner_logprob", "entropy"))


def _learned_tokens(rows: Sequence[Row]) -> LearnedTokens | None:
    last = next((row for row in reversed(rows) if row["learner_logprob"] is not None), None)
    return LearnedTokens(learner_logprob=last["learner_logprob"], entropy=last["entropy"]) if last else None


def _chunks(rows: Sequence[Row]) -> Iterator[list[str]]:
    chunk: list[str] = []
    n_tokens = 0
    for row in rows:
        if chunk and (len(chunk) == _CHUNK_ROLLOUTS or n_tokens + row["n"] > _CHUNK_TOKENS):
            yield chunk
            chunk, n_tokens = [], 0
        chunk.append(row["rollout_id"])
        n_tokens += row["n"]
    if chunk:
        yield chunk


def _model_name(root: Path) -> str:
    try:
        path = yaml.safe_load(RunPaths(root=root).config.read_text())["model"]["path"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return root.resolve().name
    return Path(str(path)).name or root.resolve().name
