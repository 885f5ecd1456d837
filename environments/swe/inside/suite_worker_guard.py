"""Comparisons of tests that an object of the code under test cannot win by being equal to everything, and a witness of each test.

Works on the sources of tests when pytest rewrites their asserts. Each `==`, `!=` and `in` of a test goes through `Guard.compare`. An
object whose class defines `__eq__` in Python is questioned before: the real value stands at a random place among others, and whoever
is equal to one of these, or answers otherwise afterwards, is caught. Each test function says at its end whether it ran through.
Standard library and pytest only, Python 3.8.
"""

from __future__ import annotations

import ast
import functools
import os
import secrets
import sys
import types
from collections.abc import Callable
from typing import Any

from environments.swe.inside.suite_worker_asserts import Transformer
from environments.swe.inside.suite_worker_decoys import alike, decoys, far, stranger

_PLAIN = frozenset((int, float, complex, bool, str, bytes, bytearray, type(None), type(Ellipsis), range, slice))
"""Types whose comparisons nobody can change."""
_MOST_PAIRS = 2000
"""Of one comparison."""
_QUESTIONS, _FULL_PAIRS, _MORE_QUESTIONS = 16, 20, 3
"""Decoys for a doubtful object; for so many pairs of a comparison; for further ones."""
_MOST_WRAPPERS = 8
_FUNCTION = types.FunctionType
_BUILTIN_SLOTS = (type(object.__eq__), type(str.__contains__), type(dict.__contains__), type(dict.fromkeys), type(len))
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_vars: Callable[[type], dict[str, Any]] = type.__dict__["__dict__"].__get__
_getframe = sys._getframe


class ForgedComparison(AssertionError):
    """An object of the code under test claims to be equal to whatever it is compared with."""


