"""Records which functions of a repository each test enters, by Python's profile hook, in the process of the tests and all its threads.

Functions that only run while a module is imported do not count, nor do those of the tests themselves. Standard library only, Python 3.8.
"""

from __future__ import annotations

import ast
import sys
import threading
from types import CodeType, FrameType
from typing import Any

from environments.swe.inside.suite_worker_paths import is_test_path


class FunctionRecorder:
    """Call `start` before a test and `stop` after it."""

    def __init__(self, root: str) -> None:
        """`root`: the work folder, without symbolic links."""
        self._root = root.rstrip("/") + "/"
        self._files: dict[str, dict[tuple[int, str], str]] = {}
        self._watched: dict[int, tuple[CodeType, bool]] = {}
        """By id: code objects that are equal may be of different files, and their hash is slow to compute."""
        self._entered: dict[int, CodeType] = {}

    def start(self) -> None:
        """From now on functions that are entered count for the next `stop`."""
        self._entered = {}
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def stop(self) -> list[str]:
        """`path.py:qualified.name:line of its def` of all functions entered since `start`, sorted."""
        sys.setprofile(None)
        threading.setprofile(None)
        found = (self._name(code) for code in self._entered.values())
        return sorted({name for name in found if name})

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        known = self._watched.get(id(code))
        if known is None:
            known = self._watched[id(code)] = (code, self._is_watched(code))
        if known[1] and id(code) not in self._entered and not self._importing(frame.f_back):
            self._entered[id(code)] = code

    def _is_watched(self, code: CodeType) -> bool:
        path = code.co_filename
        return path.startswith(self._root) and not code.co_name.startswith("<") and not is_test_path(path[len(self._root) :])

    def _importing(self, frame: FrameType | None) -> bool:
        """A module of the repository is being imported below this frame."""
        while frame is not None:
            code = frame.f_code
            if (
                code.co_name == "<module>"
                and code.co_filename.startswith(self._root)
                and not is_test_path(code.co_filename[len(self._root) :])
            ):
                return True
            frame = frame.f_back
        return False

    def _name(self, code: CodeType) -> str:
        """How a function is called in the record; empty when its file does not show it: code that was made while the tests ran."""
        path = code.co_filename
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
