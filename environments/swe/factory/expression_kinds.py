"""Mutations of expressions: operators, constants, conditions, arguments, variables. Each yields edits of one span."""

import ast
import re
from collections.abc import Iterator

from environments.swe.factory.source import Edit, Function, Source
from environments.swe.factory.walk import expressions, is_message, statements

_ARITHMETIC: dict[type[ast.operator], tuple[str, tuple[str, ...]]] = {
    ast.Add: ("+", ("-", "*")),
    ast.Sub: ("-", ("+", "*")),
    ast.Mult: ("*", ("+", "-")),
    ast.Div: ("/", ("*", "//")),
    ast.FloorDiv: ("//", ("*", "/")),
    ast.Mod: ("%", ("*", "//")),
    ast.Pow: ("**", ("*",)),
    ast.LShift: ("<<", (">>",)),
    ast.RShift: (">>", ("<<",)),
    ast.BitAnd: ("&", ("|",)),
    ast.BitOr: ("|", ("&",)),
    ast.BitXor: ("^", ("|",)),
}
_COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<")),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
_ZERO_SAME, _ONE_SAME = {"+", "-", "|", "^", "<<", ">>"}, {"*", "/", "//", "**"}
"""Operators that give back their left side when 0 (or 1) is on the right."""
_LARGEST = 10**9
"""A larger number is likely a mask or a seed, and off by one of it likely nothing."""


def arithmetic(source: Source, function: Function) -> Iterator[Edit]:
    """Another arithmetic or bit operator."""
    for node in expressions(function):
        if isinstance(node, ast.BinOp) and not _formats(node):
            old, others = _ARITHMETIC.get(type(node.op), ("", ()))
            if old and (span := source.between(node.left, node.right, old)):
                for new in others:
                    if not _same_value(node.right, old, new):
                        yield Edit(start=span[0], end=span[1], text=new.encode())


def augmented(source: Source, function: Function) -> Iterator[Edit]:
    """Another operator of an augmented assignment."""
    for statement, _ in statements(function):
        if isinstance(statement, ast.AugAssign):
            old, others = _ARITHMETIC.get(type(statement.op), ("", ()))
            if old and (span := source.between(statement.target, statement.value, f"{old}=")):
                for new in others:
                    if not _same_value(statement.value, old, new):
                        yield Edit(start=span[0], end=span[1], text=f"{new}=".encode())


def comparison(source: Source, function: Function) -> Iterator[Edit]:
    """Another comparison."""
    for node in expressions(function):
        if isinstance(node, ast.Compare):
            operands = (node.left, *node.comparators)
            for at, operator in enumerate(node.ops):
                old, others = _COMPARISONS[type(operator)]
                if span := source.between(operands[at], operands[at + 1], old):
                    for new in others:
                        yield Edit(start=span[0], end=span[1], text=new.encode())


def boolean(source: Source, function: Function) -> Iterator[Edit]:
    """`and` for `or`, and the other way round."""
    for node in expressions(function):
        if isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for left, right in zip(node.values, node.values[1:], strict=False):
                if span := source.between(left, right, old):
                    yield Edit(start=span[0], end=span[1], text=new.encode())


def constant(source: Source, function: Function) -> Iterator[Edit]:
    """A whole number that is off by one, or the other truth value."""
    for node in expressions(function):
        if not isinstance(node, ast.Constant):
            continue
        text = source.text(node)
        if isinstance(node.value, bool):
            yield source.replace(node, str(not node.value).encode())
        elif isinstance(node.value, int) and re.fullmatch(rb"\d+", text) and node.value < _LARGEST:
            yield source.replace(node, str(node.value + 1).encode())
            if node.value > 0:
                yield source.replace(node, str(node.value - 1).encode())


def condition(source: Source, function: Function) -> Iterator[Edit]:
    """A condition of `if`, `while`, a conditional expression or a comprehension turned round."""
    conditions = [statement.test for statement, _ in statements(function) if isinstance(statement, ast.If | ast.While)]
    for node in expressions(function):
        if isinstance(node, ast.IfExp):
            conditions.append(node.test)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            conditions += [test for generator in node.generators for test in generator.ifs]
    for test in conditions:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yield Edit(start=source.start(test), end=source.start(test.operand), text=b"")
        elif not isinstance(test, ast.Constant | ast.NamedExpr):
            simple = isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
            yield source.replace(test, b"not " + source.text(test) if simple else b"not (" + source.text(test) + b")")


def argument_dropped(source: Source, function: Function) -> Iterator[Edit]:
    """One argument less in a call."""
    for call in _calls(function):
        items: list[ast.expr | ast.keyword] = sorted((*call.args, *call.keywords), key=source.start)
        for at, item in enumerate(items):
            if isinstance(item, ast.Starred) or (isinstance(item, ast.keyword) and item.arg is None):
                continue
            if len(items) > 1:
                yield source.remove_item(items, at)
            elif not isinstance(item, ast.GeneratorExp) and (opening := source.between(call.func, item, "(")):
                yield Edit(start=opening[1], end=source.end(call) - 1, text=b"")


def argument_order(source: Source, function: Function) -> Iterator[Edit]:
    """Two neighbouring positional arguments change places."""
    for call in _calls(function):
        for left, right in zip(call.args, call.args[1:], strict=False):
            if not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred) and ast.dump(left) != ast.dump(right):
                gap = source.data[source.end(left) : source.start(right)]
                yield Edit(start=source.start(left), end=source.end(right), text=source.text(right) + gap + source.text(left))


def variable(source: Source, function: Function) -> Iterator[Edit]:
    """Another variable of the function, one that has been set further up."""
    names = [node for node in expressions(function) if isinstance(node, ast.Name)]
    bound = dict.fromkeys(_parameters(function), 0)
    for node in names:
        if isinstance(node.ctx, ast.Store):
            bound.setdefault(node.id, node.lineno)
    for name in _comprehension_variables(function):  # they are there inside of it only
        bound.pop(name, None)
    for node in names:
        if isinstance(node.ctx, ast.Load) and node.id in bound:
            for other in sorted(bound):
                if other != node.id and bound[other] < node.lineno:
                    yield source.replace(node, other.encode())


def _calls(function: Function) -> Iterator[ast.Call]:
    return (node for node in expressions(function) if isinstance(node, ast.Call) and not is_message(node))


def _parameters(function: Function) -> set[str]:
    arguments = function.args
    named = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    return {one.arg for one in named if one is not None} - {"self", "cls"}


def _comprehension_variables(function: Function) -> set[str]:
    targets = [generator.target for node in ast.walk(function) for generator in getattr(node, "generators", ())]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _formats(node: ast.BinOp) -> bool:
    """Whether `%` formats or `+` joins a text that stands there: what changes is a message."""
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    )


def _same_value(right: ast.expr, old: str, new: str) -> bool:
    """Whether a change of operator changes nothing because of the number on its right."""
    if not isinstance(right, ast.Constant) or isinstance(right.value, bool) or not isinstance(right.value, int | float):
        return False
    same = _ZERO_SAME if right.value == 0 else _ONE_SAME if right.value == 1 else set()
    return old in same and new in same
