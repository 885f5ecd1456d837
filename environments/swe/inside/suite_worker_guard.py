"""Comparisons of tests that an object of the code under test cannot win by being equal to everything, and a witness of each test.

Works on the sources of tests when pytest rewrites their asserts. Each `==`, `!=` and `in` of a test goes through `Guard.compare`, which
asks a second question when an object whose class defines `__eq__` in Python was found equal: is it also equal to something else? Each
test function says at its end whether it ran through. Standard library and pytest only, Python 3.8.
"""

from __future__ import annotations

import ast
import builtins
import os
import secrets
import sys
import types
from collections.abc import Callable
from typing import Any, cast

_PLAIN = frozenset((int, float, complex, bool, str, bytes, bytearray, type(None), type(Ellipsis), range, slice))
"""Types whose comparisons nobody can change."""
_NAMES = {ast.Eq: "==", ast.NotEq: "!=", ast.In: "in"}
_EQUAL_ASSERTS = frozenset(
    f"assert{name}"
    for name in ("Equal", "Equals", "AlmostEqual", "SequenceEqual", "ListEqual", "TupleEqual", "SetEqual", "DictEqual", "CountEqual")
) | {"assertMultiLineEqual"}
_TRUTH_ASSERTS = frozenset(("assertTrue", "assertFalse"))
_MOST_PAIRS = 2000
"""Of one comparison."""
_FUNCTION = types.FunctionType
_BUILTIN_SLOTS = (type(object.__eq__), type(str.__contains__), type(dict.fromkeys), type(len))
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_vars: Callable[[type], dict[str, Any]] = type.__dict__["__dict__"].__get__
_getframe = sys._getframe


class ForgedComparison(AssertionError):
    """An object of the code under test claims to be equal to whatever it is compared with."""


class Guard:
    """One run's guard. `hits` and `completions` are those of the current test."""

    def __init__(self) -> None:
        token = secrets.token_hex(8)
        self._compare_name, self._pair_name = f"@compare_{token}", f"@pair_{token}"
        self._member_name, self._leave_name = f"@member_{token}", f"@leave_{token}"
        self._codes: dict[int, types.CodeType] = {}
        self.hits: list[str] = []
        self.completions: list[bool] = []

    def begin(self) -> None:
        """A test starts."""
        self.hits, self.completions = [], []

    def trust(self, code: types.CodeType) -> None:
        """Take a code object of tests, and all inside it, for what it is. Code objects cannot be made anew, so identity says it."""
        self._codes[id(code)] = code
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self.trust(inner)

    def trusted(self, code: Any) -> bool:
        return self._codes.get(id(code)) is code

    def install(self) -> None:
        """Give the functions to the tests; their names are new in each run."""
        for name, function in (
            (self._compare_name, self.compare),
            (self._pair_name, self.pair),
            (self._member_name, self.member),
            (self._leave_name, self.leave),
        ):
            builtins.__dict__[name] = function

    def transform(self, tree: ast.Module) -> None:
        """Change the syntax tree of a module of tests in place."""
        _Transformer(self._compare_name, self._pair_name, self._member_name, self._leave_name).visit(tree)
        ast.fix_missing_locations(tree)

    def leave(self) -> None:
        """A test function ends; called from its `finally`."""
        if self.trusted(_getframe(1).f_code):
            self.completions.append(sys.exc_info()[1] is None)

    def compare(self, names: tuple[str, ...], strict: bool, *operands: Any) -> Any:
        """What the chain of comparisons gives. Raises ForgedComparison."""
        result: Any = True
        for index, name in enumerate(names):
            left, right = operands[index], operands[index + 1]
            result = left == right if name == "==" else left != right if name == "!=" else left in right
            if result is True or (strict and type(result) is not bool and bool(result)):
                if name == "==":
                    self._equal(left, right)
                elif name == "!=":
                    self._unequal(left, right)
                else:
                    self._member(left, right)
            if len(names) > 1 and not result:
                return result
        return result

    def pair(self, first: Any, second: Any, *more: Any) -> tuple[Any, ...]:
        """The arguments of an `assertEqual`, looked at."""
        self._equal(first, second)
        return (first, second, *more)

    def member(self, element: Any, container: Any, *more: Any) -> tuple[Any, ...]:
        """The arguments of an `assertIn`, looked at."""
        self._member(element, container)
        return (element, container, *more)

    def _equal(self, left: Any, right: Any) -> None:
        if type(left) not in _PLAIN or type(right) not in _PLAIN:
            self._look(left, right, [_MOST_PAIRS], set())

    def _look(self, left: Any, right: Any, budget: list[int], seen: set[tuple[int, int]]) -> None:
        """Both sides and what they hold, pair by pair."""
        kind, other, key = type(left), type(right), (id(left), id(right))
        if (kind in _PLAIN and other in _PLAIN) or budget[0] <= 0 or key in seen:
            return
        budget[0] -= 1
        seen.add(key)
        if self._doubtful(kind, "__eq__"):
            self._probe(left, right)
        if self._doubtful(other, "__eq__"):
            self._probe(right, left)
        if kind is not other:
            return
        if kind in (list, tuple) and len(left) == len(right):
            for index in range(len(left)):
                self._look(left[index], right[index], budget, seen)
        elif kind is dict:
            for name in left:
                if name in right:
                    self._look(left[name], right[name], budget, seen)
        elif kind in (set, frozenset):
            for one in left:
                self._look(one, None, budget, seen)
        elif self._doubtful(kind, "__eq__") and isinstance(getattr(left, "__dict__", None), dict):
            self._look(vars(left), vars(right), budget, seen)

    def _probe(self, value: Any, other: Any) -> None:
        """`value` was found equal to `other`: it must not be equal to others."""
        for stranger in (_stranger(), *_perturbed(other)):
            try:
                equal = bool(value == stranger)
            except Exception:  # it does not know how to compare itself with that: not equal
                continue
            if equal:
                self._caught(f"an object of class {type(value).__name__} is equal to values that it cannot be equal to")

    def _unequal(self, left: Any, right: Any) -> None:
        for value in (left, right):
            if self._doubtful(type(value), "__ne__") or self._doubtful(type(value), "__eq__"):
                try:
                    unequal = (value != value) is True and (value == value) is not True
                except Exception:
                    continue
                if unequal and type(value).__name__ != "float":
                    self._caught(f"an object of class {type(value).__name__} is not equal to itself")

    def _member(self, element: Any, container: Any) -> None:
        if self._doubtful(type(container), "__contains__"):
            for stranger in (_stranger(), *_perturbed(element)):
                try:
                    inside = bool(stranger in container)
                except Exception:
                    continue
                if inside:
                    self._caught(f"an object of class {type(container).__name__} contains everything")
        elif type(container) in (list, tuple, set, frozenset, dict):
            if self._doubtful(type(element), "__eq__"):
                self._probe(element, None)
            elif type(container) in (list, tuple):
                for one in container:
                    if self._doubtful(type(one), "__eq__") and one == element:
                        self._probe(one, element)

    def _doubtful(self, kind: type, method: str) -> bool:
        """Whether objects of `kind` decide by Python code that is not the tests' own."""
        for base in _mro(kind):
            function = _vars(base).get(method)
            if function is None:
                continue
            if isinstance(function, _BUILTIN_SLOTS):
                return False
            if type(function) is _FUNCTION:
                return not self.trusted(function.__code__) and not _is_any(kind)
            return True
        return False

    def _caught(self, reason: str) -> None:
        self.hits.append(reason)
        raise ForgedComparison(reason)


