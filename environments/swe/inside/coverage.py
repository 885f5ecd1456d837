"""Records which functions of a repository each test enters, by Python's own C profiler, in the process of the tests and all its threads.

Functions that only run while a module is imported do not count, nor do those of the tests themselves. Standard library only, Python 3.8.
"""

from __future__ import annotations

import ast
import sys
import threading
from _lsprof import Profiler
from types import CodeType
from typing import Any

from environments.swe.inside.suite_worker_paths import is_test_path


class FunctionRecorder:
    """Call `start` before a test and `stop` after it."""

    def __init__(self, root: str) -> None:
        """`root`: the work folder, without symbolic links."""
        self._root = root.rstrip("/") + "/"
        self._files: dict[str, dict[tuple[int, str], str]] = {}
        self._profilers: list[Any] = []

    def start(self) -> None:
        """From now on functions that are entered count for the next `stop`."""
        self._profilers = []
        if sys.version_info < (3, 12):  # from then on a profiler sees all threads
            threading.setprofile(self._in_new_thread)
        self._profile()

    def stop(self) -> list[str]:
        """`path.py:qualified.name:line of its def` of all functions entered since `start`, sorted."""
        threading.setprofile(None)
        self._profilers[0].disable()
        found = (self._name(code) for code in self._entered())
        return sorted({name for name in found if name})

    def _profile(self) -> None:
        profiler = Profiler(subcalls=True, builtins=False)
        self._profilers.append(profiler)
        profiler.enable()

    def _in_new_thread(self, *_: Any) -> None:
        """The first event of a thread: from now on its own profiler gets them."""
        self._profile()

    def _entered(self) -> list[CodeType]:
        """What was called, other than by way of a module of the repository that was being imported."""
        calls: dict[int, list[CodeType]] = {}
        known: dict[int, CodeType] = {}
        outside: dict[int, int] = {}  # calls by frames that were there before, which no profiler knows
        for profiler in self._profilers:
            for entry in profiler.getstats():
                if not isinstance(entry.code, CodeType):
                    continue
                known[id(entry.code)] = entry.code
                outside[id(entry.code)] = outside.get(id(entry.code), 0) + entry.callcount
                for below in entry.calls or ():
                    if isinstance(below.code, CodeType):
                        calls.setdefault(id(entry.code), []).append(below.code)
                        outside[id(below.code)] = outside.get(id(below.code), 0) - below.callcount
        waiting = [code for key, code in known.items() if outside[key] > 0]
        seen: dict[int, CodeType] = {}
        while waiting:
            code = waiting.pop()
            if id(code) not in seen and not self._is_import(code):
                seen[id(code)] = code
                waiting += calls.get(id(code), ())
        return list(seen.values())

    def _is_import(self, code: CodeType) -> bool:
        return code.co_name == "<module>" and self._is_own(code.co_filename)

    def _is_own(self, path: str) -> bool:
        """A file of the repository that is no test."""
        return path.startswith(self._root) and not is_test_path(path[len(self._root) :])

    def _name(self, code: CodeType) -> str:
        """How a function is called in the record; empty for others' and for what no file shows: code that was made while the tests ran."""
        path = code.co_filename
        if not self._is_own(path):
            return ""
        if path not in self._files:
            self._files[path] = _functions(path)
        name = self._files[path].get((code.co_firstlineno, code.co_name), "")
        return f"{path[len(self._root) :]}:{name}" if name else ""


def _functions(path: str) -> dict[tuple[int, str], str]:
    """All functions of a file: first line of the code (that of its first decorator) and plain name, and what the record calls it."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[tuple[int, str], str] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                found[first, child.name] = f"{prefix}{child.name}:{child.lineno}"
                visit(child, f"{prefix}{child.name}.<locals>.")
            elif isinstance(child, ast.ClassDef):
                visit(child, f"{prefix}{child.name}.")
            else:
                visit(child, prefix)

    visit(tree, "")
    return found
