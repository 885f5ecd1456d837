"""Which paths of a repository are tests, settings of tests, or code that nobody can read. Used on the host and inside containers.

Standard library only, Python 3.8.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

TEST_FOLDERS = frozenset(("test", "tests"))
TEST_NAMES = ("test_*.py", "*_test.py", "test.py", "tests.py", "conftest.py")
SETTING_NAMES = ("pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", "pyproject.toml")
"""Files in which pytest looks for its settings."""
LOADED_NAMES = ("sitecustomize.py", "usercustomize.py", "*.pth", "*.pyc", "*.pyo")
"""Files that Python loads without being asked, or in place of a source."""
LOADED_FOLDERS = ("__pycache__", "*.egg-info", "*.dist-info", "*.egg")
"""Folders of which that holds: entry points of pytest plugins are in them."""
COMPILED_NAMES = ("*.so", "*.so.*", "*.pyd", "*.dll", "*.dylib")
RUNNER_MODULES = frozenset(
    ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "py", "pygments", "exceptiongroup", "tomli", "unittest")
)
"""Modules that a run of tests is made of; at the root of a tree they would be found in place of the real ones."""


def is_test_path(path: str) -> bool:
    """Whether a path, relative to the work folder, is a test, or data beside tests."""
    *folders, name = path.split("/")
    return any(folder in TEST_FOLDERS for folder in folders) or any(fnmatchcase(name, pattern) for pattern in TEST_NAMES)


def is_setting_path(path: str) -> bool:
    """Whether a path can change how tests are found and run, without being a test."""
    *folders, name = path.split("/")
    if any(fnmatchcase(folder, pattern) for folder in folders for pattern in LOADED_FOLDERS):
        return True
    first = path.split("/", 1)[0]
    if (first[:-3] if first.endswith(".py") else first) in RUNNER_MODULES:
        return True
    return name in SETTING_NAMES or any(fnmatchcase(name, pattern) for pattern in LOADED_NAMES)


def is_compiled_path(path: str) -> bool:
    """Whether a path is machine code."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatchcase(name, pattern) for pattern in COMPILED_NAMES)
