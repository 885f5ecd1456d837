"""From the words of the command line to the subject of a check: the environment, its reward, and problems to try it on.

The problems come from `--tasks`, from the task sources of `--config` that use the environment, from the environment's own
`examples()` (a function without arguments on its class that returns problems), or, for built-in environments, from here.
"""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.load import load_config
from configs.schema import TaskConfig
from environments.containers.make import use_containers
from environments.records import Problem
from environments.registry import environment_factory, environments_of, load_plugins
from environments.sources.build import build_tasks
from environments.sources.mixture import Mixture
from environments.sources.rows import RowMapper
from rl.authoring.builtin_rows import BUILTIN_ROWS
from rl.authoring.records import MAX_PROBLEMS, Request, Subject
from rl.grade import load_tasks, reward_for
from rl.graders import check_reward

_DRAWS = 2000
"""Draws of a mixture to look through for different problems of the environment."""


def resolve(request: Request) -> Subject:
    """The subject of a check. Raises ValueError that says what is missing or wrong."""
    config = load_config([Path(name) for name in request.config]) if request.config else None
    if config is not None:
        load_plugins(config.run.plugins)
        use_containers(config.containers)
    env = _environment_name(request.target)
    factory = environment_factory(env)
    sources = {name: task for name, task in config.tasks.items() if task.env == env} if config is not None else {}
    reward = request.reward or next((task.reward for task in sources.values() if task.reward), None)
    reward = reward_for(env, reward)
    check_reward(reward)
    if request.tasks is not None:
        problems = tuple(load_tasks(Path(request.tasks), env=env, reward=reward).values())
    elif config is not None:
        if not sources:
            raise ValueError(f"--config: no task source has env={env!r}; there are {', '.join(task.env for task in config.tasks.values())}")
        problems = _drawn(build_tasks(config), env=env)
    elif hasattr(factory, "examples"):
        problems = tuple(factory.examples())
    elif env in BUILTIN_ROWS:
        problems = builtin_problems(env)
    else:
        raise ValueError(
            f"there are no problems to try {env!r} on: give --tasks FILE or --config FILE, or define a static method examples() on "
            f"{getattr(factory, '__name__', env)} that returns problems"
        )
    if not problems:
        raise ValueError(f"there are no problems to try {env!r} on: its source is empty")
    if not all(isinstance(problem, Problem) for problem in problems):
        raise ValueError(f"examples() of {env!r} must return environments.records.Problem objects")
    return Subject(env=env, factory=factory, reward=reward, problems=problems[:MAX_PROBLEMS])


def _drawn(mixture: Mixture, *, env: str) -> tuple[Problem, ...]:
    """Different problems of the environment: training ones in the order of a run, then held-out ones."""
    found: dict[tuple[str, str], Problem] = {}
    for problem in itertools.chain(map(mixture.at, range(_DRAWS)), mixture.heldout()):
        if problem.task.env == env:
            found.setdefault((problem.source, problem.task.id), problem)
        if len(found) == MAX_PROBLEMS:
            break
    return tuple(found.values())


def builtin_problems(env: str) -> tuple[Problem, ...]:
    """The problems that the built-in environment is tried on."""
    mapper = RowMapper.of("examples", config=TaskConfig(kind="jsonl", path="examples", env=env, prompt="{prompt}"))
    return tuple(mapper.problem(row, where=f"example {row['id']}", default_id="") for row in BUILTIN_ROWS[env])


def request_from(values: dict[str, Any]) -> Request:
    """A request that went through JSON."""
    return Request(**{**values, "config": tuple(values["config"])})


def request_values(request: Request) -> dict[str, Any]:
    """A request on its way through JSON."""
    return asdict(request)


def _environment_name(target: str) -> str:
    file, colon, name = target.partition(".py:")
    path = Path(file + ".py" if colon else target).expanduser()
    if not colon and path.suffix != ".py":
        return target
    load_plugins([str(path)], field="TARGET")
    if name:
        return name
    names = environments_of(path)
    if not names:
        raise ValueError(f'TARGET {target!r} defines no environment: put `@environment("name")` on a class')
    if len(names) > 1:
        raise ValueError(f"TARGET {target!r} defines {len(names)} environments ({', '.join(names)}): name one, as in {target}:name")
    return names[0]