class _Transformer(ast.NodeTransformer):
    """See Guard."""

    def __init__(self, compare: str, pair: str, member: str, leave: str) -> None:
        self._compare, self._pair, self._member, self._leave = compare, pair, member, leave
        self._strict: set[int] = set()
        self._function_depth = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        self._truth(node.test)
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        strict = id(node) in self._strict
        self.generic_visit(node)
        names = [_NAMES.get(type(op), "") for op in node.ops]
        if "" in names:
            return node
        operands = [node.left, *node.comparators]
        arguments: list[ast.expr] = [ast.Constant(value=cast(Any, tuple(names))), ast.Constant(value=strict), *operands]
        return ast.copy_location(ast.Call(func=_name(self._compare), args=arguments, keywords=[]), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if method in _TRUTH_ASSERTS and node.args:
            self._truth(node.args[0])
        self.generic_visit(node)
        wrapper = self._pair if method in _EQUAL_ASSERTS else self._member if method == "assertIn" else ""
        if wrapper and len(node.args) >= 2 and not any(isinstance(argument, ast.Starred) for argument in node.args):
            call = ast.copy_location(ast.Call(func=_name(wrapper), args=node.args, keywords=[]), node)
            node.args = [ast.copy_location(ast.Starred(value=call, ctx=ast.Load()), node)]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def _function(self, node: Any) -> ast.AST:
        self._function_depth += 1
        self.generic_visit(node)
        self._function_depth -= 1
        if self._function_depth == 0 and (node.name.startswith("test") or node.name == "runTest"):
            first = node.body[0]
            has_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
            kept, rest = (node.body[:1], node.body[1:]) if has_doc else ([], node.body)
            leave = ast.Expr(value=ast.Call(func=_name(self._leave), args=[], keywords=[]))
            end = ast.copy_location(leave, node.body[-1])
            node.body = [*kept, ast.copy_location(ast.Try(body=rest or [ast.Pass()], handlers=[], orelse=[], finalbody=[end]), first)]
        return node

    def _truth(self, node: ast.AST) -> None:
        """`node` is asked for its truth: a comparison there may give any object."""
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self._truth(value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._truth(node.operand)
        else:
            self._strict.add(id(node))


def _name(name: str) -> ast.Name:
    return ast.Name(id=name, ctx=ast.Load())


def _stranger() -> Any:
    """An object that nothing knows."""
    return type(f"Value{secrets.token_hex(4)}", (), {})()


def _perturbed(value: Any) -> list[Any]:
    """Values like `value` that are not equal to it."""
    kind, more = type(value), secrets.randbelow(1 << 40) + (1 << 41)
    if kind is bool:
        return [not value]
    if kind in (int, float, complex):
        return [value + more, -value - more]
    if kind is str:
        return [f"{value}{more:x}"]
    if kind in (bytes, bytearray):
        return [value + b"%x" % more]
    if kind in (list, tuple):
        return [kind([*value, _stranger()])]
    if kind in (set, frozenset):
        return [kind([*value, _stranger()])]
    if kind is dict:
        return [{**value, _stranger(): more}]
    blank = _blank(kind) if getattr(value, "__dict__", None) else None
    return [] if blank is None else [blank]


def _blank(kind: type) -> Any | None:
    """An object of a class, without any state."""
    try:
        return object.__new__(kind)
    except TypeError:
        return None


_mock_file = os.path.join(os.path.dirname(os.__file__), "unittest", "mock.py")


def _is_any(kind: type) -> bool:
    """Whether a class is that of unittest.mock.ANY."""
    mock = sys.modules.get("unittest.mock")
    any_class = type(getattr(mock, "ANY", None))
    function = _vars(kind).get("__eq__")
    return kind is any_class and type(function) is _FUNCTION and function.__code__.co_filename == _mock_file
