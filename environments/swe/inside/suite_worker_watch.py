"""Watches pytest and Python in the process of the tests: whether functions of theirs were replaced, and who looks into the process.

Standard library and pytest only, Python 3.8.
"""

from __future__ import annotations

import os
import sys
import types
from _thread import get_ident
from collections.abc import Callable
from typing import Any

WATCHED = ("_pytest", "pytest", "pluggy", "unittest", "builtins", "json", "math", "operator", "re", "difflib")
"""Packages whose functions must stay as they are."""
_EVENTS = frozenset(
    (
        *("gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._getframe", "sys._current_frames", "sys._current_exceptions"),
        *("sys.settrace", "sys.setprofile", "sys.addaudithook", "code.__new__", "object.__setattr__", "open"),
        *("ctypes.dlopen", "ctypes.addressof", "ctypes.string_at", "ctypes.create_string_buffer", "ctypes.cdata", "ctypes.call_function"),
        *("sys.monitoring.register_callback", "import", "object.__getattr__"),
    )
)
_FUNCTION, _CODE = types.FunctionType, types.CodeType
_getframe, _fspath = sys._getframe, os.fspath
_FRAMES = frozenset(("tb_frame", "gi_frame", "cr_frame", "ag_frame"))
"""Attributes that give a frame, from which all others can be reached."""
_GETTERS = ("pkgutil.py", "pydoc.py", "mock.py", "inspect.py", "operator.py", "functools.py")
"""Modules that read an attribute whose name they are given."""
_GIVERS = frozenset(("currentframe", "walk_tb", "walk_stack", "_walk_tb_with_full_positions"))
"""Functions of the standard library that give their caller frames."""
_HELPERS = ("inspect.py", "traceback.py", "gc.py", "trace.py", "bdb.py")


class Snapshot:
    """The functions of the watched packages as they are now."""

    def __init__(self) -> None:
        self._entries: list[tuple[Any, str, Any, Any, str]] = []
        for name, module in sorted(sys.modules.items()):
            if name in ("math", "operator", "_operator"):
                self._entries += [(vars(module), one, value, None, name) for one, value in vars(module).items() if callable(value)]
            elif name.split(".", 1)[0] in WATCHED and isinstance(module, types.ModuleType):
                self._module(name, module)
        self._legacy = {id(entry[3]) for entry in self._entries if entry[3] is not None and entry[4].startswith("_pytest.legacypath")}

    def codes(self) -> list[types.CodeType]:
        """Of all of them."""
        return [entry[3] for entry in self._entries if entry[3] is not None]

    def changed(self) -> str:
        """The first function that is not what it was; empty when all are."""
        for names, name, value, code, owner in self._entries:
            found = names.get(name)
            if found is not value and not self._is_legacy(found):
                return f"{owner}.{name}"
            if code is not None and value.__code__ is not code:
                return f"{owner}.{name}"
        return ""

    def _is_legacy(self, value: Any) -> bool:
        """Whether a value is a function of the plugin that adds py.path methods to pytest's classes when it is configured."""
        function = value.fget if isinstance(value, property) else value
        return type(function) is _FUNCTION and id(function.__code__) in self._legacy

    def _module(self, module_name: str, module: types.ModuleType) -> None:
        names = vars(module)
        for name, value in list(names.items()):
            if module_name == "builtins":
                if name != "_":
                    self._entries.append((names, name, value, None, module_name))
            elif type(value) is _FUNCTION:
                self._entries.append((names, name, value, value.__code__, module_name))
            elif isinstance(value, type):
                self._entries.append((names, name, value, None, module_name))
                if value.__module__ == module_name:
                    self._class(value, f"{module_name}.{name}")

    def _class(self, kind: type, owner: str) -> None:
        names = kind.__dict__
        for name, value in list(names.items()):
            if type(value) is _FUNCTION:
                self._entries.append((names, name, value, value.__code__, owner))
            elif isinstance(value, (staticmethod, classmethod, property)):
                self._entries.append((names, name, value, None, owner))


class AuditWatch:
    """Tells who of the tree's own code looks at frames, objects or memory of the process."""

    def __init__(self, root: str, *, is_test: Callable[[str], bool], tell: Callable[[str, str], None]) -> None:
        """`tell(event, path)`: called once for each pair; `path` is relative to `root`, or a name that is no file."""
        self._root, self._is_test, self._tell = root + "/", is_test, tell
        prefixes = {os.path.realpath(folder) + "/" for folder in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))}
        self._trusted = ("<frozen", "<suite_worker", *(prefix for prefix in prefixes if not self._root.startswith(prefix)))
        self._told: set[tuple[str, str]] = set()
        self._inside: set[int] = set()

    def start(self) -> None:
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS:
            return
        thread = get_ident()
        if thread in self._inside:
            return
        if event == "open" and not _is_process_file(arguments[0]):
            return
        if event == "import" and arguments[0] != "ctypes" and arguments[0] != "_ctypes":
            return
        if event == "object.__setattr__" and arguments[1] != "__code__":
            return
        if event == "object.__getattr__" and arguments[1] not in _FRAMES:
            return
        self._inside.add(thread)
        try:
            frame: types.FrameType | None = _getframe(1)
            path = self._frame_reader(frame) if event == "object.__getattr__" else self._culprit(_after_givers(frame))
            if path is not None and (event, path) not in self._told and len(self._told) < 100:
                self._told.add((event, path))
                self._tell(event, path)
        finally:
            self._inside.discard(thread)

    def _frame_reader(self, frame: types.FrameType | None) -> str | None:
        """As `_culprit`, of who reads a frame of an object: the standard library may for itself, not on behalf of others."""
        frame = _after_givers(frame)
        while frame is not None and frame.f_code.co_filename.rsplit("/", 1)[-1] in _GETTERS:
            frame = frame.f_back
        if frame is not None and frame.f_code.co_filename.rsplit("/", 1)[-1] in _HELPERS:
            return None
        return self._culprit(frame)

    def _culprit(self, frame: types.FrameType | None) -> str | None:
        """The file of the tree, not a test, that called; None when it was somebody else."""
        while frame is not None and frame.f_code.co_filename.rsplit("/", 1)[-1] in _HELPERS:
            frame = frame.f_back
        while frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
            frame = frame.f_back
        if frame is None:
            return None
        name = frame.f_code.co_filename
        if name.startswith(self._root):
            path = name[len(self._root) :]
            return None if self._is_test(path) else path
        return None if name.startswith(self._trusted) else name[:200]


def _after_givers(frame: types.FrameType | None) -> types.FrameType | None:
    """The first caller that is none of these functions (that of `logging` is a lambda in a file that has another use for frames)."""
    while frame is not None:
        code, back = frame.f_code, frame.f_back
        is_lambda = code.co_name == "<lambda>" and code.co_filename.endswith("/logging/__init__.py")
        if not (code.co_name in _GIVERS or is_lambda) or not code.co_filename.startswith(os.path.dirname(os.__file__)):
            return frame
        frame = back
    return None


def _is_process_file(path: Any) -> bool:
    if isinstance(path, bytes):
        path = path.decode(errors="replace")
    return isinstance(path, str) and path.startswith("/proc/") and path.rsplit("/", 1)[-1] in ("mem", "maps", "fd", "environ", "pagemap")
