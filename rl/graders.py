"""Which grader scores a problem, and the graders of one process."""

import asyncio
from collections.abc import Mapping

from configs.schema import TaskConfig
from environments.records import Problem
from rewards.registry import make_grader
from rewards.score import Grader


class Graders:
    """One grader for each reward in use, made when it is first needed."""

    def __init__(self, tasks: Mapping[str, TaskConfig]) -> None:
        """`tasks` is the configuration's: a problem's source says what `reward` its task source asks for."""
        self._tasks = tasks
        self._graders: dict[str, Grader] = {}

    def of(self, problem: Problem) -> Grader:
        """The grader of `tasks.<source>.reward`, else the one that is called like the problem's environment."""
        task = self._tasks.get(problem.source)
        spec = task.reward if task is not None and task.reward is not None else problem.task.env
        if spec not in self._graders:
            self._graders[spec] = make_grader(spec)
        return self._graders[spec]

    async def close(self) -> None:
        """Close them all."""
        graders, self._graders = self._graders, {}
        for grader in graders.values():
            await grader.close()


def check_reward(spec: str) -> None:
    """Make a grader and close it again. Raises ValueError for a wrong `spec`, SandboxUnavailable when its sandbox cannot work here."""
    asyncio.run(make_grader(spec).close())


def check_rewards(tasks: Mapping[str, TaskConfig]) -> None:
    """`check_reward` for all, so that a wrong one stops a run before it starts. Raises ValueError that names the setting."""
    for name, task in tasks.items():
        try:
            check_reward(task.reward or task.env)
        except ValueError as error:
            hint = "" if task.reward else f" (tasks.{name}.reward is not set, so the reward is called like the environment)"
            raise ValueError(f"tasks.{name}.reward: {error}{hint}") from None
