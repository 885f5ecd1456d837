"""What a failing test shows: the statement that failed, the lines before it, the message; from its source and pytest's report.

The report comes from the process of the broken code, so it is text for people and nothing more. Of the traceback, only what stands in the
test itself is used: the rest would say where the bug is.
"""

import ast
import builtins
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from environments.swe.factory.source import Function
from environments.swe.records import TestOutcome, TreeChange

LONGEST_EXAMPLE, LONGEST_MESSAGE = 8, 6
"""Lines."""
_WIDEST = 200
"""Characters of a line of a message."""
_NOISE = re.compile(r"^(Use -v to get|\.\.\.Full output truncated|Full diff:|\+  where .* = <)")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
_NO_SUBJECTS = frozenset((*dir(builtins), "self", "cls", "pytest", "unittest", "mock", "assert_", "math", "os", "re", "json"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One failing test, for an issue text."""

    test: str
    """Node id."""
    statement: str
    """The statement of the test that failed; empty when it is not known, or long."""
    example: str
    """That statement with those before it; empty when they are long."""
    values: str
    """Values of the test's parameters, `a = 1, b = 2`; empty when it has none."""
    message: str
    """The error as pytest shows it, shortened."""
    called: str
    """What the statement calls, `parse` or `Table.insert`; empty when it calls nothing of the repository's."""

    @property
    def error(self) -> str:
        """Name of the exception; `AssertionError` for a failed `assert`."""
        first = self.message.partition("\n")[0]
        named = re.match(r"(?:\w+\.)*(\w*(?:Error|Exception|Warning|Exit|Interrupt|Iteration))\b", first)
        return named[1] if named else "AssertionError"

    @property
    def headline(self) -> str:
        """The first line of the message."""
        return self.message.partition("\n")[0]


def read_failure(outcome: TestOutcome, files: Mapping[str, TreeChange]) -> Failure:
    """What is known of a failing test. `files`: the repository's, by path."""
    detail = outcome.detail.encode(errors="replace").decode()  # lone surrogates cannot be stored
    path = outcome.id.partition("::")[0]
    source = files[path].data.decode(errors="replace") if path in files else ""
    function = _find(outcome.id, source)
    statement, example = _statements(function, source, _failing_line(detail, path, function)) if function else (None, "")
    shown = ast.get_source_segment(source, statement, padded=True) if statement else None
    return Failure(
        test=outcome.id,
        statement=_short(shown),
        example=example,
        values=_values(detail, function),
        message=_message(detail),
        called=_called(statement) if statement else "",
    )


def _find(test: str, source: str) -> Function | None:
    """The function of a node id."""
    names = test.partition("[")[0].split("::")[1:]
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError):
        return None
    found = None
    for name in names:
        found = next((node for node in body if isinstance(node, Function | ast.ClassDef) and node.name == name), None)
        if found is None:
            return None
        body = found.body
    return found if isinstance(found, Function) else None


def _failing_line(detail: str, path: str, function: Function) -> int | None:
    """The line of the test at which it failed; None when the report does not say."""
    lines = [int(line) for line in re.findall(rf"^{re.escape(path)}:(\d+):", detail, re.M)]
    return next((line for line in lines if function.lineno <= line <= (function.end_lineno or 0)), None)


def _statements(function: Function, source: str, line: int | None) -> tuple[ast.stmt | None, str]:
    """The statement of a test at a line, or its only `assert`, and the text from the test's first statement up to it."""
    asserts = [node for node in function.body if isinstance(node, ast.Assert)]
    if line is not None:
        at = next((node for node in function.body if node.lineno <= line <= (node.end_lineno or 0)), None)
    else:
        at = asserts[0] if len(asserts) == 1 else None
    if at is None:
        return None, ""
    before = function.body[: function.body.index(at)]
    kept = [node for node in before if not isinstance(node, ast.Assert | ast.Expr) or _has_effect(node)]
    parts = [ast.get_source_segment(source, node, padded=True) or "" for node in (*kept, at)]
    return at, _short("\n".join(textwrap.dedent(part) for part in parts))


def _has_effect(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)


def _short(text: str | None) -> str:
    """A piece of code without its indent; nothing when it is long."""
    plain = textwrap.dedent(text or "").strip("\n")
    return plain if plain.count("\n") < LONGEST_EXAMPLE and len(plain) <= LONGEST_EXAMPLE * 100 else ""


def _values(detail: str, function: Function | None) -> str:
    """The lines above the test's source in a report, where pytest shows what its arguments are."""
    if function is None:
        return ""
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args) if one.arg not in ("self", "cls")]
    top = re.split(r"^(?:    |@|def |>)", detail, maxsplit=1, flags=re.M)[0]
    lines = [line for line in top.splitlines() if re.match(r"[A-Za-z_]\w* = ", line)]
    shown = ", ".join(lines)
    values = shown[shown.find(f"{names[0]} = ") :] if names and f"{names[0]} = " in shown else ""
    return values if len(values) <= _WIDEST and "<" not in values else ""


def _message(detail: str) -> str:
    """The lines that pytest marks with E, without what differs from run to run."""
    marked = [line[1:].strip() for line in detail.splitlines() if re.match(r"E( |$)", line)]
    lines = [_ADDRESS.sub("0x...", line)[:_WIDEST] for line in marked if line and not _NOISE.match(line)]
    return "\n".join(lines[:LONGEST_MESSAGE])


def _called(statement: ast.stmt) -> str:
    """The first function or method that a statement calls, the innermost ones last."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = ast.unparse(node.func)
            if re.fullmatch(r"[\w.]{1,60}", name) and name.split(".")[0] not in _NO_SUBJECTS:
                return name
    return ""
