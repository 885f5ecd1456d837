"""Watches pytest and Python in the process of the tests: whether functions of theirs were replaced, and who looks into the process.

Standard library and pytest only, Python 3.8.
"""

from __future__ import annotations

import builtins
import functools
import operator
import os
import sys
import types
from _thread import get_ident
from collections.abc import Callable
from typing import Any

WATCHED = (
    *("_pytest", "pytest", "pluggy", "unittest", "builtins", "json", "math", "operator", "re", "difflib"),
    *("ast", "pathlib", "tokenize", "importlib", "_frozen_importlib", "_frozen_importlib_external"),
)
"""Packages whose functions must stay as they are: those that give verdicts, and those by which tests are read."""
_CHECKS = ("unittest.case", "pytest", "_pytest.python_api", "_pytest.raises", "_pytest.recwarn", "_pytest.outcomes")
"""Those by which tests check."""
_EVENTS = frozenset(
    (
        *("gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._getframe", "sys._current_frames", "sys._current_exceptions"),
        *("sys.settrace", "sys.setprofile", "sys.addaudithook", "code.__new__", "object.__setattr__", "open"),
        *("ctypes.dlopen", "ctypes.addressof", "ctypes.string_at", "ctypes.create_string_buffer", "ctypes.cdata", "ctypes.call_function"),
        *("sys.monitoring.register_callback", "import", "object.__getattr__", "compile", "marshal.loads"),
    )
)
_FUNCTION, _CACHED = types.FunctionType, type(functools.lru_cache(maxsize=0)(len))
_getframe, _fspath = sys._getframe, os.fspath
_FRAMES = frozenset(("tb_frame", "gi_frame", "cr_frame", "ag_frame"))
"""Attributes that give a frame, from which all others can be reached."""
_WALKS = ("walk_tb", "_walk_tb_with_full_positions")
_OWN_NAMES = {
    "tb_frame": ("tb_frame", *_WALKS),
    "sys._getframe": ("_getframe", "currentframe"),
    "code.__new__": ("__code__",),
    "object.__setattr__": ("__code__",),
    "open": (),
    "sys.settrace": (),
    "sys.setprofile": (),
}
"""What a function of the standard library that causes an event for itself has among its names, one of these, where that is not the event's
last part. One that has none was made to by who called it: `heapq.nlargest(1, map(sys._getframe, [0]))`."""
_GIVERS = frozenset(
    (
        *("currentframe", "walk_stack", "_task_get_stack", "stack", "trace", "getouterframes", "getinnerframes"),
        *(*_WALKS, *_FRAMES),
    )
)
"""Functions of the standard library that give their caller frames."""
_GIVER_FILES = ("/bdb.py", "/pdb.py", "/gc.py", "/ctypes/__init__.py")
_MODULES = frozenset(("ctypes", "_ctypes", "cffi", "_cffi_backend", "_testcapi", "_testinternalcapi", "_testlimitedcapi"))
"""Modules that reach into the process's memory."""
_is, _code_of = operator.is_, operator.attrgetter("__code__")


