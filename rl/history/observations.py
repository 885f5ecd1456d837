"""What an environment said once, against what it says now.

Two observations are the same when their messages are equal, or become equal by the rules below: things that differ from one run of the
same program to the next and that no policy should lean on. Everything else is a divergence.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from environments.records import Message
from rl.history.recorded import Said

Verdict = Literal["same", "by_rule", "diverged", "unknown"]
_DIFF_LINES, _LINE_CHARS = 400, 2000
_CONTEXT = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Something that may differ."""

    name: str
    about: str
    pattern: re.Pattern[str]
    instead: str


RULES = (
    Rule(name="address", about="addresses in memory, as repr prints them", pattern=re.compile(r"\b0x[0-9a-fA-F]{6,16}\b"), instead="0x…"),
    Rule(
        name="temporary",
        about="names that Python's tempfile makes below /tmp",
        pattern=re.compile(r"/tmp/tmp[a-z0-9_]{8}(?![a-z0-9_])"),
        instead="/tmp/tmp…",
    ),
    Rule(
        name="duration",
        about="how long a run of tests took, as pytest and unittest say it",
        pattern=re.compile(r"\bin \d+\.\d+ ?s\b"),
        instead="in … s",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What came after a turn, then and now."""

    verdict: Verdict
    rules: tuple[str, ...] = ()
    """Rules without which the two would differ."""
    why: str = ""
    diff: str = ""
    """Unified, from the recorded text to the replayed one."""


def compare(recorded: Sequence[Said], replayed: Sequence[Message], *, exact: bool) -> Compared:
    """Compare observations; `exact` takes the rules away."""
    if not all(said.whole for said in recorded):
        return Compared(verdict="unknown", why="the log has only the beginning and the end of it")
    then, now = _text([said.message for said in recorded]), _text(replayed)
    if then == now:
        return Compared(verdict="same")
    rules = () if exact else RULES
    old, new = _applied(rules, then), _applied(rules, now)
    if old == new:
        needed = tuple(rule.name for rule in rules if _differ_without(rule, then, now))
        return Compared(verdict="by_rule", rules=needed or tuple(rule.name for rule in rules if rule.pattern.search(then)))
    return Compared(verdict="diverged", why=_why(recorded, replayed), diff=unified(old, new))


def unified(then: str, now: str) -> str:
    """A unified diff from the first line that differs on; of a very long text only its beginning."""
    old, new = then.split("\n"), now.split("\n")
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, same - _CONTEXT)
    then_lines, now_lines = ([line[:_LINE_CHARS] for line in lines[start : start + _DIFF_LINES]] for lines in (old, new))
    return "\n".join(difflib.unified_diff(then_lines, now_lines, "recorded", "replayed", lineterm="", n=_CONTEXT))


def _differ_without(left_out: Rule, then: str, now: str) -> bool:
    rules = [rule for rule in RULES if rule is not left_out]
    return _applied(rules, then) != _applied(rules, now)


def _applied(rules: Sequence[Rule], text: str) -> str:
    for rule in rules:
        text = rule.pattern.sub(rule.instead, text)
    return text


def _text(messages: Sequence[Message]) -> str:
    """All that is compared, as lines."""
    return "\n".join(f"[{message.role}{_named(message)}]\n{message.content}" for message in messages)


def _named(message: Message) -> str:
    name = f" {message.name}" if message.name else ""
    return name + (f", exit code {message.exit_code}" if message.exit_code is not None else "")


def _why(recorded: Sequence[Said], replayed: Sequence[Message]) -> str:
    if len(recorded) != len(replayed):
        return f"{len(replayed)} messages came back, and {len(recorded)} had"
    return "another text came back"
