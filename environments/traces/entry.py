"""The source of a traced program: its lines, and the line of its entry."""

import ast
import warnings

MARK = "  # << START_OF_TRACE"
"""Ends the entry line in the text of a trace."""


def normal_source(source: str) -> str:
    """`source` with Python's own line ends as newline characters. Raises ValueError for text that no file can hold."""
    if "\0" in source:
        raise ValueError("the source holds a NUL character, which no Python program may; remove it")
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the source is no UTF-8 text: {error.reason} at character {error.start}") from None
    return source.replace("\r\n", "\n").replace("\r", "\n")


def source_lines(source: str) -> list[str]:
    """Lines without their ends; at least one."""
    lines = source.split("\n")
    return lines[:-1] if len(lines) > 1 and not lines[-1] else lines


def entry_line(source: str, *, entry: str | None) -> int:
    """Line of the function `entry`, or of the first statement of a script (None).

    Raises SyntaxError, and ValueError when there is no such name. Parsing is all that happens here; nothing of the source runs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes: the program's own business
            body = ast.parse(source).body
    except (RecursionError, MemoryError, ValueError) as error:
        raise SyntaxError(f"the source cannot be parsed: {error}") from None
    if entry is None:
        return body[0].lineno if body else 1
    defined: dict[str, int] = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined[statement.name] = statement.lineno
        elif isinstance(statement, ast.Assign):
            defined |= {target.id: statement.lineno for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            defined[statement.target.id] = statement.lineno
        elif isinstance(statement, ast.If | ast.Try):
            defined |= {part.name: part.lineno for part in ast.walk(statement) if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
    if entry not in defined:
        known = ", ".join(list(defined)[:10]) or "nothing"
        raise ValueError(f"entry {entry!r} is not defined at the top level of the program, which defines {known}")
    return defined[entry]