class Snapshot:
    """The functions of the watched packages as they are now."""

    def __init__(self) -> None:
        self._spaces: list[tuple[str, Any, list[str], list[Any]]] = []
        """Of each module and class: what it is called, its names, and those that are watched with their values."""
        self._functions: list[Any] = []
        self._grown: list[tuple[str, Any, frozenset[str], Callable[[str], bool]]] = []
        """Of each module and class of tests: what it is called, its names, those that it had, and which new ones hide something."""
        for name, module in sorted(sys.modules.items()):
            if name in ("math", "operator", "_operator", "io", "_io"):
                self._watch(name, vars(module), [one for one, value in vars(module).items() if callable(value)])
            elif name.split(".", 1)[0] in WATCHED and isinstance(module, types.ModuleType):
                self._module(name, module)
        self._codes = [function.__code__ for function in self._functions]
        self._checks = [space for space in self._spaces if space[0].startswith(_CHECKS)]
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
        for owner, names, known, hides in self._grown:
            if len(names) != len(known) and (new := next((name for name in names if name not in known and hides(name)), None)):
                return f"{owner}.{new}"
        if codes and not all(map(_is, map(_code_of, self._functions), self._codes)):
            for function, code in zip(self._functions, self._codes):  # noqa: B905  # Python 3.8
                if _code_of(function) is not code:
                    return f"{function.__module__}.{function.__qualname__}"
        return ""

    def checks_changed(self) -> str:
        """As `changed`, of the functions by which tests check; quick, and asked before each check."""
        for owner, names, keys, values in self._checks:
            if not all(map(_is, map(names.get, keys), values)):
                return owner
        return ""

    def watch_tests(self, *, is_test: Callable[[str], bool], trusted: Callable[[Any], bool]) -> None:
        """Watch the modules of tests, too: what they define, and what they have from elsewhere than the code under test.

        `is_test`: of a module's file; `trusted`: whether code is that of tests.
        """
        for name, module in sorted(sys.modules.items()):
            if not (type(module) is types.ModuleType and is_test(str(getattr(module, "__file__", "")))):
                continue
            names = vars(module)
            keys = [key for key, value in names.items() if key == "__builtins__" or _is_of_tests(value, name, trusted)]
            self._spaces.append((name, names, keys, [names[key] for key in keys]))
            self._grown.append((name, names, frozenset(names), vars(builtins).__contains__))
            for kind in [value for value in names.values() if isinstance(value, type) and value.__module__ == name]:
                own = [key for key, value in vars(kind).items() if type(value) is _FUNCTION]
                self._spaces.append((f"{name}.{kind.__name__}", kind.__dict__, own, [kind.__dict__[key] for key in own]))
                self._grown.append((f"{name}.{kind.__name__}", kind.__dict__, frozenset(kind.__dict__), _hides_method(kind)))

    def _is_legacy(self, value: Any) -> bool:
        """Whether a value is a function of the plugin that adds py.path methods to pytest's classes when it is configured."""
        function = value.fget if isinstance(value, property) else value
        return type(function) is _FUNCTION and id(function.__code__) in self._legacy

    def _module(self, module_name: str, module: types.ModuleType) -> None:
        names = vars(module)
        if module_name == "builtins":
            self._watch(module_name, names, [name for name in names if name != "_"])
            return
        self._watch(module_name, names, [name for name, value in names.items() if isinstance(value, (_FUNCTION, _CACHED, type))])
        for name, value in list(names.items()):
            if isinstance(value, type) and value.__module__ == module_name:
                kinds = (_FUNCTION, _CACHED, staticmethod, classmethod, property)
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
        self._library = os.path.dirname(os.__file__) + "/"
        self._told: set[tuple[str, str]] = set()
        self._inside: set[int] = set()
        self.code_set = False
        """Somebody has given a function another code."""

    def start(self) -> None:
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or (event == "object.__getattr__" and arguments[1] not in _FRAMES):  # at once: each look at code is one
            return
        if event == "object.__setattr__" and arguments[1] == "__code__":
            self.code_set = True
        thread = get_ident()
        if thread in self._inside or not self._matters(event, arguments):
            return
        self._inside.add(thread)
        try:
            path = self._who(event, arguments)
            if path is not None:
                self._tell_once(event, path)
        finally:
            self._inside.discard(thread)

    def note(self, event: str, file: str) -> None:
        """Tell of an event that is none of Python's; `file`: of the code that is behind it, or empty."""
        path = self._path_of_name(file) if file else ""
        if path is not None:
            self._tell_once(event, path)

    def _tell_once(self, event: str, path: str) -> None:
        if (event, path) not in self._told and len(self._told) < 100:
            self._told.add((event, path))
            self._tell(event, path)

    def _matters(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            return _is_process_file(arguments[0])
        if event == "import":
            return arguments[0] in _MODULES
        if event == "object.__setattr__":
            return bool(arguments[1] == "__code__")
        return event != "compile" or (type(arguments[1]) is str and arguments[1].startswith(self._trusted))

    def _who(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        """The file of the tree, not a test, whose doing it is; None when it was somebody else's."""
        frame: types.FrameType | None = _getframe(2)
        if event in ("compile", "marshal.loads"):  # only its own doing: the standard library does so for each module
            return self._path(frame)
        cause = arguments[1] if event == "object.__getattr__" else event
        own = _OWN_NAMES.get(cause, (cause.rpartition(".")[2],))
        if event == "import" or event.startswith("ctypes."):
            own = (arguments[0].lstrip("_"),) if event == "import" else ("ctypes",)
        while frame is not None and self._is_standard(frame.f_code):
            if not _gives(frame.f_code) and any(name in frame.f_code.co_names for name in own):
                return None
            frame = frame.f_back
        if frame is None and event in ("sys.settrace", "sys.setprofile"):  # at the start of a thread
            hooks = vars(sys.modules["threading"])
            return self._path_of(getattr(hooks.get("_trace_hook" if event == "sys.settrace" else "_profile_hook"), "__code__", None))
        return self._path(frame)

    def _is_standard(self, code: types.CodeType) -> bool:
        """Whether code is the standard library's, or gives away frames like it."""
        name = code.co_filename
        if name.startswith(self._library):
            rest = name[len(self._library) :]
            return not rest.startswith(("site-packages/", "dist-packages/")) or "/_pytest/_code/" in name
        return name.startswith("<frozen") or "/_pytest/_code/" in name

    def _path(self, frame: types.FrameType | None) -> str | None:
        return None if frame is None else self._path_of(frame.f_code)

    def _path_of(self, code: types.CodeType | None) -> str | None:
        return None if code is None else self._path_of_name(code.co_filename)

    def _path_of_name(self, name: str) -> str | None:
        if name.startswith(self._root):
            path = name[len(self._root) :]
            return None if self._is_test(path) else path
        return None if name.startswith(self._trusted) else name[:200]


def _is_of_tests(value: Any, module: str, trusted: Callable[[Any], bool]) -> bool:
    """Whether a value of a module of tests is its own, or of a package that is watched."""
    if type(value) is types.ModuleType:
        return value.__name__.split(".", 1)[0] in WATCHED
    if type(value) is _FUNCTION:
        return trusted(value.__code__)
    return isinstance(value, type) and value.__module__ == module


def _hides_method(kind: type) -> Callable[[str], bool]:
    return lambda name: any(type(vars(base).get(name)) is _FUNCTION for base in kind.__mro__[1:])


def _gives(code: types.CodeType) -> bool:
    """Whether a function of the standard library gives its caller a frame (that of `logging` is a lambda)."""
    name = code.co_filename
    if name.endswith(_GIVER_FILES) or "/_pytest/_code/" in name:
        return True
    return code.co_name in _GIVERS or (code.co_name == "<lambda>" and name.endswith("/logging/__init__.py"))


def _is_process_file(path: Any) -> bool:
    if isinstance(path, bytes):
        path = path.decode(errors="replace")
    return isinstance(path, str) and "proc/" in path and path.rsplit("/", 1)[-1] in ("mem", "maps", "fd", "environ", "pagemap")
