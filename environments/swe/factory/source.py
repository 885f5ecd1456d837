"""A Python file as bytes with its syntax tree: where nodes stand, and what an edit of one span makes of the file."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

Function = ast.FunctionDef | ast.AsyncFunctionDef
Position = ast.stmt | ast.expr | ast.alias | ast.keyword
"""Nodes that know where they stand."""
_BOM = b"\xef\xbb\xbf"
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """One span of a file and what stands there instead."""

    start: int
    """Offset, bytes."""
    end: int
    text: bytes


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that parses. Offsets are bytes of `data`."""

    path: str
    """Relative to the work folder."""
    data: bytes
    tree: ast.Module

    @staticmethod
    def of(path: str, data: bytes) -> "Source":
        """Raises ValueError for a file that is not Python in UTF-8."""
        if data.startswith(_BOM):
            raise ValueError("it starts with a byte order mark")
        if any((cookie := _COOKIE.match(line)) and cookie[1].lower() not in (b"utf-8", b"utf8") for line in data.splitlines()[:2]):
            raise ValueError("it is not in UTF-8")
        return Source(path=path, data=data, tree=parse(data))

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return (0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", self.data)))

    def start(self, node: Position) -> int:
        """Where a node begins; a function or class at its `def`, not at its decorators."""
        return self._starts[node.lineno - 1] + node.col_offset

    def end(self, node: Position) -> int:
        """Behind a node's last byte."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: Position) -> bytes:
        """A node as it is written."""
        return self.data[self.start(node) : self.end(node)]

    def apply(self, edit: Edit) -> bytes:
        """The file with an edit."""
        return self.data[: edit.start] + edit.text + self.data[edit.end :]

    def replace(self, node: Position, text: bytes) -> Edit:
        """Put a text in a node's place."""
        return Edit(start=self.start(node), end=self.end(node), text=text)

    def replace_block(self, block: Sequence[ast.stmt], text: bytes) -> Edit:
        """Put a text in the place of all statements of a block, the decorators of the first one included."""
        decorators = getattr(block[0], "decorator_list", ())
        start = self.start(decorators[0]) - 1 if decorators else self.start(block[0])
        return Edit(start=start, end=self.end(block[-1]), text=text)

    def remove_statement(self, statement: ast.stmt, block: Sequence[ast.stmt]) -> Edit:
        """Take a statement out of its block: its lines, when it has them for itself and is not the last of the block, else `pass`."""
        start, end = self._starts[statement.lineno - 1], self.end(statement)
        line_end = next((at for at in self._starts if at >= end and at > start), len(self.data))
        before, behind = self.data[start : self.start(statement)], self.data[end:line_end].strip()
        alone = not before.strip() and (not behind or behind.startswith(b"#"))
        if alone and len(block) > 1 and not isinstance(statement, Function | ast.ClassDef):
            return Edit(start=start, end=line_end, text=b"")
        return self.replace(statement, b"pass")

    def remove_item(self, items: Sequence[Position], index: int) -> Edit:
        """Take one of several items of a list out, with the comma at its side."""
        if index + 1 < len(items):
            return Edit(start=self.start(items[index]), end=self.start(items[index + 1]), text=b"")
        return Edit(start=self.end(items[index - 1]), end=self.end(items[index]), text=b"")

    def between(self, left: Position, right: Position, words: str) -> tuple[int, int] | None:
        """Span of an operator (or another sign) between two nodes; comments between them do not count."""
        start, end = self.end(left), self.start(right)
        gap = re.sub(rb"#[^\r\n]*", lambda comment: b" " * len(comment[0]), self.data[start:end])
        pattern = rb"[\s\\]+".join(re.escape(word.encode()) for word in words.split())
        found = re.search(pattern, gap)
        return (start + found.start(), start + found.end()) if found else None


def parse(data: bytes) -> ast.Module:
    """The syntax tree. Raises ValueError for what Python does not take."""
    try:
        return ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it does not parse: {error}") from error


def without_docstring(body: Sequence[ast.stmt]) -> Sequence[ast.stmt]:
    """The statements of a body behind its docstring."""
    first = body[0] if body else None
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if documented else body
