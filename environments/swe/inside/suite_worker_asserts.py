"""Changes the syntax trees of tests so that what they compare, and what they call to check, goes through the guard first.

Standard library only, Python 3.8.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

_NAMES = {ast.Eq: "==", ast.NotEq: "!=", ast.In: "in"}
_EQUAL_ASSERTS = frozenset(f"assert{name}" for name in ("Equal", "Equals", "ListEqual", "TupleEqual", "SetEqual", "DictEqual")) | {
    "assertMultiLineEqual"
}
_NEAR_ASSERTS = frozenset(("assertAlmostEqual", "assertCountEqual", "assertSequenceEqual"))
_TRUTH_ASSERTS = frozenset(("assertTrue", "assertFalse"))
_TRUTH_FUNCTIONS = frozenset(("all", "any", "bool"))
_CHECKS = re.compile(r"_?(?:assert|check|verify|expect|ensure|same)|(?:raises|warns|fail|deprecated_call)$")
"""Names of functions that are called for what they find."""


class Transformer(ast.NodeTransformer):
    """See Guard."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """`names`: of each function of the guard the constant that stands for it."""
        self._names = names
        self._strict: set[int] = set()
        self._asked: set[str] = set()
        """Variables of a function that are asked for their truth."""
        self._function_depth = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        self._truth(node.test)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        self._truth(node.test)
        return self.generic_visit(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        self._truth(node.test)
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self._truth(node.test)
        return self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        for test in node.ifs:
            self._truth(test)
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if any(isinstance(target, ast.Name) and target.id in self._asked for target in node.targets):
            self._truth(node.value)
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        strict = id(node) in self._strict
        self.generic_visit(node)
        names = [_NAMES.get(type(op), "") for op in node.ops]
        if "" in names:
            return node
        operands = [node.left, *node.comparators]
        return self._call("compare", ast.Constant(value=cast(Any, tuple(names))), ast.Constant(value=strict), *operands, at=node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if method in _TRUTH_ASSERTS and node.args:
            self._truth(node.args[0])
        self.generic_visit(node)
        wrapper = "pair" if method in _EQUAL_ASSERTS else "near" if method in _NEAR_ASSERTS else ""
        wrapper = "member" if method == "assertIn" else wrapper
        if wrapper and len(node.args) >= 2 and not any(isinstance(argument, ast.Starred) for argument in node.args):
            node.args = [ast.copy_location(ast.Starred(value=self._call(wrapper, *node.args, at=node), ctx=ast.Load()), node)]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        self._checked(node.value)
        return node

    def visit_withitem(self, node: ast.withitem) -> ast.AST:
        self.generic_visit(node)
        self._checked(node.context_expr)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def _checked(self, node: ast.expr) -> None:
        """A call whose result nobody asks for: what is called is looked at after it was looked up."""
        if not isinstance(node, ast.Call) or not isinstance(node.func, (ast.Attribute, ast.Name)):
            return
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        if not _CHECKS.match(name):
            return
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        said = f"self.{name}" if isinstance(owner, ast.Name) and owner.id == "self" else name
        node.func = self._call("called", ast.Constant(value=said), node.func, at=node.func)

    def _function(self, node: Any) -> ast.AST:
        outer, self._asked = self._asked, self._asked | _asked_names(node)
        self._function_depth += 1
        self.generic_visit(node)
        self._function_depth -= 1
        self._asked = outer
        if self._function_depth == 0 and (node.name.startswith("test") or node.name == "runTest"):
            first = node.body[0]
            has_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
            kept, rest = (node.body[:1], node.body[1:]) if has_doc else ([], node.body)
            end = ast.copy_location(ast.Expr(value=self._call("leave", at=node.body[-1])), node.body[-1])
            node.body = [*kept, ast.copy_location(ast.Try(body=rest or [ast.Pass()], handlers=[], orelse=[], finalbody=[end]), first)]
        return node

    def _call(self, name: str, *arguments: ast.expr, at: ast.AST) -> ast.expr:
        """A call of a function of the guard. The compiler warns of a constant that is called, not of its method."""
        function = ast.Attribute(value=ast.Constant(value=self._names[name]), attr="__call__", ctx=ast.Load())
        return ast.copy_location(ast.Call(func=function, args=list(arguments), keywords=[]), at)

    def _truth(self, node: ast.expr) -> None:
        """`node` is asked for its truth: a comparison there may give any object."""
        self._strict.update(id(one) for one in _asked(node))


def _asked(node: ast.expr) -> Iterator[ast.expr]:
    """The parts of an expression that are asked for their truth when it is."""
    parts: list[ast.expr] = []
    if isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        parts = [node.operand]
    elif isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.NamedExpr):
        parts = [node.value]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _TRUTH_FUNCTIONS:
        parts = node.args[:1]
    elif isinstance(node, (ast.GeneratorExp, ast.ListComp, ast.SetComp)):
        parts = [node.elt]
    elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        parts = node.elts
    else:
        yield node
    for part in parts:
        yield from _asked(part)


def _asked_names(function: ast.AST) -> set[str]:
    """Variables that are asked for their truth somewhere in a function."""
    found: set[str] = set()
    for node in ast.walk(function):
        test: ast.expr | None = node.test if isinstance(node, (ast.Assert, ast.If, ast.While)) else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TRUTH_ASSERTS and node.args:
            test = node.args[0]
        if test is not None:
            found.update(one.id for one in _asked(test) if isinstance(one, ast.Name))
    return found
