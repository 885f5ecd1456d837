"""Which code an environment or a reward is: the version of its package, or a hash of its source.

Two runs whose rollouts carry the same values were played and graded by the same code.
"""

import hashlib
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

OWN = "codeworld-rl"
"""This distribution: its version says little while it is being worked on, so its sources count, too."""
_DIGITS = 16


def code_version(found: object) -> str:
    """`distribution version` of the package that offers a class or function, or `sha256:<16 digits>` of its file."""
    module = getattr(found, "__module__", "")
    distribution = _distribution(module)
    if distribution:
        return f"{distribution} {metadata.version(distribution)}"
    return f"sha256:{source_hash(module)}"


def source_hash(*modules: str, name: str = "") -> str:
    """16 hexadecimal digits over `name` and the code of modules: the version of an installed package, else the Python files of the
    module's folder when it lies in a package, or its own file."""
    parts = sorted({_module_hash(module) for module in modules})
    return hashlib.sha256("\0".join([name, *parts]).encode()).hexdigest()[:_DIGITS]


def _module_hash(module: str) -> str:
    """The same wherever a plugin file lies: its module's name depends on the place, its content does not."""
    distribution = _distribution(module)
    digest = hashlib.sha256(f"{module} {metadata.version(distribution)}".encode() if distribution else b"")
    if distribution in (None, OWN):
        for file in _files(module):
            digest.update(b"\0" + file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _files(module: str) -> list[Path]:
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file or not Path(file).is_file():
        return []  # built in, or typed at a prompt
    path = Path(file)
    return sorted(path.parent.glob("*.py")) if "." in module else [path]


def _distribution(module: str) -> str | None:
    names = _distributions().get(module.partition(".")[0], ())
    return names[0] if names else None


@cache
def _distributions() -> dict[str, list[str]]:
    return {package: list(names) for package, names in metadata.packages_distributions().items()}
