"""Mutations that remove: a statement, a body, a return or its value, an import."""

import ast
from collections.abc import Iterator, Sequence

from environments.swe.factory.source import Edit, Function, Source, without_docstring
from environments.swe.factory.walk import blocks, expressions, is_message, statements


def statement_removed(source: Source, function: Function) -> Iterator[Edit]:
    """A statement less: a call, an assignment, a jump, a check, or a whole `if` or loop."""
    for statement, block in statements(function):
        if isinstance(statement, ast.Return | ast.Import | ast.ImportFrom | ast.Pass | ast.Global | ast.Nonlocal):
            continue
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.With | ast.AsyncWith | ast.Try):
            continue
        if not (isinstance(statement, ast.Expr) and is_message(statement.value)) and not _is_elif(statement, source):
            yield source.remove_statement(statement, block)


def body_removed(source: Source, function: Function) -> Iterator[Edit]:
    """`pass` for all statements of the function, or of a block of two statements or more."""
    whole = without_docstring(function.body)
    for block in blocks(function):
        if block is not whole and len(block) < 2:
            continue
        if not isinstance(block[0], ast.Pass) and not _is_elif(block[0], source) and not _is_stub(block):
            yield source.replace_block(block, b"pass")


def return_removed(source: Source, function: Function) -> Iterator[Edit]:
    """A `return` without its value, or no `return`."""
    for statement, block in statements(function):
        if not isinstance(statement, ast.Return):
            continue
        if statement.value is not None and not (isinstance(statement.value, ast.Constant) and statement.value.value is None):
            yield source.replace(statement, b"return")
        if statement is not function.body[-1]:  # at the end the two are the same
            yield source.remove_statement(statement, block)


def import_removed(source: Source, function: Function) -> Iterator[Edit]:
    """An import less that the function uses, its own or the module's."""
    used = {node.id for node in expressions(function) if isinstance(node, ast.Name)}
    own = [(statement, block) for statement, block in statements(function)]
    for statement, block in [*own, *((one, source.tree.body) for one in source.tree.body)]:
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            continue
        for at, alias in enumerate(statement.names):
            if (alias.asname or alias.name.partition(".")[0]) not in used:
                continue
            many = len(statement.names) > 1
            yield source.remove_item(statement.names, at) if many else source.remove_statement(statement, block)


def _is_elif(statement: ast.stmt, source: Source) -> bool:
    return isinstance(statement, ast.If) and source.data[source.start(statement) :].startswith(b"elif")


def _is_stub(block: Sequence[ast.stmt]) -> bool:
    """Whether a body does nothing but say that there is nothing."""
    only = block[0]
    return len(block) == 1 and (isinstance(only, ast.Raise) or (isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant)))
