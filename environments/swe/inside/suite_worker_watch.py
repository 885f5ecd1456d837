"""Watches pytest and Python in the process of the tests: whether functions of theirs were replaced, and who looks into the process.

Standard library and pytest only, Python 3.8.
"""

from __future__ import annotations

import operator
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
_is, _code_of = operator.is_, operator.attrgetter("__code__")
_HELPERS = ("inspect.py", "traceback.py", "gc.py", "trace.py", "bdb.py")


class Snapshot:
    """The functions of the watched packages as they are now."""

    def __init__(self) -> None:
        self._spaces: list[tuple[str, Any, list[str], list[Any]]] = []
        """Of each module and class: what it is called, its names, and those that are watched with their values."""
        self._functions: list[Any] = []
        for name, module in sorted(sys.modules.items()):
            if name in ("math", "operator", "_operator"):
                self._watch(name, vars(module), [one for one, value in vars(module).items() if callable(value)])
            elif name.split(".", 1)[0] in WATCHED and isinstance(module, types.ModuleType):
                self._module(name, module)
        self._codes = [function.__code__ for function in self._functions]
        legacy = "_pytest.legacypath"
        self._legacy = {id(one.__code__) for one in self._functions if one.__module__ == legacy}

    def codes(self) -> list[types.CodeType]:
        """Of all of them."""
        return list(self._codes)

    def changed(self, *, codes: bool) -> str:
        """The first function that is not what it was; empty when all are. Asked after each test, so the loops are the interpreter's.

        `codes`: look into the functions too. Each look is an event for the audit hook, so it takes ten times as long as the rest.
        """
        for owner, names, keys, values in self._spaces:
            if not all(map(_is, map(names.get, keys), values)):
                for name, value in zip(keys, values):  # noqa: B905  # Python 3.8
                    found = names.get(name)
                    if found is not value and not self._is_legacy(found):
                        return f"{owner}.{name}"
        if codes and not all(map(_is, map(_code_of, self._functions), self._codes)):
            for function, code in zip(self._functions, self._codes):  # noqa: B905  # Python 3.8
                if _code_of(function) is not code:
                    return f"{function.__module__}.{function.__qualname__}"
        return ""

    def _is_legacy(self, value: Any) -> bool:
        """Whether a value is a function of the plugin that adds py.path methods to pytest's classes when it is configured."""
        function = value.fget if isinstance(value, property) else value
        return type(function) is _FUNCTION and id(function.__code__) in self._legacy

    def _module(self, module_name: str, module: types.ModuleType) -> None:
        names = vars(module)
        if module_name == "builtins":
            self._watch(module_name, names, [name for name in names if name != "_"])
            return
        self._watch(module_name, names, [name for name, value in names.items() if type(value) is _FUNCTION or isinstance(value, type)])
        for name, value in list(names.items()):
            if isinstance(value, type) and value.__module__ == module_name:
                kinds = (_FUNCTION, staticmethod, classmethod, property)
                self._watch(f"{module_name}.{name}", value.__dict__, [key for key, one in value.__dict__.items() if isinstance(one, kinds)])

    def _watch(self, owner: str, names: Any, keys: list[str]) -> None:
        values = [names[key] for key in keys]
        self._spaces.append((owner, names, keys, values))
        if owner != "builtins":
            self._functions += [value for value in values if type(value) is _FUNCTION]


class AuditWatch:
    """Tells who of the tree's own code looks at frames, objects or memory of the process."""

    def __init__(self, root: str, *, is_test: Callable[[str], bool], tell: Callable[[str, str], None]) -> None:
        """`tell(event, path)`: called once for each pair; `path` is relative to `root`, or a name that is no file."""
        self._root, self._is_test, self._tell = root + "/", is_test, tell
        prefixes = {os.path.realpath(folder) + "/" for folder in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))}
        self._trusted = ("<frozen", "<suite_worker", *(prefix for prefix in prefixes if not self._root.startswith(prefix)))
        self._told: set[tuple[str, str]] = set()
        self._inside: set[int] = set()
        self.code_set = False
        """Somebody has given a function another code."""

    def start(self) -> None:
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS:
            return
        if event == "object.__setattr__" and arguments[1] == "__code__":
            self.code_set = True
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
