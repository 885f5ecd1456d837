"""The compiled part of the tracer: `box_native.cpp`, built where there is a C++ compiler, and put into the box beside the Python files."""

import sys
import sysconfig
import threading
from pathlib import Path

from environments.compiled import compiled_library

_FOLDER = Path(__file__).parent
_SOURCE = _FOLDER / "box_native.cpp"
_HEADERS = tuple(_FOLDER / f"native_{part}.h" for part in ("form", "table", "locals"))
_FLAGS = (
    *("-O2", "-DNDEBUG", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"),
    *("-shared", "-fPIC", "-s", "-Wl,--as-needed"),
)
_VERSION = (3, 11)
_lock = threading.Lock()
_files: dict[str, bytes] | None = None


def native_library() -> Path:
    """Path of the module for this interpreter; compiles it at the machine's first use (some seconds).

    Raises ValueError that says why there is none: another version of Python, no compiler, no headers of Python.
    """
    if sys.version_info[:2] != _VERSION or sys.implementation.name != "cpython":
        raise ValueError(f"the compiled tracer is for CPython {'.'.join(map(str, _VERSION))}, and this is {sys.version.split()[0]}")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        raise ValueError(f"there is no {include}/Python.h: apt-get install python3-dev")
    return compiled_library(_SOURCE, flags=(*_FLAGS, f"-I{include}"), headers=_HEADERS, identity=sys.version.encode())


def native_files() -> dict[str, bytes]:
    """The module as a file of the box. Empty where it cannot be built: the tracer then runs in Python alone, with the same traces.

    An interpreter of another version or kind, such as that of a container, does not find the module by this name.
    """
    global _files
    with _lock:
        if _files is None:
            try:
                name = f"environments/traces/box_native{sysconfig.get_config_var('EXT_SUFFIX')}"
                _files = {name: native_library().read_bytes()}
            except (ValueError, OSError):
                _files = {}
        return _files
