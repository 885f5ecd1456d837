"""Two rollouts side by side: the first token on which they part, with both logprobs, what followed, and their turns.

Made for a winner and a loser of one group, which share the prompt; any two rollouts of a run can be compared.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl.history.recorded import Row, Said, find_row, read_messages
from rl.log.text import shorten, visible
from rl.view.groups import Comparison, compare
from rl.view.open_run import OpenRun
from rl.view.tokens import TokenTexts

_SHOWN_CHARS = 1500
_BEFORE_CHARS, _AFTER_CHARS = 200, 400
_PIPE_WIDTH = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two rollouts."""

    rows: tuple[Row, Row]
    messages: tuple[tuple[Said, ...], tuple[Said, ...]]
    parting: Comparison

    @property
    def common(self) -> int:
        """Messages that both begin with."""
        a, b = self.messages
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x.message != y.message), min(len(a), len(b)))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "same_task": self.rows[0].task_id == self.rows[1].task_id,
            "first_difference": parting_json(self.parting),
            "messages_in_common": self.common,
            "rollouts": [
                {
                    **{name: value for name, value in asdict(row).items() if name not in ("attempt", "logged")},
                    "messages": [{**asdict(said.message), "turn": said.turn, "whole": said.whole} for said in messages],
                }
                for row, messages in zip(self.rows, self.messages, strict=True)
            ],
        }

    def text(self) -> str:
        """For a person."""
        lines = [_head(letter, row) for letter, row in zip("AB", self.rows, strict=True)]
        if self.rows[0].task_id != self.rows[1].task_id:
            lines.append("they answer different tasks")
        lines += parting_lines(self.parting, letters="AB")
        if self.common:
            lines.append(f"{self.common} message{'' if self.common == 1 else 's'} in common")
        return "\n".join([*lines, self._side_by_side()]).rstrip()

    def _side_by_side(self) -> str:
        columns = [messages[self.common :] for messages in self.messages]
        if not any(columns):
            return ""
        out = StringIO()
        terminal = Console()
        console = Console(file=out, width=terminal.width if terminal.is_terminal else _PIPE_WIDTH, highlight=False)
        table = Table(expand=True, show_lines=True)
        for letter, row in zip("AB", self.rows, strict=True):
            table.add_column(Text(visible(f"{letter}: {row.rollout_id}", one_line=True)), ratio=1, overflow="fold")
        for index in range(max(map(len, columns))):
            table.add_row(*(_cell(messages, index) for messages in columns))
        console.print(table)
        return out.getvalue()


def diff_pair(run: OpenRun, ids: tuple[str, str]) -> Pair:
    """Compare two rollouts. Raises ValueError for one that is not there, QueryError."""
    log = run.log()
    first, second = (find_row(log, rollout_id) for rollout_id in ids)
    messages = read_messages(log, [first, second])
    return Pair(
        rows=(first, second),
        messages=(messages[first.rollout_id], messages[second.rollout_id]),
        parting=compare(run, (asdict(first), asdict(second)), TokenTexts()),
    )


def parting_json(parting: Comparison) -> dict[str, Any]:
    """Where two rollouts part, as plain values."""
    sides = [
        {
            "rollout_id": side.row["rollout_id"],
            "before": side.before,
            "cut": side.cut,
            "at": side.at,
            "logprob": side.logprob,
            "after": side.after,
        }
        for side in (parting.left, parting.right)
    ]
    return {"by": "text" if parting.position is None else "tokens", "tokens_in_common": parting.position, "sides": sides}


def parting_lines(parting: Comparison, *, letters: Sequence[str]) -> list[str]:
    """The same for a person: harmless to a terminal."""
    left, right = parting.left, parting.right
    if not left.at and not right.at:
        return ["the policy said the same in both"]
    place = "tokens are not in the log: texts are compared" if parting.position is None else f"{parting.position} tokens in common"
    before = ("…" if left.cut or len(left.before) > _BEFORE_CHARS else "") + left.before[-_BEFORE_CHARS:]
    lines = [f"first difference, {place}", f"  both  {visible(before, one_line=True)}"]
    for letter, side in zip(letters, (left, right), strict=True):
        logprob = (
            f"logprob {side.logprob:.4f}" if side.logprob is not None else "not sampled" if side.at and parting.position is not None else ""
        )
        at = f"[{visible(side.at, one_line=True)}]" if side.at else "[ends here]"
        lines.append(f"  {letter:<5} {at} {logprob}".rstrip())
        if side.after:
            lines.append(f"        then {visible(shorten(side.after, _AFTER_CHARS), one_line=True)}")
    return lines


def _head(letter: str, row: Row) -> str:
    reward = "no reward" if row.reward is None else f"reward {row.reward:g}"
    figures = f"{row.status}, {reward}, version {row.dispatch_version}, {row.sampled_tokens} tokens"
    return visible(f"{letter}: {row.rollout_id}  {figures}: {row.reason or ''}", one_line=True)


def _cell(messages: Sequence[Said], index: int) -> Text:
    if index >= len(messages):
        return Text("")
    said = messages[index]
    name = f" {said.message.name}" if said.message.name else ""
    turn = f", turn {said.turn}" if said.turn is not None else ""
    return Text(visible(f"{said.message.role}{name}{turn}\n{shorten(said.message.content, _SHOWN_CHARS)}"))
