"""Which code a process runs: nodes of a cluster must all have the same, or records, seeds and weights would be read differently.

`sealed` wraps what is sent to another process: it is opened there only after that process's own code was found to be the same.
"""

import importlib.metadata
import pickle
import platform
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("rl", "rewards", "environments", "configs")
_SUFFIXES = (".py", ".cpp", ".h")
_LIBRARIES = ("torch", "ray", "deepspeed", "transformers", "numpy")
_EVERYWHERE = ("codeworld-rl", "python", "ray")
"""What is the same even in an environment of its own, as vLLM's generators have."""


@cache
def code_version() -> Mapping[str, str]:
    """The hash of the project's sources, and the versions of Python and of the libraries that matter between processes."""
    digest = xxhash.xxh3_64()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*")):
            if path.suffix in _SUFFIXES:
                digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return {"codeworld-rl": digest.hexdigest(), "python": ".".join(platform.python_version_tuple()[:2]), **_libraries()}


def _libraries() -> Mapping[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_code(expected: Mapping[str, str], *, who: str) -> None:
    """Compare the run's versions with this process's own. Raises ValueError that names the node, what differs and both versions."""
    here = code_version()
    differs = [f"{name} {here.get(name, 'missing')} and not {expected[name]}" for name in expected if here.get(name) != expected[name]]
    if differs:
        raise ValueError(
            f"{who}: node {socket.gethostname()} has other code than the run ({_ROOT}): {', '.join(differs)}; install the same version of "
            "the project and its libraries on every node"
        )


class Sealed:
    """A value for another process, which checks its code before it unpacks it. It arrives as the value itself."""

    def __init__(self, value: Any, *, who: str) -> None:
        """`who` names the receiving part in the error."""
        self._value, self._who = value, who

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, ({name: code_version()[name] for name in _EVERYWHERE}, self._who, pickle.dumps(self._value))


def _open(expected: Mapping[str, str], who: str, data: bytes) -> Any:
    check_code(expected, who=who)
    return pickle.loads(data)  # from the run's own driver
