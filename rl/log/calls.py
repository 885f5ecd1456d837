"""The tool call of a message, in whichever of the known forms it is written."""

from environments.reply import ToolCall, ToolCallError
from environments.swe.tool_format import parse_call

_JSON_OPENING = "<tool_call>"
_CWM_OPENING = "<tool:"


def tool_call(text: str) -> ToolCall | None:
    """None for a message without exactly one whole call."""
    if _CWM_OPENING not in text and _JSON_OPENING not in text:
        return None
    try:
        return parse_call(text, tool_format="json" if _JSON_OPENING in text else "cwm")
    except ToolCallError:
        return None
