"""`rl show`: one rollout for a person, or everything of it as JSON.

All text of the model passes `visible` on its way to the terminal.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rl.log.nearest import no_rollout
from rl.log.query import RunLog, json_line
from rl.log.runs import find_run
from rl.log.text import shorten, visible

_LEAST_LIKELY = 12
"""Tokens listed one by one; `--json` has all."""
_OUTCOME_CHARS = 400
_LOG_CHARS = 8_192
"""Of a score's log on the terminal; `--json` has all."""
_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}

Row = Mapping[str, Any]


def show_command(run: str, rollout: str, *, as_json: bool) -> int:
    """Print one rollout: messages, score, tokens with logprobs and versions, and what the learner did with it.

    Raises ValueError for an unknown run, and for an unknown rollout with the nearest ids.
    """
    with RunLog(find_run(run)) as log:
        found = _rows(log, "SELECT * FROM rollouts WHERE rollout_id = ?", rollout)
        if not found:
            raise no_rollout(log, rollout)
        row = found[0]
        messages = _rows(log, "SELECT * FROM turns WHERE rollout_id = ? ORDER BY message_index", rollout)
        tokens = next(iter(_rows(log, "SELECT * FROM tokens WHERE rollout_id = ?", rollout)), None)
        learner = _rows(log, "SELECT * FROM learner WHERE rollout_id = ? ORDER BY train_step", rollout)
        scored = _rows(log, "SELECT * FROM scores WHERE rollout_id = ? ORDER BY live DESC, scored", rollout)
        scores = [_with_log(log, score) for score in scored]
        siblings = _rows(log, "SELECT rollout_id, reward, status FROM rollouts WHERE group_id = ? ORDER BY sample_index", row["group_id"])
    if as_json:
        print(json_line({**row, "group": siblings, "messages": messages, "scores": scores, "tokens": tokens, "learner": learner}))
        return 0
    console = Console()
    _print_head(console, row, siblings)
    for message in messages:
        _print_message(console, message)
    for score in scores:
        _print_score_log(console, score)
    _print_learner(console, learner)
    if tokens is None:
        console.print("tokens: not in the log (log.tokens=false, or removed)", style="dim", markup=False)
    else:
        _print_tokens(console, tokens, learner[-1] if learner else None)
    sys.stdout.flush()
    return 0


def _rows(log: RunLog, sql: str, parameter: str) -> list[dict[str, Any]]:
    result = log.query(sql, (parameter,))
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def _with_log(log: RunLog, score: Row) -> dict[str, Any]:
    """A score with its whole log; where the blob cannot be read, the reason and what the row has of it."""
    if score["log_ref"] is None:
        return dict(score)
    try:
        return {**score, "log": log.blob(score["log_ref"]).decode(errors="backslashreplace")}
    except ValueError as error:
        return {**score, "log": f"[{error}]\n{score['log'] or ''}"}


def _print_head(console: Console, row: Row, siblings: Sequence[Row]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    reward = "none" if row["reward"] is None else f"{row['reward']:g}"
    facts = {
        "task": f"{row['task_id']}  ({row['source']}, {row['env']}, {row['split']})",
        "score": f"{reward}  {row['status']}",
        "reason": row["reason"],
        **{f"part {name}": f"{part['value']:g} x {part['weight']:g}  {part['reason']}" for name, part in row["parts"].items()},
        **{f"flag {name}": reason for name, reason in (row["flag_reasons"] or {}).items()},
        "ended by": " ".join(filter(None, (row["stop_reason"], row["error_type"]))),
        "outcome": shorten(row["outcome"] or "", _OUTCOME_CHARS),
        "tokens": f"{row['prompt_tokens']} prompt, {row['sampled_tokens']} sampled, {row['env_tokens']} others; {row['n_turns']} turns",
        "policy": f"started at version {row['dispatch_version']}, sampled by {_range(row['policy_min'], row['policy_max'])}",
        "image": row["image_digest"],
        "containers": ", ".join(ref[:12] for ref in row["sandbox_refs"] or ()),
        "seconds": ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["timings"].items()),
        "group": "  ".join(_sibling(other, row) for other in siblings),
    }
    for name, value in facts.items():
        if value:
            table.add_row(Text(visible(name, one_line=True)), Text(visible(value)))
    console.print(Panel(table, title=Text(visible(f"rollout {row['rollout_id']}", one_line=True)), title_align="left"))


