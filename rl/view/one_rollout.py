"""Everything the log knows of one rollout, and where it stands in its list and its group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from rl.view.listing import PAGE_ROWS, Filters, listed, place_of, read_filters
from rl.view.open_run import OpenRun, Row
from rl.view.render import CUT_CHARS


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRecord:
    """One rollout with the rows of the other datasets that belong to it."""

    row: Row
    messages: Sequence[Row]
    tokens: Row | None
    """None when the log has none: never written, or given up by retention."""
    learner: Sequence[Row]
    """In the order of training steps."""
    group: Sequence[Row]
    """All rollouts of its group."""
    scores: Sequence[Row]
    """Scores by any scorer, the one that was trained on first; `log_text` is the beginning of the scorer's log."""

    @property
    def trained(self) -> Row | None:
        """What the last step that trained on it did."""
        return next((row for row in reversed(self.learner) if row["admitted"]), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The rollouts before and after this one."""

    previous: str | None
    next: str | None
    previous_at: int | None = None
    """Their places in the list that the reader came from; None when the order is that of the group."""
    next_at: int | None = None
    page: int = 1
    """Of that list, on which this one stands."""


def find_rollout(run: OpenRun, rollout_id: str) -> RolloutRecord | None:
    """None when there is no such rollout. Raises QueryError."""
    found = run.rows("SELECT * FROM rollouts WHERE rollout_id = ?", (rollout_id,), limit=1)
    if not found:
        return None
    row = found[0]
    version = row["dispatch_version"]  # the other datasets are partitioned by it

    def of(dataset: str, order: str) -> list[Row]:
        # Only what this page shows as a whole; the text of a message is cut before it leaves the database.
        sql = f"SELECT * FROM {dataset} WHERE dispatch_version = ? AND rollout_id = ? ORDER BY {order}"
        return run.rows(sql, (version, rollout_id))

    group_columns = "rollout_id, sample_index, status, reward, sampled_tokens"
    return RolloutRecord(
        row=row,
        messages=_messages(run, rollout_id, version),
        tokens=next(iter(of("tokens", "rollout_id")), None),
        learner=of("learner", "train_step"),
        group=run.rows(
            f"SELECT {group_columns} FROM rollouts WHERE dispatch_version = ? AND group_id = ? ORDER BY sample_index",
            (version, row["group_id"]),
        ),
        scores=[{**score, **_score_log(run, score)} for score in of("scores", "live DESC, scored")],
    )


def _messages(run: OpenRun, rollout_id: str, version: int) -> list[Row]:
    sql = (
        "SELECT * REPLACE (left(text, 20001) AS text), length(text) AS n_chars FROM turns "
        "WHERE dispatch_version = ? AND rollout_id = ? ORDER BY message_index"
    )
    return run.rows(sql, (version, rollout_id))


def _score_log(run: OpenRun, score: Row) -> Row:
    """The beginning of a scorer's log and its whole length; of one that is gone or damaged why, and what the row has of it."""
    text = score["log"] or ""
    if score["log_ref"] is not None:
        try:
            text = blob_text(run, score["log_ref"])
        except ValueError as error:
            text = f"{error}\n{text}"
    return {"log_text": text[: CUT_CHARS + 1], "log_chars": len(text)}


def blob_text(run: OpenRun, reference: str) -> str:
    """A stored log or output. Raises ValueError for one that is unknown or damaged."""
    return run.log().blob(reference).decode(errors="backslashreplace")


def message_text(run: OpenRun, rollout_id: str, message_index: int) -> str | None:
    """The whole text of one message; None when there is none. Raises QueryError."""
    rows = run.page("SELECT text FROM turns WHERE rollout_id = ? AND message_index = ?", (rollout_id, message_index), limit=1).rows
    return None if not rows else str(rows[0][0] or "")


def neighbours(run: OpenRun, record: RolloutRecord, query: Mapping[str, str]) -> Neighbours:
    """By the list that the reader came from (`list`, `at` in the URL), else by the group. Raises QueryError, ValueError for `list`."""
    own = record.row["rollout_id"]
    if query.get("list") is not None and query.get("at", "").isdecimal():
        filters, at = read_filters(dict(parse_qsl(query["list"]))), int(query["at"])
        before, here, after = _around(run, filters, at)
        if here != own:  # the list of a run that goes on has moved since
            place = place_of(run, filters, own)
            if place is None:
                return _in_group(record)
            at, (before, here, after) = place, _around(run, filters, place)
        return Neighbours(previous=before, next=after, previous_at=at - 1, next_at=at + 1, page=at // PAGE_ROWS + 1)
    return _in_group(record)


def _around(run: OpenRun, filters: Filters, at: int) -> tuple[str | None, str | None, str | None]:
    """The rollouts before, at and after a place of a list; None beyond its ends."""
    rows = listed(run, filters, offset=max(0, at - 1), limit=3 if at else 2).rows
    ids: list[str | None] = [*([] if at else [None]), *(row["rollout_id"] for row in rows), None, None, None]
    return ids[0], ids[1], ids[2]


def _in_group(record: RolloutRecord) -> Neighbours:
    ids = [None, *(row["rollout_id"] for row in record.group), None]
    here = ids.index(record.row["rollout_id"])
    return Neighbours(previous=ids[here - 1], next=ids[here + 1])
