"""What of a function can change its behaviour: the nodes that mutations may touch."""

import ast
from collections.abc import Iterator, Sequence

from environments.swe.factory.source import Function, without_docstring

_LOGGERS = {"logging", "logger", "log", "_log", "_logger", "LOG", "LOGGER", "warnings"}
_PRINTERS = {"print", "warn"}
_OWN_SCOPE = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
"""Functions in a function have an entry of their own among those that tests cover."""


def expressions(function: Function) -> Iterator[ast.expr]:
    """The expressions of a function's defaults and body, outermost first, in the order of the source.

    Without annotations, decorators, docstrings, nested functions, what is only logged or said in an error, and the inside of f-strings
    (Python 3.11 does not know where that stands).
    """
    arguments = function.args
    for default in (*arguments.defaults, *(one for one in arguments.kw_defaults if one is not None)):
        yield from _below(default)
    for statement in without_docstring(function.body):
        yield from _expressions_of(statement)


def blocks(function: Function) -> Iterator[Sequence[ast.stmt]]:
    """Every list of statements of a function, its own body without the docstring first; without nested functions."""
    pending = [without_docstring(function.body)]
    while pending:
        block = pending.pop(0)
        if not block:
            continue
        yield block
        for statement in block:
            if not isinstance(statement, _OWN_SCOPE):
                pending += _blocks_of(statement)


def statements(function: Function) -> Iterator[tuple[ast.stmt, Sequence[ast.stmt]]]:
    """Every statement with its block."""
    for block in blocks(function):
        for statement in block:
            yield statement, block


def is_message(node: ast.AST) -> bool:
    """Whether an expression only tells people something: a call of a logger, `print` or `warn`, or a text alone."""
    if isinstance(node, ast.Constant | ast.JoinedStr):
        return True
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        return name in _LOGGERS
    return isinstance(node.func, ast.Name) and node.func.id in _PRINTERS


def _blocks_of(statement: ast.stmt) -> list[Sequence[ast.stmt]]:
    found: list[Sequence[ast.stmt]] = [
        getattr(statement, name) for name in ("body", "orelse", "finalbody") if getattr(statement, name, None)
    ]
    found += [handler.body for handler in getattr(statement, "handlers", ())]
    return found + [case.body for case in getattr(statement, "cases", ())]


def _expressions_of(statement: ast.stmt) -> Iterator[ast.expr]:
    if isinstance(statement, _OWN_SCOPE | ast.Raise):
        return
    if isinstance(statement, ast.Expr) and is_message(statement.value):
        return
    for name, value in ast.iter_fields(statement):
        if name in ("annotation", "msg"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.expr):
                yield from _below(child)
            elif isinstance(child, ast.stmt):
                yield from _expressions_of(child)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                for inner in child.body:
                    yield from _expressions_of(inner)
            elif isinstance(child, ast.withitem):
                yield from _below(child.context_expr)


def _below(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.JoinedStr):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _below(child)
        elif isinstance(child, ast.keyword):
            yield from _below(child.value)
        elif isinstance(child, ast.comprehension):
            for part in (child.target, child.iter, *child.ifs):
                yield from _below(part)
