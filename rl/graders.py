"""Which grader scores a problem, and the graders of one process."""

import asyncio
from collections.abc import Mapping

from configs.schema import TaskConfig
from environments.records import Problem
from environments.sources.mixture import Mixture
from rewards.needs import FieldMissing, check_needs
from rewards.registry import grader_hash, make_grader
from rewards.score import Grader


class Graders:
    """One grader for each reward in use, made when it is first needed."""

    def __init__(self, tasks: Mapping[str, TaskConfig]) -> None:
        """`tasks` is the configuration's: a problem's source says what `reward` its task source asks for."""
        self._tasks = tasks
        self._graders: dict[str, Grader] = {}
        self._hashes: dict[str, str] = {}

    def spec(self, problem: Problem) -> str:
        """`tasks.<source>.reward`, else the name of the problem's environment."""
        task = self._tasks.get(problem.source)
        return task.reward if task is not None and task.reward is not None else problem.task.env

    def of(self, problem: Problem) -> Grader:
        """The grader of the problem's `spec`."""
        spec = self.spec(problem)
        if spec not in self._graders:
            self._graders[spec] = make_grader(spec)
        return self._graders[spec]

    def hash(self, problem: Problem) -> str:
        """Of the reward's name and source."""
        spec = self.spec(problem)
        if spec not in self._hashes:
            self._hashes[spec] = grader_hash(spec)
        return self._hashes[spec]

    async def close(self) -> None:
        """Close them all."""
        graders, self._graders = self._graders, {}
        for grader in graders.values():
            await grader.close()


def check_reward(spec: str) -> bool:
    """Make a grader and close it again; whether it needs the number of sampled tokens.

    Raises ValueError for a wrong `spec`, SandboxUnavailable when its sandbox cannot work here.
    """
    grader = make_grader(spec)
    asyncio.run(_close(grader))
    return bool(getattr(grader, "needs_n_tokens", False))


async def _close(grader: Grader) -> None:
    await grader.close()


def check_rewards(tasks: Mapping[str, TaskConfig]) -> None:
    """`check_reward` for all, so that a wrong one stops a run before it starts. Raises ValueError that names the setting."""
    for name, task in tasks.items():
        try:
            check_reward(task.reward or task.env)
        except ValueError as error:
            hint = "" if task.reward else f" (tasks.{name}.reward is not set, so the reward is called like the environment)"
            raise ValueError(f"tasks.{name}.reward: {error}{hint}") from None


_PROBES = 64
"""Problems of an unlimited source that are looked at."""


def check_problems(tasks: Mapping[str, TaskConfig], mixture: Mixture) -> None:
    """See that the built-in rewards find in the problems what they need. Raises ValueError that names the source and the field."""
    for part in mixture.parts:
        task = tasks[part.name]
        if task.kind != "plugin" and task.reward in (None, task.env):
            continue  # the rows were checked for their environment when they were read
        for index in range(_PROBES if part.size is None else part.size):
            try:
                check_needs(task.reward or task.env, part.source.problem(index))
            except FieldMissing as error:
                raise ValueError(f"tasks.{part.name}.reward: {error}{_hint(part.name, task, error.field)}") from None
            except ValueError as error:
                raise ValueError(f"tasks.{part.name}.reward: {error}") from None


def _hint(name: str, task: TaskConfig, field: str) -> str:
    if field == "solution":
        return f": set tasks.{name}.solution, for example '\\boxed{{{{{{{task.answer_field}}}}}}}'"
    if task.kind not in ("jsonl", "hf"):
        return ""
    return f": set tasks.{name}.answer_field" if field == "answer" else f": name it in tasks.{name}.columns"
