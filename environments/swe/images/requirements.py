"""Which distributions a repository needs: to be built, to run, and to run its tests. Read from its files as text.

Runtime requirements come from the metadata that its own build backend gives (inside a container, see `build.py`). What the tests need is
written down in many places; the usual ones are read, and tools that only check style or make documents are left out.
"""

import configparser
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from environments.swe.images.tree import text_of
from environments.swe.records import TreeChange

_TEST_EXTRAS = ("test", "tests", "testing", "pytest")
_DEV_EXTRAS = ("dev", "develop", "development")
_REQUIREMENT_FILES = tuple(
    pattern.format(name)
    for name in ("test", "tests", "testing")
    for pattern in (
        "requirements-{}.txt",
        "requirements_{}.txt",
        "{}-requirements.txt",
        "{}_requirements.txt",
        "requirements/{}.txt",
        "{}/requirements.txt",
    )
)
_EXTRA_BUILD = {"hatchling.build": "editables", "pdm.backend": "editables"}
"""What a build backend asks for beyond `requires` when an editable install is made."""
_PLUGIN_OPTIONS = {
    r"--timeout\b|^timeout\b": "pytest-timeout",
    r"--benchmark\b": "pytest-benchmark",
    r"asyncio[-_]mode": "pytest-asyncio",
    r"^mock_use_standalone_module": "pytest-mock",
    r"^DJANGO_SETTINGS_MODULE|--ds\b": "pytest-django",
    r"--snapshot": "syrupy",
}
"""Options of pytest's configuration that say which plugin the tests use. Plugins that repeat, reorder or show tests otherwise are not
loaded when tests run (`suite.py`), so they are not fetched."""
_NO_TEST_TOOLS = re.compile(
    r"pytest-(?:cov|xdist|randomly|random-order|sugar|rerunfailures|black|flake8|mypy|ruff)|coverage|black|ruff|flake8.*|isort|pylint|mypy|pyright|pyre-check|types-.*|sphinx.*|furo|mkdocs.*|tox.*|nox|pre-commit.*|build|twine|wheel|"
    r"bump.*|coveralls|codecov|check-manifest|towncrier|pyroma|bandit|docutils|myst-parser|ipython|ipdb|jupyter.*|commitizen|pip|hatch|poetry|"
    r"pdm|uv|rstcheck|doc8|pygments-github-lexers|cibuildwheel|setuptools"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """Of the repository's distribution, as its build backend states it."""

    name: str
    requires: tuple[str, ...]
    """Requirement strings with their markers, of the extras too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What goes into an image besides the repository."""

    runtime: tuple[str, ...]
    tests: tuple[str, ...]
    """The image is made without those that no wheel is to be had of."""


def build_requirements(tree: Sequence[TreeChange], *, python: Mapping[str, str]) -> tuple[str, ...]:
    """What the build needs (PEP 518). `python` as in `find_needs`. Raises ValueError for a pyproject.toml that is none."""
    system = _pyproject(tree).get("build-system", {})
    backend = str(system.get("build-backend", ""))
    listed = [requirement for one in system.get("requires", ()) if (requirement := _parse(str(one))) is not None]
    return _strings(
        [
            *(one for one in listed if _applies(one, python, extra="")),
            *([Requirement(_EXTRA_BUILD[backend])] if backend in _EXTRA_BUILD else []),
        ]
    )


def has_build(tree: Sequence[TreeChange]) -> bool:
    """The repository is a distribution: there is something that pip can install."""
    project = _pyproject(tree)
    return "project" in project or "build-system" in project or any(change.path == b"setup.py" for change in tree)


def find_needs(tree: Sequence[TreeChange], metadata: Metadata | None, *, python: Mapping[str, str]) -> Needs:
    """`python`: the values of PEP 508's marker variables in the image."""
    own = metadata.name if metadata else ""
    requires = [requirement for one in (metadata.requires if metadata else ()) if (requirement := _parse(one)) is not None]
    runtime = [one for one in requires if _applies(one, python, extra="")]
    tests = [*_named_groups(tree, requires, python, _TEST_EXTRAS), *_from_files(tree), *_from_tox(tree)]
    if not tests:
        tests = _named_groups(tree, requires, python, _DEV_EXTRAS)
    tests += [Requirement(plugin) for option, plugin in _PLUGIN_OPTIONS.items() if re.search(option, _pytest_options(tree), re.M)]
    skipped = {canonicalize_name(one.name) for one in runtime} | {canonicalize_name(own)}
    kept = [
        one
        for one in tests
        if one.url is None
        and _applies(one, python, extra="")
        and canonicalize_name(one.name) not in skipped
        and not _NO_TEST_TOOLS.fullmatch(canonicalize_name(one.name))
    ]
    return Needs(runtime=_strings(runtime), tests=_strings(kept))


def read_requirement_lines(text: str) -> tuple[str, ...]:
    """The requirements of a requirements file: its options, addresses and comments are passed over."""
    return _strings(_lines(text))


def _strings(requirements: Iterable[Requirement]) -> tuple[str, ...]:
    """Without markers and extras of the own package, each once."""
    found: dict[str, None] = {}
    for one in requirements:
        extras = f"[{','.join(sorted(one.extras))}]" if one.extras else ""
        found[f"{one.name}{extras}{one.specifier}" if one.url is None else f"{one.name}{extras} @ {one.url}"] = None
    return tuple(found)


def _named_groups(
    tree: Sequence[TreeChange], requires: Sequence[Requirement], python: Mapping[str, str], names: Sequence[str]
) -> list[Requirement]:
    """Extras, dependency groups (PEP 735) and Poetry's groups of these names."""
    found = [one for name in names for one in requires if _applies(one, python, extra=name) and not _applies(one, python, extra="")]
    project = _pyproject(tree)
    groups = project.get("dependency-groups", {})
    for name in names:
        found += _group(groups, name, depth=0)
    poetry = project.get("tool", {}).get("poetry", {})
    tables = [poetry.get("group", {}).get(name, {}).get("dependencies", {}) for name in names]
    if "dev" in names:
        tables.append(poetry.get("dev-dependencies", {}))
    found += [requirement for table in tables for name in table if name != "python" and (requirement := _parse(name)) is not None]
    return [Requirement(str(one).partition(";")[0].strip()) for one in found]


def _group(groups: Mapping[str, Any], name: str, *, depth: int) -> list[Requirement]:
    found = []
    for one in groups.get(name, ()):
        if isinstance(one, str) and (requirement := _parse(one)) is not None:
            found.append(requirement)
        elif isinstance(one, dict) and depth < 8:
            found += _group(groups, str(one.get("include-group", "")), depth=depth + 1)
    return found


def _from_files(tree: Sequence[TreeChange]) -> list[Requirement]:
    return [one for path in _REQUIREMENT_FILES for one in _lines(text_of(tree, path))]


def _from_tox(tree: Sequence[TreeChange]) -> list[Requirement]:
    """`deps` of tox's main environment; a line may begin with factors, `py311: pytest`."""
    lines = _ini(text_of(tree, "tox.ini")).get("testenv", {}).get("deps", "")
    return _lines("\n".join(line.rpartition(": ")[2] for line in lines.splitlines()))


def _pytest_options(tree: Sequence[TreeChange]) -> str:
    """pytest's configuration as text: one `key = value` a line."""
    tables = [_pyproject(tree).get("tool", {}).get("pytest", {}).get("ini_options", {})]
    for path, section in (("pytest.ini", "pytest"), ("tox.ini", "pytest"), ("setup.cfg", "tool:pytest")):
        tables.append(_ini(text_of(tree, path)).get(section, {}))
    return "\n".join(f"{key} = {' '.join(value) if isinstance(value, list) else value}" for table in tables for key, value in table.items())


def _lines(text: str) -> list[Requirement]:
    lines = (re.sub(r"(?:^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [requirement for line in lines if line and not line.startswith("-") and (requirement := _parse(line)) is not None]


def _parse(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def _applies(requirement: Requirement, python: Mapping[str, str], *, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**python, "extra": extra})


def _pyproject(tree: Sequence[TreeChange]) -> dict[str, Any]:
    try:
        return tomllib.loads(text_of(tree, "pyproject.toml"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the repository's pyproject.toml cannot be read: {error}") from error


def _ini(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    return {name: dict(parser.items(name)) for name in parser.sections()}
