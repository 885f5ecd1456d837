"""The tools as the system message describes them."""

from environments.swe.agent_options import AgentOptions
from environments.swe.tool_bodies import DIVIDER, REPLACE, SEARCH

_ABOUT = {
    "bash": "Runs commands in a bash session. Folder, variables and functions are kept from call to call. Standard input is empty. A call "
    "of more than {seconds:g} seconds is ended, and a fresh session starts.",
    "edit": "Replaces a text in a file. The text to find must be in the file exactly once, as it stands there, white space included.",
    "create": "Makes a file that is not there yet, and its parent folders.",
    "submit": "Ends the episode. What was changed in {folder} is the result. With the name of a patch file, that patch is the result; it "
    "must start with `diff`.",
}
_CWM = {
    "bash": "<tool: bash>\n[commands]\n</tool>",
    "edit": f"<tool: edit>\n[path]\n{SEARCH}\n[text to find]\n{DIVIDER}\n[text to put there]\n{REPLACE}\n</tool>",
    "create": "<tool: create>\n[path]\n[content]\n</tool>",
    "submit": "<tool: submit>\n[nothing, or the name of a patch file]\n</tool>",
}
_JSON = {
    "bash": '<tool_call>\n{"name": "bash", "arguments": {"command": "..."}}\n</tool_call>',
    "edit": '<tool_call>\n{"name": "edit", "arguments": {"path": "...", "search": "...", "replace": "..."}}\n</tool_call>',
    "create": '<tool_call>\n{"name": "create", "arguments": {"path": "...", "content": "..."}}\n</tool_call>',
    "submit": '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>',
}
_ESCAPES = (
    "A tag (`<tool:`, `</tool>`, `</think>`) that is a part of the text is written with a backslash behind its `<`; in edit, a line of "
    f"the text that is {SEARCH}, {DIVIDER} or {REPLACE} itself with a backslash in front."
)


def tool_docs(options: AgentOptions, *, work_dir: str) -> str:
    """Empty for `tool_docs: none`."""
    if options.tool_docs == "none":
        return ""
    calls = _CWM if options.tool_format == "cwm" else _JSON
    if options.tool_docs == "short":
        return "\n\n".join(["Tools, exactly one call in each message:", *calls.values()])
    about = {name: text.format(seconds=options.command_seconds, folder=work_dir) for name, text in _ABOUT.items()}
    tools = [f"{calls[name]}\n{text}" for name, text in about.items()]
    rules = f"Each of your messages must hold exactly one tool call. Its result comes back, with what is left of your turns, tokens and \
time. Only submit hands in a result: an episode that runs out of one of them has none. You start in {work_dir}; there is no network."
    escapes = [_ESCAPES] if options.tool_format == "cwm" else []
    return "\n\n".join(["You work on a repository in a container, with these tools:", *tools, rules, *escapes])
