"""How a message of the policy is read: the reasoning in front, and CWM's tool calls. Linear time.

A tool call is literal text:

    <tool: NAME>
    BODY
    </tool>
"""

import re
from dataclasses import dataclass

THINK_END = "</think>"
"""Ends the reasoning of a model that thinks in text."""
_OPENING = re.compile(r"<tool:([^<>\n]{0,100})>")
_CLOSING = "</tool>"


class ToolCallError(ValueError):
    """The message does not hold exactly one whole tool call; the text is one line for the policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One tool call."""

    name: str
    body: str
    """What stands between the tags, without the line breaks next to them."""


def final_part(text: str) -> str:
    """What stands behind the last `</think>`: the reply itself, without the reasoning; all of it when there is none."""
    return text.rpartition(THINK_END)[2]


def only_tool_call(text: str, *, exact: bool = False) -> ToolCall | None:
    """The tool call of a reply; None when it has none. Raises ToolCallError for more than one and for one that is not closed.

    `exact` keeps the body as it is, but for one line break next to each tag, and takes a second closing tag for an error instead of
    for a part of the text behind the call.
    """
    reply = final_part(text)
    openings = list(_OPENING.finditer(reply))
    if not openings:
        return None
    if len(openings) > 1:
        raise ToolCallError(f"{len(openings)} tool calls instead of exactly one")
    body, closing, rest = reply[openings[0].end() :].partition(_CLOSING)
    if not closing:
        raise ToolCallError(f"the tool call is not closed: end it with {_CLOSING}")
    if exact and _CLOSING in rest:
        raise ToolCallError(f"{rest.count(_CLOSING) + 1} closing tags {_CLOSING} instead of exactly one")
    body = body.removeprefix("\r\n") if body.startswith("\r\n") else body.removeprefix("\n")
    return ToolCall(name=openings[0][1].strip(), body=body.removesuffix("\n") if exact else body.rstrip())
