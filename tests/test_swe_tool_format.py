"""Tool calls as text: any body comes back as it was, and no text of a policy takes long or breaks anything."""

import ast
import random
import sys
from pathlib import Path

import pytest

from environments.reply import ToolCall, ToolCallError
from environments.swe.tool_bodies import Create, Edit
from environments.swe.tool_format import FORMATS, TOOLS, ToolFormat, parse_call, render_call

PIECES = (
    *("<", "\\", "tool:", "/tool>", "/think>", "</tool>", "<tool: bash>", "</think>", "<tool_call>", "</tool_call>", "\n", "\r", " ", "\t"),
    *("a", "é", '"', "\0", "=======", "<<<<<<< SEARCH", ">>>>>>> REPLACE", "path.py\n", "{", "}", "\u2028"),
)


def some_text(chance: random.Random, most: int) -> str:
    return "".join(chance.choice(PIECES) for _ in range(chance.randrange(most)))


@pytest.mark.parametrize("tool_format", FORMATS)
def test_any_body_comes_back(tool_format: ToolFormat) -> None:
    chance = random.Random(7)
    for _ in range(4000):
        call = ToolCall(name=chance.choice((*TOOLS, "other-tool")), body=some_text(chance, 14))
        text = render_call(call, tool_format=tool_format)
        assert parse_call(text, tool_format=tool_format) == call
        assert parse_call(f"I think <tool: x></think>\nso: {text}\nthat is it", tool_format=tool_format) == call


def test_any_edit_and_file_come_back() -> None:
    chance = random.Random(8)
    for _ in range(4000):
        edit = Edit(path="a b/c.py", search=some_text(chance, 10), replace=some_text(chance, 10))
        assert Edit.read(edit.body()) == edit
        file = Create(path="a b/c.py", content=some_text(chance, 10))
        assert Create.read(file.body()) == file


def test_calls_are_written_as_cwm_writes_them() -> None:
    edit = Edit(path="src/m.py", search="    a\n    b", replace="    c")
    call = ToolCall(name="edit", body=edit.body())
    assert render_call(call, tool_format="cwm") == (
        "<tool: edit>\nsrc/m.py\n<<<<<<< SEARCH\n    a\n    b\n=======\n    c\n>>>>>>> REPLACE\n</tool>"
    )
    assert render_call(call, tool_format="json") == (
        '<tool_call>\n{"name": "edit", "arguments": {"path": "src/m.py", "search": "    a\\n    b", "replace": "    c"}}\n</tool_call>'
    )
    submit = ToolCall(name="submit", body="")
    assert render_call(submit, tool_format="json") == '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
    with pytest.raises(ValueError, match="cannot be written"):
        render_call(ToolCall(name="a>b", body=""), tool_format="cwm")


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("<tool: bash>\nls\n</tool>", "ls"),
        ("<tool:bash>ls</tool>", "ls"),
        ("<tool: bash>\r\nls\n</tool> bye", "ls"),
        ("<tool: bash>\n  ls  \n\n</tool>", "  ls  \n"),
        ("<tool: bash>\n</tool>", ""),
        ("<tool: bash>\necho '<\\/tool>'\n</tool>", "echo '</tool>'"),
        ("<tool: bash>\nno\n</tool></think><tool: bash>\nyes\n</tool>", "yes"),
    ],
)
def test_what_cwms_format_takes(text: str, body: str) -> None:
    assert parse_call(text, tool_format="cwm") == ToolCall(name="bash", body=body)