class Guard:
    """One run's guard. `hits` and `completions` are those of the current test."""

    def __init__(self, root: str) -> None:
        """`root`: the work folder."""
        self.root = root + "/"
        token = secrets.token_hex(8)
        methods = (self.compare, self.pair, self.near, self.member, self.leave, self.called)
        self._placed = {f"@{method.__name__}_{token}": hidden(method) for method in methods}
        """What stands in the code of tests for each constant."""
        self.changed: Callable[[], str] = str
        self.checks_changed: Callable[[], str] = str
        self.change = ""
        """What had been replaced when a file of tests was read, or when a test was about to check something."""
        self.tell: Callable[[str, str], None] = lambda event, path: None
        self._codes: dict[int, types.CodeType] = {}
        self._files: dict[str, types.CodeType] = {}
        """Of tests that were read: their code."""
        self.hits: list[str] = []
        self.completions: list[bool] = []

    def begin(self) -> None:
        """A test starts."""
        self.hits, self.completions = [], []

    def note_change(self) -> None:
        """A file of tests is to be read: what reads it must be what it was."""
        self.change = self.change or self.changed()

    def trust(self, code: types.CodeType) -> None:
        """Take a code object of tests, and all inside it, for what it is. Code objects cannot be made anew, so identity says it."""
        self._codes[id(code)] = code
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self.trust(inner)

    def trust_file(self, path: str, code: types.CodeType) -> None:
        """As `trust`, of a file of tests that is about to run."""
        self._files[path] = code
        self.trust(code)

    def is_test(self, path: str) -> bool:
        """Whether a file was read as one of tests."""
        return path in self._files

    def replaced(self) -> str:
        """A function of a file of tests whose name stands for another one that has nothing of it; empty when there is none."""
        for name, module in sorted(sys.modules.items()):
            code = self._files.get(str(getattr(module, "__file__", "")))
            for one in code.co_consts if code is not None else ():
                value = vars(module).get(one.co_name) if isinstance(one, types.CodeType) else None
                if type(value) is _FUNCTION and not self._has_code(value, _MOST_WRAPPERS):
                    return f"{name}.{one.co_name}"
        return ""

    def _has_code(self, function: Any, depth: int) -> bool:
        """Whether a function is one of tests, or installed, or has such a one inside."""
        file = function.__code__.co_filename
        if self.trusted(function.__code__) or not file.startswith(self.root):
            return True
        cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
        inner = [one for one in (*cells, *vars(function).values(), *(function.__defaults__ or ())) if type(one) is _FUNCTION]
        return depth > 0 and any(self._has_code(one, depth - 1) for one in inner)

    def trusted(self, code: Any) -> bool:
        return self._codes.get(id(code)) is code

    def transform(self, tree: ast.Module) -> None:
        """Change the syntax tree of a module of tests in place; its code goes through `bind`."""
        Transformer({name[1:].rpartition("_")[0]: name for name in self._placed}).visit(tree)
        ast.fix_missing_locations(tree)

    def bind(self, code: types.CodeType) -> types.CodeType:
        """Put the guard's functions into code, which calls constants then: there is no name that anybody could give another meaning."""
        consts = [self.bind(one) if isinstance(one, types.CodeType) else self._constant(one) for one in code.co_consts]
        return code.replace(co_consts=tuple(consts))

    def _constant(self, value: Any) -> Any:
        return self._placed.get(value, value) if type(value) is str else value

    def leave(self) -> None:
        """A test function ends; called from its `finally`."""
        if self.trusted(_getframe(1).f_code):
            self.completions.append(sys.exc_info()[1] is None)

    def compare(self, names: tuple[str, ...], strict: bool, *operands: Any) -> Any:
        """What the chain of comparisons gives. Raises ForgedComparison."""
        result: Any = True
        for index, name in enumerate(names):
            left, right = operands[index], operands[index + 1]
            agrees = self._equal(left, right, strict) if name == "==" else self._member(left, right) if name == "in" else True
            result = left == right if name == "==" else left != right if name == "!=" else left in right
            if result is True or ((strict or type(result) in _PLAIN) and type(result) is not bool and bool(result)):
                if name == "!=":
                    self._unequal(left, right)
                elif not agrees:
                    self._caught("an object changes its mind about what it is equal to")
            if len(names) > 1 and not result:
                return result
        return result

    def pair(self, first: Any, second: Any, *more: Any) -> tuple[Any, ...]:
        """The arguments of an `assertEqual`, looked at."""
        if not self._equal(first, second):
            self.hits.append("an object that is not equal to what it was compared with")
        return (first, second, *more)

    def near(self, first: Any, second: Any, *more: Any) -> tuple[Any, ...]:
        """The arguments of an assert that means something else by equal, looked at."""
        self._equal(first, second)
        return (first, second, *more)

    def member(self, element: Any, container: Any, *more: Any) -> tuple[Any, ...]:
        """The arguments of an `assertIn`, looked at."""
        if not self._member(element, container):
            self.hits.append("an object that is not where it was looked for")
        return (element, container, *more)

    def called(self, name: str, function: Any) -> Any:
        """What a test is about to call by a name that checks something; told when it is not what the name stands for."""
        self.change = self.change or self.checks_changed()
        last = name.rpartition(".")[2]
        path = origin(function)
        if path is not None and (path or name.startswith("self.") or getattr(function, "__name__", "") != last):
            self.tell(f"assert {last}", path)
        return function

    def _equal(self, left: Any, right: Any, strict: bool = True) -> bool:
        """Whether the doubtful objects in both say, under questioning, that they are equal.

        `strict`: the answer is asked for its truth. Else one that is an object of its own is none: `==` can build queries.
        """
        if type(left) in _PLAIN and type(right) in _PLAIN:
            return True
        if not strict and any(type(_answer(side)) not in _PLAIN for side in (left, right) if self._doubtful(type(side), "__eq__")):
            return True
        return self._look(left, right, [_MOST_PAIRS], set())

    def _look(self, left: Any, right: Any, budget: list[int], seen: set[tuple[int, int]]) -> bool:
        """Both sides and what they hold, pair by pair."""
        kind, other, key = type(left), type(right), (id(left), id(right))
        if (kind in _PLAIN and other in _PLAIN) or budget[0] <= 0 or key in seen:
            return True
        budget[0] -= 1
        seen.add(key)
        count = _QUESTIONS if budget[0] >= _MOST_PAIRS - _FULL_PAIRS else _MORE_QUESTIONS
        agrees = True
        if self._doubtful(kind, "__eq__"):
            agrees = self._question(left, right, count)
        if self._doubtful(other, "__eq__"):
            agrees = self._question(right, left, count) and agrees
        if kind is not other:
            return agrees
        if kind in (list, tuple) and len(left) == len(right):
            for index in range(len(left)):
                agrees = (self._look(left[index], right[index], budget, seen) or left[index] is right[index]) and agrees
        elif kind is dict:
            for name in left:
                if name in right:
                    agrees = (self._look(left[name], right[name], budget, seen) or left[name] is right[name]) and agrees
        elif kind in (set, frozenset):
            for one in left:
                if self._doubtful(type(one), "__eq__"):
                    self._question(one, one, _MORE_QUESTIONS)
        elif self._doubtful(kind, "__eq__") and isinstance(getattr(left, "__dict__", None), dict):
            self._look(vars(left), vars(right), budget, seen)  # equal objects may differ in parts
        return agrees

    def _question(self, value: Any, other: Any, count: int) -> bool:
        """Whether `value` is equal to `other`, asked among others. Raises ForgedComparison when it is equal to those too."""
        asked = decoys(other, count)
        place = secrets.randbelow(len(asked) + 1)
        real, fooled = False, False
        asked[place:place] = [other]
        held = alike(asked, place)
        for at, one in enumerate(asked):
            try:
                equal = bool(value == one)
            except Exception:  # it does not know how to compare itself with that: not equal
                if at != place:
                    continue
                equal = True  # the test will see it
            if at == place:
                real = equal
            else:
                fooled = fooled or equal
        held.clear()
        if fooled and real:
            self._caught(f"an object of class {type(value).__name__} is equal to values that it cannot be equal to")
        return real

    def _unequal(self, left: Any, right: Any) -> None:
        for value in (left, right):
            if self._doubtful(type(value), "__ne__") or self._doubtful(type(value), "__eq__"):
                try:
                    unequal = (value != value) is True and (value == value) is not True
                except Exception:
                    continue
                if unequal and type(value).__name__ != "float":
                    self._caught(f"an object of class {type(value).__name__} is not equal to itself")

    def _member(self, element: Any, container: Any) -> bool:
        """Whether the doubtful objects say, under questioning, that `element` is in `container`."""
        if self._doubtful(type(container), "__contains__"):
            for one in (stranger(), far(element)):  # what is near may well be in it, too
                try:
                    inside = bool(one in container)
                except Exception:
                    continue
                if inside and type(element) is not bool:
                    self._caught(f"an object of class {type(container).__name__} contains everything")
            return True
        if type(container) not in (list, tuple, set, frozenset, dict) or len(container) > _MOST_PAIRS:
            return True
        doubtful, found = self._doubtful(type(element), "__eq__"), False
        for number, one in enumerate(container):
            count = _QUESTIONS if number < _FULL_PAIRS else _MORE_QUESTIONS
            if doubtful:
                found = self._question(element, one, count) or found or one is element
            elif self._doubtful(type(one), "__eq__"):
                found = self._question(one, element, count) or found or one is element
            else:
                found = found or one is element or bool(one == element)
        return found

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


