"""The modules of which a run of tests is made, pytest's and Python's own, kept in an image as one file of byte code.

    python3 -I -c SOURCE write     as the last step of an image's build: import them, and keep what was imported

Loading them then takes neither a search nor the reading of hundreds of files, and regular expressions come compiled. A module counts as
long as its source has the size and the time that it had; all others, and all modules where an image has no such file, are imported as
ever. Modules of the work folder are never kept. Standard library only, Python 3.8.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from typing import Any

PLACE = "/usr/lib/codeworld-rl/runner_modules"
_WORKED_WITH = ("ast", "fcntl", "fnmatch", "json", "secrets", "tempfile", "traceback", "typing")
"""By the runner itself."""
_KEPT_OUT = ("/testbed/", "/tmp/", "/home/")
_MARSHAL = 4


def import_runner() -> None:
    """Import pytest with all of its own plugins, and what else a run needs. Raises ImportError and whatever they raise."""
    import importlib
    import importlib.metadata
    import unittest  # noqa: F401  # so that it is the real one, and watched

    for name in _WORKED_WITH:
        importlib.import_module(name)
    import _pytest.config
    import pytest  # noqa: F401

    for name in _pytest.config.default_plugins:
        importlib.import_module(f"_pytest.{name}")


def write(place: str) -> None:
    """Import the runner and keep it."""
    sys.dont_write_bytecode = True
    expressions = _record_expressions()
    import_runner()
    index: dict[str, tuple[Any, ...]] = {}
    codes: list[bytes] = []
    at = 0
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        path = str(getattr(spec, "origin", ""))
        if type(getattr(spec, "loader", None)).__name__ != "SourceFileLoader" or path.startswith(_KEPT_OUT) or spec is None:
            continue
        status, code = os.stat(path), marshal.dumps(spec.loader.get_code(spec.name), _MARSHAL)
        folders = spec.submodule_search_locations
        index[spec.name] = (path, spec.cached, None if folders is None else list(folders), status.st_mtime, status.st_size, at, len(code))
        codes.append(code)
        at += len(code)
    head = marshal.dumps((sys.version, index, expressions), _MARSHAL)
    os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
    with open(place, "wb") as file:
        file.write(len(head).to_bytes(8, "big") + head)
        file.writelines(codes)
    os.chmod(place, 0o644)


def _compiler() -> Any:
    """The module that compiles regular expressions."""
    import re

    return getattr(re, "_compiler", None) or sys.modules["sre_compile"]


def _record_expressions() -> dict[Any, tuple[Any, ...]]:
    """What comes of regular expressions from now on; filled as they are compiled."""
    compiler = _compiler()
    sre, old = compiler._sre, compiler.compile
    found: dict[Any, tuple[Any, ...]] = {}
    last: list[Any] = []

    class Core:
        """The core in C, whose arguments are noted."""

        def __getattr__(self, name: str) -> Any:
            return getattr(sre, name)

        def compile(self, *arguments: Any) -> Any:
            last[:] = arguments[1:]
            return sre.compile(*arguments)

    def compile(pattern: Any, flags: int = 0) -> Any:
        compiler._sre = Core()
        try:
            result = old(pattern, flags)
        finally:
            compiler._sre = sre
        if type(pattern) in (str, bytes):
            all_flags, code, groups, names, numbers = last
            found[pattern, int(flags)] = (int(all_flags), [int(one) for one in code], groups, dict(names), tuple(numbers))
        return result

    compiler.compile = compile
    return found


class Loaded:
    """What an image keeps, in use. It is the finder itself."""

    def __init__(self, file: int) -> None:
        """`file`: a descriptor."""
        self._file = file
        self._loaders: list[Any] = []
        size = int.from_bytes(os.read(file, 8), "big")
        version, index, self._expressions = marshal.loads(os.read(file, size))
        self._index: dict[str, tuple[Any, ...]] = index if version == sys.version else {}
        self._start = 8 + size
        self._restore: Callable[[], None] | None = None

    def start(self) -> None:
        sys.meta_path.insert(0, self)
        if not self._index:
            return
        compiler, known = _compiler(), self._expressions
        old, core = compiler.compile, compiler._sre.compile

        def compile(pattern: Any, flags: int = 0) -> Any:
            found = known.get((pattern, int(flags))) if type(pattern) in (str, bytes) else None
            return old(pattern, flags) if found is None else core(pattern, *found)

        def restore() -> None:
            compiler.compile = old

        compiler.compile, self._restore = compile, restore

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        import _frozen_importlib
        import _frozen_importlib_external

        if name not in self._index:
            return None
        origin, cached, folders, mtime, size, at, length = self._index[name]
        try:
            status = os.stat(origin)
        except OSError:
            return None
        if (status.st_mtime, status.st_size) != (mtime, size):
            return None
        loader: Any = _frozen_importlib_external.SourceFileLoader(name, origin)
        loader.get_code = lambda _: marshal.loads(os.pread(self._file, length, self._start + at))
        self._loaders.append(loader)
        spec = _frozen_importlib.ModuleSpec(name, loader, origin=origin, is_package=folders is not None)
        spec.submodule_search_locations, spec.cached, spec.has_location = folders, cached, True
        return spec

    def end(self) -> None:
        """From now on everything is imported as ever; what was imported does not show how."""
        sys.meta_path.remove(self)
        if self._restore is not None:
            self._restore()
        for loader in self._loaders:
            del loader.get_code
        os.close(self._file)


def use(place: str) -> Loaded | None:
    """Import from what the image keeps, until the `end` of what is given back; None where it keeps nothing."""
    try:
        file = os.open(place, os.O_RDONLY)
    except OSError:
        return None
    found = Loaded(file)
    found.start()
    return found


if __name__ == "__main__" and sys.argv[1:] == ["write"]:
    try:
        write(PLACE)
    except ImportError:
        sys.exit(0)  # without pytest: whoever runs tests is told
LOADED = use(PLACE) if __name__ != "__main__" else None
"""Before the modules of the runner, which follow this one, import anything."""
