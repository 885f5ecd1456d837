"""What the built-in rewards and TRL's need of a problem, told before a run starts: without it no response could be graded."""

import inspect

from environments.code_tests.read import TEST_ENVS, read_tests
from environments.records import Problem
from environments.traces.debugger.task import DebuggerTask
from environments.traces.tasks import DEBUGGER, FULL, TRACE_ENVS, read_trace_task
from rewards.mix import parse_mix
from rewards.trl_functions import columns_of, missing_column
from rewards.trl_named import PREFIX
from rewards.trl_worker import reward_function

_ANSWER = ("math", "math_python", "cwm_math", "code_output")
"""Rewards that compare with `reference['answer']`."""
_TESTS = {**{env: env for env in TEST_ENVS}, "cwm_code": "code"}
"""Rewards that run tests, and the environment whose form the tests have."""
_TRACES = {**{env: env for env in TRACE_ENVS}, "trace_answer": FULL}
"""Rewards of trace predictions, and the environment whose form the problems have."""
_FOLDER = ("swe", "cwm_swe")
"""Rewards that read a task folder."""


class FieldMissing(ValueError):
    """A reward needs a field that the problem has not."""

    def __init__(self, text: str, *, field: str) -> None:
        super().__init__(text)
        self.field = field


def check_needs(reward: str, problem: Problem) -> None:
    """Raise ValueError when a part of `reward`, a name or a mix, could never grade this problem; FieldMissing names a missing column."""
    for term in parse_mix(reward):
        what = f"reward {term.name!r} cannot grade problem {problem.task.id}"
        answer = problem.reference.get("answer")
        if term.name in _ANSWER and (answer is None or not str(answer).strip()):
            raise FieldMissing(f"{what}: it has no 'answer'", field="answer")
        if term.name in _TESTS:
            try:
                read_tests(_TESTS[term.name], problem.reference)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{what}: {error}") from None
        if term.name in _TRACES:
            try:
                read_trace_task(_TRACES[term.name], problem.reference)
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None
        if term.name == DEBUGGER:
            try:
                DebuggerTask.of(problem.task)
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None
        if term.name in _FOLDER and not isinstance(problem.reference.get("folder"), str):
            raise FieldMissing(f"{what}: it has no 'folder', the task folder that a source of kind swe names", field="folder")
        if term.name.startswith(PREFIX):
            signature = inspect.signature(reward_function(term.name.removeprefix(PREFIX)))
            if missing := missing_column(signature, columns_of(problem)):
                raise FieldMissing(f"{what}: it has no {missing!r}", field=missing)


def grades_patches(name: str) -> bool:
    """Whether a reward of that name grades the patch of a repository task, in containers."""
    return name in _FOLDER