def _answer(value: Any) -> Any:
    try:
        return value == stranger()
    except Exception:
        return False


def hidden(function: Callable[..., Any]) -> Any:
    """A callable that does not give away what it calls: no attribute of it leads to the function or to its object."""
    found: Any = functools.lru_cache(maxsize=0)(function)
    vars(found).clear()
    return found


def origin(function: Any) -> str | None:
    """The file of what is called, where it is Python code; empty for what is none; None where nothing can be said."""
    for _ in range(_MOST_WRAPPERS):
        inner = getattr(function, "__func__", None) if type(function) is types.MethodType else None
        inner = function.func if type(function) is functools.partial else inner
        if inner is None:
            break
        function = inner
    if type(function) is _FUNCTION:
        return str(function.__code__.co_filename)
    if isinstance(function, type(len)):
        return ""
    kind = function if isinstance(function, type) else type(function)
    found = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return found if type(found) is str else None


_mock_file = os.path.join(os.path.dirname(os.__file__), "unittest", "mock.py")


def _is_any(kind: type) -> bool:
    """Whether a class is that of unittest.mock.ANY."""
    mock = sys.modules.get("unittest.mock")
    any_class = type(getattr(mock, "ANY", None))
    function = _vars(kind).get("__eq__")
    return kind is any_class and type(function) is _FUNCTION and function.__code__.co_filename == _mock_file
