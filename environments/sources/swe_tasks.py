"""Repository tasks: a folder of task folders, as `rl swe mutate` and `rl swe import` write them."""

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from configs.checked import bounded
from configs.schema import TaskConfig
from environments.records import Json, Message, Problem, Task
from environments.sources.options import read_options
from environments.sources.rows import HIDDEN_FIELDS, PromptTemplate
from environments.swe.agent_options import AgentOptions
from environments.swe.folder import read_task, task_folders
from environments.swe.records import RepoTask
from environments.swe.script import oracle_actions
from environments.swe.tool_format import ToolFormat, render_call


@dataclass(frozen=True, kw_only=True)
class SolveRates:
    """Options of the source; all others go to the environment."""

    min_solve_rate: float = bounded(0.0, low=0.0, high=1.0)
    """Tasks that were solved less often, as their metadata says, are left out."""
    max_solve_rate: float = bounded(1.0, low=0.0, high=1.0)
    """Tasks that were solved more often are left out."""

    @property
    def all(self) -> bool:
        """Whether every task is taken, also one whose rate is not known."""
        return self.min_solve_rate == 0.0 and self.max_solve_rate == 1.0


_OWN = frozenset(spec.name for spec in fields(SolveRates))


class SweSource:
    """The tasks of one folder, in the order of their names.

    The policy gets the instruction and the environment the folder, in which the graders find the rest. `reference['replies']` is the
    gold patch as the replies of an episode, for a warm start, where the task has one.
    `reference['digest']` is that of the folder's content.
    """

    def __init__(self, name: str, *, config: TaskConfig) -> None:
        """Raises ValueError for a folder that is not there or has no tasks, and one that names the folder of a damaged task."""
        assert config.path, "TaskConfig refuses kind=swe without a path"
        self._name, self._env, self._system = name, config.env, config.system
        self._options = {key: value for key, value in config.options.items() if key not in _OWN}
        self._tool_format = self._check_options(config.path)
        own = {key: value for key, value in config.options.items() if key in _OWN}
        rates = read_options(SolveRates, own, where=f"tasks.{name}.options")
        self._template = PromptTemplate.parse(config.prompt, where=f"tasks.{name}.prompt", what="prompt", hidden=HIDDEN_FIELDS)
        problems: dict[str, Problem] = {}
        images: dict[str, str] = {}
        try:
            for folder in task_folders(Path(config.path).expanduser().resolve()):
                task = read_task(folder)
                if not _wanted(task, rates=rates, folder=folder):
                    continue
                if task.id in problems:
                    raise ValueError(f"{folder} has id {task.id!r}, as {problems[task.id].task.payload['folder']} has; ids must be unique")
                problems[task.id] = self._problem(task, folder=folder)
                images.setdefault(task.image, task.id)
                if len(problems) == config.limit:
                    break
        except ValueError as error:
            raise ValueError(f"tasks.{name}.path: {error}") from error
        if not problems:
            raise ValueError(f"tasks.{name}.options: no task of {config.path} has a solve rate between min_solve_rate and max_solve_rate")
        self._problems = tuple(problems.values())
        self.images = images
        """Images that the tasks need, each with the id of a task that does."""

    @property
    def size(self) -> int:
        """Number of tasks."""
        return len(self._problems)

    def problem(self, index: int) -> Problem:
        """The task at `index`, counted from 0."""
        return self._problems[index]

    def _check_options(self, path: str) -> ToolFormat:
        """See that the environment takes the options; how tool calls are written."""
        if self._env != "swe":
            return "cwm"
        try:
            return AgentOptions.read({**self._options, "folder": path}).tool_format
        except ValueError as error:
            raise ValueError(f"tasks.{self._name}.options: {str(error).removeprefix('payload.')}") from None

    def _problem(self, task: RepoTask, *, folder: Path) -> Problem:
        opening = [] if self._system is None else [Message(role="system", content=self._system)]
        text = self._template.render({"question": task.instruction, "id": task.id}, where=f"{folder}/instruction.md")
        visible = Task(
            id=task.id,
            env=self._env,
            prompt=(*opening, Message(role="user", content=text)),
            payload={"folder": str(folder), **self._options},
        )
        reference: dict[str, Json] = {"folder": str(folder), "digest": _digest(task)}
        if not task.gold.empty:
            reference["replies"] = [render_call(call, tool_format=self._tool_format) for call in oracle_actions(task)]
        return Problem(task=visible, reference=reference, source=self._name)


def _digest(task: RepoTask) -> str:
    """16 hexadecimal digits over all that decides an episode and its verdict, so that the log's `task_hash` tells a changed folder."""
    return hashlib.sha256(repr(replace(task, metadata={})).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _wanted(task: RepoTask, *, rates: SolveRates, folder: Path) -> bool:
    if rates.all:
        return True
    rate = task.metadata.get("solve_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ValueError(f"{folder}/task.toml has no metadata.solve_rate, which min_solve_rate and max_solve_rate ask for")
    return rates.min_solve_rate <= rate <= rates.max_solve_rate
