"""Names of environments and plugin task sources, and the loading of plugins that add to them.

    @environment("echo")
    class Echo(SingleTurn):
        async def step(self, action: Message) -> StepResult:
            return StepResult(messages=(Message(role="user", content=action.content),), done=False)

Built-in: `math`, the code kinds and trace predictions, most of them single-turn: what tells those apart is their grader. `math_python`
has a tool, `code_attempts` shows the failures of public tests, `swe` repairs repositories in containers, `trace_debugger` asks what a
debugger would show. Besides registered names there are those that installed distributions offer as entry points, and dotted paths,
`package.module:Name`.
"""

import asyncio
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from environments.code_attempts import CodeAttempts
from environments.lookup import entry_point_names, is_dotted, load_dotted, load_entry_point, unknown
from environments.math_python import MathPython
from environments.protocol import Environment
from environments.provenance import code_version
from environments.records import Task
from environments.shape import SHAPE, check_factory, check_object
from environments.single_turn import SingleTurn
from environments.sources.base import SourceFactory
from environments.swe.agent import RepoAgent
from environments.traces.debugger.environment import TraceDebugger
from environments.traces.tasks import TRACE_ENVS

EnvironmentFactory = Callable[[Task], Environment]
EnvironmentT = TypeVar("EnvironmentT", bound=EnvironmentFactory)
SourceT = TypeVar("SourceT", bound=SourceFactory)
EntryT = TypeVar("EntryT")

ENVIRONMENT_GROUP = "codeworld_rl.environments"
SOURCE_GROUP = "codeworld_rl.task_sources"
"""Entry-point groups of installed distributions."""
_NOT_IN_NAMES = frozenset("+*: \t\n")
"""They mean something in a mix of rewards or in a dotted path."""


class Registry(Generic[EntryT]):
    """Factories by name: registered by a decorator, offered by an installed distribution, or named by dotted path."""

    def __init__(self, what: str, *, group: str, accept: Callable[[Any, str], EntryT]) -> None:
        """`what` is the noun of error messages, `group` the entry-point group.

        `accept(object, name)` turns an imported object into a factory and raises ValueError for one that is none.
        """
        self.entries: dict[str, EntryT] = {}
        self._what = what
        self._group = group
        self._accept = accept
        self._found: dict[str, EntryT] = {}

    def add(self, name: str, factory: EntryT) -> None:
        """Register `factory`. Raises ValueError for a name that is taken by another one or has a sign in it that may not be there."""
        if not isinstance(name, str) or not name or set(name) & _NOT_IN_NAMES:
            raise ValueError(f"{self._what} name {name!r} must be a non-empty string without spaces, '+', '*' and ':'")
        present = self.entries.get(name)
        if present is not None and identity(present) != identity(factory):
            raise ValueError(f"{self._what} {name!r} is already registered by {identity(present)}; choose another name")
        self.entries[name] = factory
        self._found.pop(name, None)

    def find(self, name: str) -> EntryT:
        """The factory of that name. Raises ValueError for one that is unknown, broken, or offered by two."""
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def names(self) -> tuple[str, ...]:
        """All names, those of installed distributions included, sorted."""
        return tuple(sorted({*self.entries, *entry_point_names(self._group)}))

    def _search(self, name: str) -> EntryT:
        if is_dotted(name):
            return self._accept(load_dotted(name, what=self._what), name)
        offered = load_entry_point(name, group=self._group, what=self._what)
        registered = self.entries.get(name)  # looked up now: the import may have registered it, too
        if offered is None and registered is None:
            raise unknown(self._what, name, self.names())
        if offered is None or registered is None:
            return self._accept(offered, name) if registered is None else registered
        if identity(registered) != identity(offered):
            raise ValueError(
                f"{self._what} {name!r} is registered by {identity(registered)}, and an installed distribution offers {identity(offered)} "
                "under the same name: rename one, or use a dotted path"
            )
        return registered


def identity(factory: object) -> str:
    """Where a factory was written: equal for the same code imported again after a failed import."""
    return f"{getattr(factory, '__module__', '?')}.{getattr(factory, '__qualname__', repr(factory))}"


def _callable(found: Any, name: str) -> Any:
    if not callable(found):
        raise ValueError(f"{name!r} is of type {type(found).__name__}; it must be a class or a function")
    return found


_environments: Registry[EnvironmentFactory] = Registry("environment", group=ENVIRONMENT_GROUP, accept=_callable)
_sources: Registry[SourceFactory] = Registry("task source", group=SOURCE_GROUP, accept=_callable)


