"""Modules of a patch that are imported in place of installed ones. Standard library only, Python 3.8."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from typing import Any

_find = PathFinder.find_spec


class Shadows:
    """What of a tree's new paths stands where something installed is looked for."""

    def __init__(self, names: list[str], root: str) -> None:
        """`names`: the new paths, relative to `root`, the work folder."""
        self._names, self._root = names, root
        self._standard = frozenset(getattr(sys, "stdlib_module_names", ())) | frozenset(sys.builtin_module_names)
        self._outside = [entry for entry in sys.path if not (os.path.realpath(entry or ".") + "/").startswith(root + "/")]

    def ahead(self, tests: list[str]) -> str:
        """The first new path that would be imported in place of an installed module, from a folder of the path or one that pytest puts
        there for the tests; empty when there is none."""
        inside = {os.path.realpath(entry or ".") for entry in sys.path}
        inside.update(os.path.realpath(os.path.join(self._root, folder)) for folder in self._import_folders(tests))
        for path in self._names:
            folder, name = os.path.split(os.path.join(self._root, path))
            if os.path.realpath(folder) in inside and self._is_installed(name.split(".", 1)[0]):
                return path
        return ""

    def loaded(self) -> str:
        """The first new path that was imported in place of an installed module, from wherever; empty when there is none."""
        for name, module in list(sys.modules.items()):
            path, top = self._path(module), name.split(".", 1)[0]
            above = self._path(sys.modules.get(top))
            if path and self._is_new(path) and (not above or self._is_new(above)) and self._is_installed(top):
                return path
        return ""

    def _path(self, module: Any) -> str:
        """Of a module's file, relative to the root; empty for one that is not below it."""
        file = getattr(module, "__file__", None)
        return file[len(self._root) + 1 :] if type(file) is str and file.startswith(self._root + "/") else ""

    def _is_new(self, path: str) -> bool:
        return any(path == new or path.startswith(new + "/") for new in self._names)

    def _is_installed(self, module: str) -> bool:
        return module in self._standard or _find(module, self._outside) is not None

    def _import_folders(self, tests: list[str]) -> set[str]:
        """The folders, relative to the root, that pytest puts on the path: the first above tests and their conftests that are no
        packages."""
        found = set()
        for path in {test.split("::", 1)[0] for test in tests}:
            folder = os.path.dirname(path)
            while folder:
                if folder == os.path.dirname(path) or os.path.exists(os.path.join(self._root, folder, "conftest.py")):
                    top = folder
                    while top and os.path.exists(os.path.join(self._root, top, "__init__.py")):
                        top = os.path.dirname(top)
                    found.add(top)
                folder = os.path.dirname(folder)
        return found