def _sibling(other: Row, row: Row) -> str:
    reward = other["status"] if other["reward"] is None else f"{other['reward']:g}"
    return f"[{reward}]" if other["rollout_id"] == row["rollout_id"] else reward


def _print_message(console: Console, message: Row) -> None:
    title = message["role"] + (f" {message['name']}" if message["name"] else "")
    if message["turn"] is not None:
        title += f" · turn {message['turn']}, tokens {message['token_start']}-{message['token_end']}, {message['finish_reason']}"
    style = _STYLES.get(message["role"], "white")
    console.print(Panel(Text(visible(message["text"])), title=Text(visible(title, one_line=True)), title_align="left", border_style=style))


def _print_score_log(console: Console, score: Row) -> None:
    if score["log"]:
        title = Text(visible(f"log of the reward {score['scorer'] or ''}", one_line=True))
        more = len(score["log"]) - _LOG_CHARS
        text = visible(score["log"][:_LOG_CHARS]) + (f"\n[{more} more characters: see --json]" if more > 0 else "")
        console.print(Panel(Text(text), title=title, title_align="left", border_style="blue"))


def _print_learner(console: Console, rows: Sequence[Row]) -> None:
    if not rows:
        console.print("learner: not seen by the learner (yet)", style="dim", markup=False)
    for row in rows:
        if not row["admitted"]:
            console.print(f"learner: step {row['train_step']} did not train on it: {row['drop_reason']}", markup=False)
            continue
        stale = "-" if row["staleness_mean"] is None else f"{row['staleness_mean']:.2f} (at most {row['staleness_max']})"
        kl = "-" if row["kl"] is None else f"{row['kl']:.3g}"
        console.print(
            f"learner: trained in step {row['train_step']} with advantage {row['advantage']:+.4f} on {row['n_tokens']} tokens "
            f"({row['n_clipped']} clipped), staleness {stale}, mismatch KL {kl}",
            markup=False,
        )


def _print_tokens(console: Console, tokens: Row, learner: Row | None) -> None:
    """The least likely sampled tokens: where the policy surprised itself."""
    sampled = _sampled(tokens)
    behaviour = tokens["behaviour_logprob"]
    if not sampled:
        console.print("tokens: none was sampled", style="dim", markup=False)
        return
    learned = (learner or {}).get("learner_logprob") or []
    learned = learned if len(learned) == len(sampled) else []
    entropy = (learner or {}).get("entropy") or []
    order = sorted(range(len(sampled)), key=lambda i: behaviour[i])[:_LEAST_LIKELY]
    table = Table(title=f"least likely of {len(sampled)} sampled tokens", title_justify="left", box=None, pad_edge=False)
    for name in ("position", "token id", "version", "logprob", "learner", "entropy"):
        table.add_column(name, justify="right")
    for i in sorted(order):
        position, token, version = sampled[i]
        cells = [str(position), str(token), str(version), _number(behaviour[i])]
        cells += [_number(learned[i]) if learned else "-", _number(entropy[i]) if len(entropy) == len(sampled) else "-"]
        table.add_row(*cells)
    console.print(table)


def _sampled(tokens: Row) -> list[tuple[int, int, int]]:
    """(position in the stream, token id, policy version) of every sampled token."""
    positions = [p for s in tokens["segments"] if s["kind"] == "sampled" for p in range(s["start"], s["start"] + s["len"])]
    starts = tokens["version_segments"]
    ends = [*(segment["start"] for segment in starts[1:]), len(positions)]
    versions = [segment["version"] for segment, end in zip(starts, ends, strict=True) for _ in range(end - segment["start"])]
    return [(p, tokens["token_ids"][p], v) for p, v in zip(positions, versions, strict=True)]


def _range(low: int, high: int) -> str:
    if low < 0:
        return "none"
    return f"version {low}" if low == high else f"versions {low} to {high}"


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
