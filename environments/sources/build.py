"""From a run's configuration to its mixture of tasks."""

from configs.schema import Config, TaskConfig
from environments.lookup import is_dotted
from environments.registry import check_environment, load_plugins, plugin_source, try_environment
from environments.sources.base import ProblemSource
from environments.sources.hf import HfSource
from environments.sources.jsonl import JsonlSource
from environments.sources.mixture import Mixture, MixturePart
from environments.sources.programs import ProgramSource
from environments.sources.reasoning_gym_source import ReasoningGymSource
from environments.sources.swe_tasks import SweSource
from environments.sources.traces import forget_recordings, trace_source


def build_tasks(config: Config) -> Mixture:
    """The mixture of all configured task sources, at its first index.

    Raises ValueError that names the source, and the file and line where there is one, for anything unusable: all data is
    read and checked here, before a run starts.
    """
    load_plugins(config.run.plugins)
    parts = []
    for name, task in config.tasks.items():
        try:
            check_environment(task.env)
        except ValueError as error:
            raise ValueError(f"tasks.{name}.env: {error}") from None
        source = build_source(name, config=task, seed=config.run.seed)
        if source.size != 0:  # the mixture refuses an empty one
            _try_first(name, source)
        parts.append(MixturePart(name=name, source=source, weight=task.weight, heldout=task.heldout, limit=task.limit))
    forget_recordings()
    return Mixture(parts, seed=config.run.seed)


def _try_first(name: str, source: ProblemSource) -> None:
    """What only fails in an episode would fail in every one, after all processes have started."""
    problem = source.problem(0)
    try:
        try_environment(problem.task)
    except ValueError as error:
        raise ValueError(f"tasks.{name}.env: {error}") from error


def build_source(name: str, *, config: TaskConfig, seed: int) -> ProblemSource:
    """One task source; `name` is its key in the configuration, `seed` the run's."""
    if config.kind == "jsonl":
        return JsonlSource(name, config=config)
    if config.kind == "hf":
        return HfSource(name, config=config)
    if config.kind == "reasoning_gym":
        return ReasoningGymSource(name, config=config, seed=seed)
    if config.kind == "programs":
        return ProgramSource(name, config=config, seed=seed)
    if config.kind == "traces":
        return trace_source(name, config=config, seed=seed)
    if config.kind == "swe":
        return SweSource(name, config=config)
    if config.kind == "plugin":
        try:
            factory = plugin_source(config.path or "")
        except ValueError as error:
            hint = "" if is_dotted(config.path or "") else "; run.plugins must name the file that registers it"
            raise ValueError(f"tasks.{name}.path: {error}{hint}") from None
        return factory(name, config=config, seed=seed)
    raise ValueError(f"tasks.{name}.kind is {config.kind!r}; it must be jsonl, hf, reasoning_gym, programs, traces, swe or plugin")
