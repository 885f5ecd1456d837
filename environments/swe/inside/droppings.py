"""What tools leave behind in a work folder. Used on the host and inside containers. Standard library only, Python 3.8."""

from __future__ import annotations

_FOLDERS = frozenset(
    (
        *(b"__pycache__", b".pytest_cache", b".mypy_cache", b".ruff_cache", b".hypothesis", b".tox", b".nox", b".cache"),
        *(b".ipynb_checkpoints", b".eggs", b".venv", b"node_modules"),
    )
)
_NAMES = frozenset((b".coverage", b".DS_Store", b".python_history", b".bash_history"))
_ENDINGS, _EGG, _COVERAGE = (b".pyc", b".pyo", b".swp", b"~"), b".egg-info", b".coverage."


def is_dropping(path: bytes) -> bool:
    """Whether a path is what tools leave behind."""
    *folders, name = path.split(b"/")
    if any(folder in _FOLDERS or folder.endswith(_EGG) for folder in folders):
        return True
    return name in _NAMES or name.endswith(_ENDINGS) or name.startswith(_COVERAGE)
