"""How a tool call is written: CWM's literal format, or JSON. Linear time, for any text.

    <tool: bash>            <tool_call>
    ls -l                   {"name": "bash", "arguments": {"command": "ls -l"}}
    </tool>                 </tool_call>

Any body can be written in both. In CWM's format the texts `<tool:`, `</tool>` and `</think>` of a body get a backslash behind their
`<`, and one more where backslashes stand there already; reading takes one off again. JSON has escapes of its own.
"""

import json
import re
from typing import Literal

from environments.records import Json
from environments.reply import ToolCall, ToolCallError, final_part, only_tool_call
from environments.swe.tool_bodies import Create, Edit

ToolFormat = Literal["cwm", "json"]
FORMATS: tuple[ToolFormat, ...] = ("cwm", "json")
TOOLS = ("bash", "edit", "create", "submit")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_TAG = re.compile(r"<(\\*)(tool:|/tool>|/think>)")
_ESCAPED_TAG = re.compile(r"<\\(\\*)(tool:|/tool>|/think>)")
_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_ARGUMENTS = {"bash": ("command",), "edit": ("path", "search", "replace"), "create": ("path", "content"), "submit": ("path",)}
_BODY = "input"
"""Argument that holds a whole body, for one that the named arguments cannot say."""


def parse_call(text: str, *, tool_format: ToolFormat) -> ToolCall:
    """The one tool call of a policy's message. Raises ToolCallError, whose text is one line for the policy."""
    call = _parse_cwm(text) if tool_format == "cwm" else _parse_json(final_part(text))
    try:
        call.body.encode()
    except UnicodeEncodeError:
        raise ToolCallError("the tool call holds a lone surrogate, which no file and no command can hold") from None
    return call


def render_call(call: ToolCall, *, tool_format: ToolFormat) -> str:
    """A message with that call; `parse_call` gives the same call back. Raises ValueError for a name that cannot be written."""
    if not _NAME.fullmatch(call.name):
        raise ValueError(f"tool name {call.name!r} cannot be written; a name is letters, digits, '_' and '-'")
    if tool_format == "cwm":
        body = _TAG.sub(lambda found: f"<\\{found[1]}{found[2]}", call.body)
        return f"<tool: {call.name}>\n{body}\n</tool>"
    text = json.dumps({"name": call.name, "arguments": _arguments(call)}, ensure_ascii=False)
    # A `<` stands in strings only. These two would be taken for the tags of the call or for the end of the reasoning.
    text = text.replace("<tool_call>", "\\u003ctool_call>").replace("</", "<\\/")
    return f"{_OPENING}\n{text}\n{_CLOSING}"


def _parse_cwm(text: str) -> ToolCall:
    call = only_tool_call(text, exact=True)
    if call is None:
        raise ToolCallError("no tool call; write exactly one, as <tool: NAME>, its text, </tool>")
    return ToolCall(name=call.name, body=_ESCAPED_TAG.sub(r"<\1\2", call.body))


def _parse_json(reply: str) -> ToolCall:
    openings, closings = reply.count(_OPENING), reply.count(_CLOSING)
    if openings == 0:
        raise ToolCallError(f'no tool call; write exactly one, as {_OPENING}{{"name": ..., "arguments": {{...}}}}{_CLOSING}')
    if openings > 1:
        raise ToolCallError(f"{openings} tool calls instead of exactly one")
    text, closing, _ = reply.partition(_OPENING)[2].partition(_CLOSING)
    if not closing or closings > 1:
        raise ToolCallError(f"the tool call must be closed by one {_CLOSING}")
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ToolCallError(f"the tool call is no JSON: {' '.join(str(error).split())[:100]}") from None
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        raise ToolCallError("the tool call must be a JSON object with name and arguments, and nothing else")
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ToolCallError("name must be a string, arguments a JSON object")
    return ToolCall(name=name, body=_body(name, arguments))


def _body(name: str, arguments: dict[str, Json]) -> str:
    if wrong := [key for key, value in arguments.items() if not isinstance(value, str)]:
        raise ToolCallError(f"argument {wrong[0][:40]!r} must be a string")
    if set(arguments) == {_BODY}:
        return str(arguments[_BODY])
    expected = _ARGUMENTS.get(name)
    if expected is None:
        raise ToolCallError(f"there is no tool {name[:40]!r}; tools: {', '.join(TOOLS)}")
    if set(arguments) != set(expected) and not (name == "submit" and not arguments):
        raise ToolCallError(f"{name} takes the arguments {', '.join(expected)}, not {', '.join(arguments)[:100] or 'none'}")
    try:
        if name == "edit":
            return Edit(**arguments).body()
        return Create(**arguments).body() if name == "create" else "".join(arguments.values())
    except ValueError as error:
        raise ToolCallError(str(error)[:200]) from None


def _arguments(call: ToolCall) -> dict[str, str]:
    """The arguments from which `_body` makes the call's body again."""
    arguments: dict[str, str] = {}
    if call.name == "bash":
        arguments = {"command": call.body}
    elif call.name == "submit":
        arguments = {"path": call.body} if call.body else {}
    elif call.name in ("edit", "create"):
        try:
            made = Edit.read(call.body) if call.name == "edit" else Create.read(call.body)
            arguments = {name: getattr(made, name) for name in _ARGUMENTS[call.name]} if made.body() == call.body else {}
        except ValueError:
            arguments = {}
    return arguments if arguments or (call.name == "submit" and not call.body) else {_BODY: call.body}
