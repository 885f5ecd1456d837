"""What an image is made from: a release on an index, a source package in a file, or the HEAD of a local git repository."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from environments.swe.images.package_index import fetch_source_package
from environments.swe.images.tree import read_git_head, read_source_package
from environments.swe.records import TreeChange


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A repository's files, and where they came from."""

    name: str
    origin: str
    """For `RepoImage.source`."""
    base_commit: str
    tree: tuple[TreeChange, ...]
    """All files, sorted by path."""
    is_git: bool = False


def read_source(source: str, *, name: str | None = None) -> Source:
    """Fetch or read what `source` names; nothing of it is executed. Raises ValueError."""
    if source.startswith("pypi:"):
        match = re.fullmatch(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)", source)
        if match is None:
            raise ValueError(f"source is {source!r}; write pypi:NAME==VERSION, for example pypi:toolz==1.2.0")
        _, data = fetch_source_package(match[1], match[2])
        return _from_package(data, name=name or match[1], origin=source)
    path = Path(source)
    if path.is_file():
        if not path.name.endswith((".tar.gz", ".tgz")):
            raise ValueError(f"source {source} is a file but no source package; it must be a .tar.gz")
        stem = re.sub(r"-[^-]*$", "", re.sub(r"\.(?:tar\.gz|tgz)$", "", path.name))
        return _from_package(path.read_bytes(), name=name or stem, origin=f"sdist:{path.name}")
    if path.is_dir():
        commit, tree = read_git_head(path)
        return Source(
            name=task_name(name or path.resolve().name), origin=f"git:{path.resolve().name}", base_commit=commit, tree=tree, is_git=True
        )
    raise ValueError(f"source is {source!r}; it must be pypi:NAME==VERSION, a source package (.tar.gz), or the folder of a git repository")


def task_name(text: str) -> str:
    """The name with `-` for all but letters, digits, `-` and `_`. Raises ValueError when nothing is left."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")
    if not name:
        raise ValueError(f"name is {text!r}; it needs letters or digits")
    return name


def _from_package(data: bytes, *, name: str, origin: str) -> Source:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Source(name=task_name(name), origin=origin, base_commit=digest, tree=read_source_package(data))
