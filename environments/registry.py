"""Names of environments and plugin task sources, and the loading of plugins that add to them.

    @environment("echo")
    class Echo(SingleTurn):
        async def step(self, action: Message) -> StepResult:
            return StepResult(messages=(Message(role="user", content=action.content),), done=False)

Built-in: `math`, `code` and `code_output`, all single-turn; what tells them apart is their grader.
"""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from environments.protocol import Environment
from environments.records import Task
from environments.single_turn import SingleTurn
from environments.sources.base import SourceFactory

EnvironmentFactory = Callable[[Task], Environment]
EnvironmentT = TypeVar("EnvironmentT", bound=EnvironmentFactory)
SourceT = TypeVar("SourceT", bound=SourceFactory)
EntryT = TypeVar("EntryT")

_environments: dict[str, EnvironmentFactory] = {}
_sources: dict[str, SourceFactory] = {}


def environment(name: str) -> Callable[[EnvironmentT], EnvironmentT]:
    """Register a class or function that makes an `Environment` from a `Task`.

    Raises ValueError when another factory already has the name.
    """

    def register(factory: EnvironmentT) -> EnvironmentT:
        entry: EnvironmentFactory = factory
        _add(_environments, "environment", name, entry)
        return factory

    return register


def task_source(name: str) -> Callable[[SourceT], SourceT]:
    """Register a factory of a `ProblemSource`, called as `factory(source_name, config=..., seed=...)`.

    A configuration uses it by `kind: plugin` and `path: <name>`.
    """

    def register(factory: SourceT) -> SourceT:
        entry: SourceFactory = factory
        _add(_sources, "task source", name, entry)
        return factory

    return register


def make_environment(task: Task) -> Environment:
    """A fresh environment for one episode of `task`. Raises ValueError for a name that is not registered."""
    return _look_up(_environments, "environment", task.env)(task)


def check_environment(name: str) -> None:
    """Raise ValueError, with the nearest name and all known ones, when `name` is not registered."""
    _look_up(_environments, "environment", name)


def known_environments() -> tuple[str, ...]:
    """All registered environment names, sorted."""
    return tuple(sorted(_environments))


def plugin_source(name: str) -> SourceFactory:
    """The registered task source of that name. Raises ValueError for a name that is not registered."""
    return _look_up(_sources, "task source", name)


def load_plugins(names: Sequence[str]) -> None:
    """Import each plugin once: a dotted module name, or the path of a `.py` file.

    A file counts as loaded by its absolute path, so calling this again (in each process, after a resume) is safe.
    Raises ValueError that names the plugin when it is missing or its import fails.
    """
    for name in names:
        if name.endswith(".py"):
            _load_file(Path(name).expanduser())
        else:
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:
                hint = "; a plugin file is named by its path, ending in .py" if isinstance(error, ModuleNotFoundError) else ""
                raise ValueError(f"run.plugins: cannot import {name!r}: {type(error).__name__}: {error}{hint}") from error


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """An error for a name that is not among `known`: says the nearest one and lists them all."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {what} {name!r}; {suggestion}known: {', '.join(choices) or 'none'}")


def _load_file(path: Path) -> None:
    location = path.resolve()
    module_name = f"ring_plugin_{location.stem}_{hashlib.blake2b(str(location).encode(), digest_size=6).hexdigest()}"
    if module_name in sys.modules:
        return
    if not location.is_file():
        raise ValueError(f"run.plugins: no file {path} (looked for {location})")
    spec = importlib.util.spec_from_file_location(module_name, location)
    assert spec is not None and spec.loader is not None, "a .py suffix always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ValueError(f"run.plugins: {path} failed to import: {type(error).__name__}: {error}") from error


def _add(registry: dict[str, EntryT], what: str, name: str, factory: EntryT) -> None:
    if not name or not isinstance(name, str):
        raise ValueError(f"{what} name {name!r} must be a non-empty string")
    present = registry.get(name)
    if present is not None and _identity(present) != _identity(factory):
        raise ValueError(f"{what} {name!r} is already registered by {_identity(present)}; choose another name")
    registry[name] = factory


def _look_up(registry: dict[str, EntryT], what: str, name: str) -> EntryT:
    if name not in registry:
        raise unknown(what, name, registry)
    return registry[name]


def _identity(factory: object) -> str:
    """Where a factory was written: equal for the same code imported again after a failed import."""
    return f"{getattr(factory, '__module__', '?')}.{getattr(factory, '__qualname__', repr(factory))}"


for _name in ("math", "code", "code_output"):
    environment(_name)(SingleTurn)
