"""A repository's files as they stand in its image, and the functions in them that its stable tests enter."""

import contextlib
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from environments.swe.factory.mutations import functions
from environments.swe.factory.source import Function, Source
from environments.swe.inside.modes import LINK
from environments.swe.inside.suite_worker_paths import is_setting_path, is_test_path
from environments.swe.records import RepoImage, TreeChange
from environments.swe.tree_tar import read_tree

LARGEST_FILE = 1 << 19
"""Bytes of a Python file; larger ones are data, and take long to parse."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A function to break."""

    source: Source
    function: Function
    name: str
    """Qualified."""
    mode: int
    """Of its file, as in git."""
    tests: tuple[str, ...]
    """The stable tests that enter it."""


def read_files(tar: bytes) -> dict[str, TreeChange]:
    """The regular files of an engine's archive of a folder, by their path in it. Those whose names are not UTF-8 are left out: they are
    neither Python modules nor licences."""
    files = {}
    for change in read_tree(tar):
        if change.mode != LINK and len(change.data) <= LARGEST_FILE:
            with contextlib.suppress(UnicodeDecodeError):
                files[change.path.decode()] = change
    return files


def find_targets(image: RepoImage, files: Mapping[str, TreeChange]) -> tuple[tuple[Target, ...], Counter[str]]:
    """The functions to break, in the order of their paths and lines, and for how many others there is which reason not to."""
    covering = {_place(key): tests for key, tests in image.covered.items()}
    targets, skipped = [], Counter[str]()
    for path in sorted(path for path in files if path.endswith(".py")):
        if is_test_path(path) or is_setting_path(path):
            continue  # graders put these back
        try:
            source = Source.of(path, files[path].data)
        except ValueError:
            skipped["in a file that is no Python in UTF-8"] += sum(where[0] == path for where in covering)
            continue
        for name, function in functions(source):
            lines = {function.lineno, *(decorator.lineno for decorator in function.decorator_list)}
            entered = next((covering[path, line] for line in sorted(lines) if (path, line) in covering), ())
            if tests := tuple(test for test in entered if test in image.tests):
                mode = files[path].mode
                assert mode is not None
                targets.append(Target(source=source, function=function, name=name, mode=mode, tests=tests))
            else:
                skipped["not covered by a stable test"] += 1
    return tuple(targets), skipped


def licence_of(files: Mapping[str, TreeChange]) -> str:
    """The licence that the package's own metadata name; empty when they name none."""
    about = files["PKG-INFO"].data.decode(errors="replace").partition("\n\n")[0] if "PKG-INFO" in files else ""
    for pattern in (r"^License-Expression: *(.+)$", r"^Classifier: License :: (?:OSI Approved :: )?(.+)$", r"^License: *(.+)$"):
        if found := re.search(pattern, about, re.M):
            return found[1].strip()[:80]
    try:
        project = tomllib.loads(files["pyproject.toml"].data.decode()).get("project", {})
    except (KeyError, ValueError):
        return ""
    named = project.get("license", "") if isinstance(project, dict) else ""
    text = named.get("text", "") if isinstance(named, dict) else named
    return text.strip()[:80] if isinstance(text, str) and "\n" not in text.strip() else ""


def _place(key: str) -> tuple[str, int]:
    """Path and line of a key of `SuiteResult.covered`."""
    path, _, line = key.rsplit(":", 2)
    return path, int(line)
