"""The bodies of the edit and create tools, as CWM writes them.

    edit:    path                create:  path
             <<<<<<< SEARCH               content
             text to find
             =======
             text to put there
             >>>>>>> REPLACE

A line of the text that is a marker itself is written with a backslash in front, and one that is a marker behind backslashes with one
more: so any text can be written. An empty text is one empty line, or none.
"""

import re
from dataclasses import dataclass

from environments.reply import ToolCallError

SEARCH, DIVIDER, REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
_MARKER = re.compile(rf"(\\*)({SEARCH}|{DIVIDER}|{REPLACE})[ \t\r]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """Put `replace` where `search` stands in a file."""

    path: str
    search: str
    replace: str

    def body(self) -> str:
        """As text. Raises ValueError for a path that is empty or has a line break."""
        return "\n".join([_one_line(self.path), SEARCH, _escaped(self.search), DIVIDER, _escaped(self.replace), REPLACE])

    @staticmethod
    def read(body: str) -> "Edit":
        """The edit of a body. Raises ToolCallError."""
        path, line_break, rest = body.partition("\n")
        lines = rest.split("\n")
        while lines and not lines[-1].strip():
            lines.pop()
        marks = [(place, found[2]) for place, line in enumerate(lines) if (found := _MARKER.fullmatch(line)) and not found[1]]
        if not line_break or [mark for _, mark in marks] != [SEARCH, DIVIDER, REPLACE]:
            there = ", ".join(mark for _, mark in marks) or "none"
            raise ToolCallError(
                f"edit needs a path, then the lines {SEARCH}, {DIVIDER} and {REPLACE}, once each and in this order; found: {there}. "
                "A line of the text that looks like one of them is written with a backslash in front"
            )
        (first, _), (middle, _), (last, _) = marks
        if first != 0 or last != len(lines) - 1:
            raise ToolCallError(f"edit: nothing may stand between the path and {SEARCH}, and nothing behind {REPLACE}")
        return Edit(path=_path(path), search=_text(lines[1:middle]), replace=_text(lines[middle + 1 : last]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Create:
    """Make a file."""

    path: str
    content: str

    def body(self) -> str:
        """As text. Raises ValueError for a path that is empty or has a line break."""
        return f"{_one_line(self.path)}\n{self.content}"

    @staticmethod
    def read(body: str) -> "Create":
        """The file of a body. Raises ToolCallError."""
        path, _, content = body.partition("\n")
        return Create(path=_path(path), content=content)


def _one_line(path: str) -> str:
    if not path.strip() or "\n" in path or path.endswith("\r"):
        raise ValueError(f"path {path!r} cannot be written in a tool call: it must be one line that is not empty")
    return path


def _path(line: str) -> str:
    path = line.removesuffix("\r")
    if not path.strip() or "\0" in path:
        raise ToolCallError("the first line must be the path of a file")
    return path


def _escaped(text: str) -> str:
    return "\n".join(f"\\{line}" if _MARKER.fullmatch(line) else line for line in text.split("\n"))


def _text(lines: list[str]) -> str:
    return "\n".join(line[1:] if _MARKER.fullmatch(line) else line for line in lines)
