"""What the agent is shown after a turn: the result of its call, cut to a limit, and what is left of its budgets."""

import re

from environments.records import Budget

_UNSHOWN = re.compile("[\0\udc80-\udcff]")
_QUARTERS = 4


def cut_middle(head: bytes, tail: bytes = b"", *, dropped: int = 0, chars: int) -> str:
    """Output as text of about `chars` characters at most: its beginning and its end, with a note between them.

    `head` and `tail` are what was kept of the output, `dropped` the bytes between them that were not.
    """
    if not dropped:
        head, tail = head + tail, b""
    first, last = (data.decode("utf-8", "surrogateescape") for data in (head, tail))
    if not dropped:
        if len(first) <= chars:
            return _shown(first)
        last = first
    first, last = first[: chars // 2], last[-(chars // 2) :]
    left_out = len(head) + len(tail) + dropped - sum(len(text.encode("utf-8", "surrogateescape")) for text in (first, last))
    return f"{_shown(first)}\n[... {left_out} bytes left out ...]\n{_shown(last)}"


def _shown(text: str) -> str:
    """What can be tokenized and stored: a byte that is no UTF-8, and NUL, becomes U+FFFD."""
    return _UNSHOWN.sub("\ufffd", text)


def observation(text: str, budget: Budget | None) -> str:
    """CWM's form: the output, then the budgets, where they are known."""
    shown = text.rstrip("\n")
    output = f"<output>\n{shown}\n</output>" if shown else "<output>\n</output>"
    return output if budget is None else f"{output}\n\n{budget_block(budget)}"


def budget_block(budget: Budget) -> str:
    """Turns and tokens exactly, seconds in quarters of the whole, so that a repeated run shows the same text."""
    quarter = budget.seconds_in_all / _QUARTERS
    whole_quarters = min(int(max(budget.seconds, 0.0) // quarter), _QUARTERS) if quarter > 0 else 0
    time = f"at least {int(whole_quarters * quarter)} s" if whole_quarters else f"less than {max(int(quarter), 1)} s"
    return f"<budget>\n* Remaining turns: {budget.turns}\n* Remaining tokens: {max(budget.tokens, 0)}\n* Remaining time: {time}\n</budget>"