@pytest.mark.parametrize(
    ("tool_format", "text", "message"),
    [
        ("cwm", "hello", "no tool call"),
        ("cwm", "<tool: bash>\nls", "not closed"),
        ("cwm", "<tool: bash>\nls\n</tool></think> done", "no tool call"),
        ("cwm", "<tool: bash>\nls\n</tool>\n<tool: bash>\nls\n</tool>", "2 tool calls instead of exactly one"),
        ("cwm", "<tool: bash>\necho '</tool>'\n</tool>", "2 closing tags"),
        ("json", "hello", "no tool call"),
        ("json", "<tool_call>{}", "must be closed by one"),
        ("json", "<tool_call>{}</tool_call><tool_call>{}</tool_call>", "2 tool calls"),
        ("json", "<tool_call>ls</tool_call>", "is no JSON"),
        ("json", '<tool_call>{"name": "bash"}</tool_call>', "with name and arguments"),
        ("json", '<tool_call>{"name": 1, "arguments": {}}</tool_call>', "name must be a string"),
        ("json", '<tool_call>{"name": "bash", "arguments": {"command": 1}}</tool_call>', "'command' must be a string"),
        ("json", '<tool_call>{"name": "bash", "arguments": {}}</tool_call>', "bash takes the arguments command, not none"),
        (
            "json",
            '<tool_call>{"name": "edit", "arguments": {"path": "a", "search": "b"}}</tool_call>',
            "path, search, replace, not path, search",
        ),
        ("json", '<tool_call>{"name": "create", "arguments": {"path": "a\\nb", "content": ""}}</tool_call>', "must be one line"),
        ("json", '<tool_call>{"name": "python", "arguments": {"code": "1"}}</tool_call>', "there is no tool 'python'"),
        ("json", '<tool_call>{"name": "bash", "arguments": {"command": "\\ud800"}}</tool_call>', "lone surrogate"),
    ],
)
def test_what_is_no_call_is_told(tool_format: ToolFormat, text: str, message: str) -> None:
    with pytest.raises(ToolCallError) as caught:
        parse_call(text, tool_format=tool_format)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "edit needs a path"),
        ("m.py\na\n=======\nb\n>>>>>>> REPLACE", "found: =======, >>>>>>> REPLACE"),
        ("m.py\n<<<<<<< SEARCH\na\n=======\n=======\nb\n>>>>>>> REPLACE", "once each"),
        ("m.py\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE", "once each"),
        ("m.py\n\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE", "nothing may stand"),
        ("m.py\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\nend", "nothing may stand"),
        (" \n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE", "the path of a file"),
    ],
)
def test_what_is_no_edit_is_told(body: str, message: str) -> None:
    with pytest.raises(ToolCallError) as caught:
        Edit.read(body)
    assert message in str(caught.value)


def test_edits_may_be_written_loosely() -> None:
    assert Edit.read("m.py\r\n<<<<<<< SEARCH \na\n=======\r\n>>>>>>> REPLACE\n\n") == Edit(path="m.py", search="a", replace="")


MILLION = 1_000_000
LONG = (
    "<tool:" * MILLION,
    "<tool: a>" * MILLION,
    "<tool: a>" + "</tool>" * MILLION,
    "<tool: bash>" + "<\\" * MILLION + "</tool>",
    "<tool: bash>" + "<" + "\\" * MILLION + "/tool>" + "</tool>",
    "<tool: bash>\n" + "\n" * MILLION + "</tool>",
    "</think>" * MILLION,
    "<tool_call>" + "[" * MILLION + "</tool_call>",
    "<tool_call>" + "1" * MILLION + "</tool_call>",
    "<tool_call>" + '{"name":' * MILLION + "</tool_call>",
    "<tool_call>" * MILLION,
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("tool_format", FORMATS)
def test_long_hostile_texts_are_read_at_once(tool_format: ToolFormat) -> None:
    """Anything that took more than linear time would take hours."""
    for text in LONG:
        try:
            assert len(parse_call(text, tool_format=tool_format).body) <= len(text)
        except ToolCallError as error:
            assert len(str(error)) < 500
    for body in (
        "\\" * MILLION + "=======",
        "=======\n" * MILLION,
        "<<<<<<< SEARCH\n" * MILLION,
        "p\n<<<<<<< SEARCH\n" + "\\=======\n" * MILLION,
    ):
        with pytest.raises(ToolCallError):
            Edit.read(body)


def test_what_runs_inside_is_python_3_8_of_the_standard_library() -> None:
    inside = Path(__file__).parent.parent / "environments" / "swe" / "inside"
    package, modules = "environments.swe.inside", ("driver", "driver_files", "driver_changes", "droppings", "json_text", "modes", "stage")
    for name in modules:
        tree = ast.parse((inside / f"{name}.py").read_text(), feature_version=(3, 8))
        names = {
            node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        own = {module for module in names if module.startswith(f"{package}.")}
        assert {module.partition(".")[0] for module in names - own} <= sys.stdlib_module_names
        assert own <= {f"{package}.{module}" for module in modules}
