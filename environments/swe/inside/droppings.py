"""What tools leave behind in a work folder. Used on the host and inside containers. Standard library only, Python 3.8."""

from __future__ import annotations

from fnmatch import fnmatchcase

_FOLDERS = (
    *("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox", ".cache", ".ipynb_checkpoints"),
    *("*.egg-info", ".eggs", ".venv", "node_modules"),
)
_NAMES = ("*.pyc", "*.pyo", ".coverage", ".coverage.*", "*.swp", "*~", ".DS_Store", ".python_history", ".bash_history")


def is_dropping(path: bytes) -> bool:
    """Whether a path is what tools leave behind."""
    *folders, name = path.decode("utf-8", "surrogateescape").split("/")
    if any(fnmatchcase(folder, pattern) for folder in folders for pattern in _FOLDERS):
        return True
    return any(fnmatchcase(name, pattern) for pattern in _NAMES)
