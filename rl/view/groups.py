"""Groups with winners and losers: which there are, and one winner beside one loser up to the token where they part."""

from collections.abc import Sequence
from dataclasses import dataclass

from rl.view.open_run import OpenRun, Row
from rl.view.tokens import TokenTexts, first_difference, sampled_start

_BEFORE, _AFTER = 80, 400
"""Tokens shown before and after the place where two rollouts part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of two rollouts that are compared."""

    row: Row
    before: str
    """The end of what both have in common."""
    cut: bool
    """Whether more in common comes before it."""
    at: str
    """The first token that is this one's alone; empty when it ends here."""
    after: str
    logprob: float | None
    """Behaviour logprob of that token, where it was sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two rollouts side by side."""

    left: Side
    right: Side
    position: int | None
    """Sampled tokens and tool outputs that both have in common; None when the log has no tokens: texts are compared then."""


def contrast_groups(run: OpenRun, *, limit: int) -> list[Row]:
    """Training groups with at least one winner and one loser: the fewest winners first, then the newest. Raises QueryError."""
    return run.rows("SELECT * FROM contrast ORDER BY pass_rate, dispatch_version DESC, group_index LIMIT ?", (limit,))


def group_rows(run: OpenRun, group_id: str) -> list[Row]:
    """The rollouts of a group with what the learner did. Raises QueryError."""
    rows = run.rows("SELECT * FROM rollouts WHERE group_id = ? ORDER BY sample_index", (group_id,))
    if not rows:
        return []
    learned = run.rows(
        "SELECT rollout_id, train_step, admitted, drop_reason, advantage FROM learner WHERE dispatch_version = ? AND group_id = ? "
        "ORDER BY train_step",
        (rows[0]["dispatch_version"], group_id),
    )
    by_id = {row["rollout_id"]: row for row in learned}
    return [{**row, "learner": by_id.get(row["rollout_id"])} for row in rows]


def chosen_pair(rows: Sequence[Row], a: str | None, b: str | None) -> tuple[Row, Row] | None:
    """The two rollouts that the URL names; else the best winner and the first loser, else the best and the worst."""
    by_id = {row["rollout_id"]: row for row in rows}
    ranked = sorted(rows, key=lambda row: (row["status"] == "ok", row["reward"] if row["reward"] is not None else -1e9), reverse=True)
    losers = [row for row in rows if row["status"] == "policy_fail"] or ranked[::-1]
    left = by_id.get(a or "") or (ranked[0] if ranked else None)
    right = by_id.get(b or "") or next((row for row in losers if left is not None and row["rollout_id"] != left["rollout_id"]), None)
    return (left, right) if left is not None and right is not None else None


def compare(run: OpenRun, pair: tuple[Row, Row], texts: TokenTexts) -> Comparison:
    """Where two rollouts of a task part. Raises QueryError."""
    tokens = [_tokens(run, row) for row in pair]
    if tokens[0] is None or tokens[1] is None:
        return _by_text(run, pair)
    starts = [sampled_start(own) for own in tokens if own is not None]
    streams = [own["token_ids"][start:] for own, start in zip(tokens, starts, strict=True) if own is not None]
    position = first_difference(streams[0], streams[1])
    sides = []
    for row, own, start, stream in zip(pair, tokens, starts, streams, strict=True):
        assert own is not None
        first = max(0, position - _BEFORE)
        window = stream[first : position + _AFTER]
        pieces = texts.of(run, window) or [f"{one} " for one in window]
        here = position - first
        sides.append(
            Side(
                row=row,
                before="".join(pieces[:here]),
                cut=first > 0,
                at=pieces[here] if here < len(pieces) else "",
                after="".join(pieces[here + 1 :]) + ("…" if position + _AFTER < len(stream) else ""),
                logprob=_logprob(own, start + position),
            )
        )
    return Comparison(left=sides[0], right=sides[1], position=position)


def _tokens(run: OpenRun, row: Row) -> Row | None:
    sql = "SELECT * FROM tokens WHERE dispatch_version = ? AND rollout_id = ?"
    return next(iter(run.rows(sql, (row["dispatch_version"], row["rollout_id"]), limit=1)), None)


def _logprob(tokens: Row, position: int) -> float | None:
    """Of the token at a place of the stream; None when it was not sampled."""
    before = 0
    for segment in tokens["segments"]:
        if segment["kind"] != "sampled":
            continue
        if segment["start"] <= position < segment["start"] + segment["len"]:
            return float(tokens["behaviour_logprob"][before + position - segment["start"]])
        before += segment["len"]
    return None


def _by_text(run: OpenRun, pair: tuple[Row, Row]) -> Comparison:
    """Without tokens: the policy's messages, character by character."""
    texts = []
    for row in pair:
        sql = "SELECT text FROM turns WHERE dispatch_version = ? AND rollout_id = ? AND turn IS NOT NULL ORDER BY message_index"
        said = run.page(sql, (row["dispatch_version"], row["rollout_id"])).rows
        texts.append("\n\n".join(text or "" for (text,) in said))
    position = first_difference([ord(c) for c in texts[0]], [ord(c) for c in texts[1]])
    first = max(0, position - 4 * _BEFORE)
    sides = [
        Side(
            row=row,
            before=text[first:position],
            cut=first > 0,
            at=text[position : position + 1],
            after=text[position + 1 : position + 4 * _AFTER],
            logprob=None,
        )
        for row, text in zip(pair, texts, strict=True)
    ]
    return Comparison(left=sides[0], right=sides[1], position=None)