def environment(name: str) -> Callable[[EnvironmentT], EnvironmentT]:
    """Register a class or function that makes an `Environment` from a `Task`.

    Raises ValueError when another factory already has the name.
    """

    def register(factory: EnvironmentT) -> EnvironmentT:
        entry: EnvironmentFactory = factory
        _environments.add(name, entry)
        return factory

    return register


def task_source(name: str) -> Callable[[SourceT], SourceT]:
    """Register a factory of a `ProblemSource`, called as `factory(source_name, config=..., seed=...)`.

    A configuration uses it by `kind: plugin` and `path: <name>`.
    """

    def register(factory: SourceT) -> SourceT:
        entry: SourceFactory = factory
        _sources.add(name, entry)
        return factory

    return register


def make_environment(task: Task) -> Environment:
    """A fresh environment for one episode of `task`. Raises ValueError as `check_environment`."""
    return _environments.find(task.env)(task)


def check_environment(name: str) -> None:
    """Raise ValueError for an unknown name (with the nearest and all known ones) and for a dotted path that leads nowhere."""
    _environments.find(name)


def environment_factory(name: str) -> EnvironmentFactory:
    """What makes environments of that name. Raises ValueError as `check_environment`."""
    return _environments.find(name)


def environment_version(name: str) -> str:
    """Which code plays an environment, as `environments.provenance.code_version`. Raises ValueError as `check_environment`."""
    return code_version(_environments.find(name))


def try_environment(task: Task) -> None:
    """Make the environment of a task and close it again. Raises ValueError when `task.env` names something else, or it cannot be made."""
    name, factory = task.env, _environments.find(task.env)
    check_factory(name, factory)
    try:
        made = factory(task)
    except Exception as error:
        raise ValueError(
            f"environment {name!r} cannot be made for problem {task.id!r}: {type(error).__name__}: {error}; {SHAPE}"
        ) from error
    check_object(name, made)
    try:
        asyncio.run(_close(made))
    except Exception as error:
        raise ValueError(f"environment {name!r}: close() without reset() raised {type(error).__name__}: {error}") from error


async def _close(made: Environment) -> None:
    await made.close()


def environments_of(file: Path) -> tuple[str, ...]:
    """Names whose classes or functions a loaded plugin file defines, sorted."""
    modules = {name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(file.resolve())}
    return tuple(sorted(name for name, factory in _environments.entries.items() if factory.__module__ in modules))


def known_environments() -> tuple[str, ...]:
    """All environment names, sorted; those of installed distributions are not imported for it."""
    return _environments.names()


def plugin_source(name: str) -> SourceFactory:
    """The task source of that name or dotted path. Raises ValueError for one that does not exist."""
    return _sources.find(name)


def load_plugins(names: Sequence[str], *, field: str = "run.plugins") -> None:
    """Import each plugin once: a dotted module name, or the path of a `.py` file.

    A file counts as loaded by its absolute path, so calling this again (in each process, after a resume) is safe. `field`
    is where the names were given, for errors.
    Raises ValueError that names the plugin when it is missing or its import fails.
    """
    for name in names:
        if name.endswith(".py"):
            _load_file(Path(name).expanduser(), field=field)
        else:
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:
                hint = "; a plugin file is named by its path, ending in .py" if isinstance(error, ModuleNotFoundError) else ""
                raise ValueError(f"{field}: cannot import {name!r}: {type(error).__name__}: {error}{hint}") from error


def _load_file(path: Path, *, field: str) -> None:
    location = path.resolve()
    module_name = f"ring_plugin_{location.stem}_{hashlib.blake2b(str(location).encode(), digest_size=6).hexdigest()}"
    if module_name in sys.modules:
        return
    if not location.is_file():
        raise ValueError(f"{field}: no file {path} (looked for {location})")
    spec = importlib.util.spec_from_file_location(module_name, location)
    assert spec is not None and spec.loader is not None, "a .py suffix always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ValueError(f"{field}: {path} failed to import: {type(error).__name__}: {error}") from error


for _name in ("math", "code", "code_stdio", "code_puzzle", "code_class", "code_input", "code_output", *TRACE_ENVS):
    environment(_name)(SingleTurn)
environment("code_attempts")(CodeAttempts)
environment("math_python")(MathPython)
environment("swe")(RepoAgent)
environment("trace_debugger")(TraceDebugger)
