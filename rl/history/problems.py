"""The problems of logged rollouts: what the log does not hold comes from the run's own task sources.

A draw is a pure function of (seed, index), so the group's index leads to its problem. The log's `task_hash` covers everything that
defines a problem, the hidden reference included: one that has changed since is an error.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from configs.load import load_config
from configs.schema import Config
from environments.containers.make import make_containers, use_containers
from environments.records import Problem
from environments.registry import load_plugins
from environments.sandbox.make import use_sandbox
from environments.sources.build import build_tasks
from environments.sources.mixture import Mixture
from environments.swe.folder import read_task
from rl.history.recorded import Played
from rl.log.runs import RunPaths
from rl.log.tables import task_hash

_KNOWN = 256
"""Problems in memory: rollouts of one group are asked for one after the other."""


def run_config(root: Path) -> Config:
    """The configuration with which a run was started last. Raises ValueError when it is missing or cannot be read."""
    path = RunPaths(root=root).config
    if not path.is_file():
        raise ValueError(f"{root} has no config.yaml, which says where its tasks come from: copy it there from the run's own folder")
    return load_config([path])


class RunProblems:
    """Problems of one run by its rollouts. Importing the run's plugins and choosing its sandbox and engine come with it."""

    def __init__(self, config: Config) -> None:
        """Raises ValueError for a task source that is gone or damaged, as `build_tasks` does."""
        self._config = config
        load_plugins(config.run.plugins)
        use_sandbox(config.sandbox)
        use_containers(config.containers)
        try:
            self._mixture: Mixture = build_tasks(config)
        except ValueError as error:
            raise ValueError(f"the run's tasks cannot be read again: {error} (relative paths start where the run was started)") from error
        self._known: dict[tuple[str, int, str], Problem] = {}

    def of(self, row: Played) -> Problem:
        """The problem that a rollout was played on. Raises ValueError that names task and source for one that has changed or is gone."""
        key = (row.split, row.group_index, row.task_id)
        if key not in self._known:
            if len(self._known) >= _KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = self._find(row)
        return self._known[key]

    def _find(self, row: Played) -> Problem:
        drawn = self._drawn(row)
        if drawn is not None and _is(drawn, row) and task_hash(drawn) == row.task_hash:
            return drawn
        same = drawn if drawn is not None and _is(drawn, row) else self._by_id.get((row.source, row.task_id))
        if same is not None and task_hash(same) == row.task_hash:
            return same  # other rows of the source have come or gone
        where = f"tasks.{row.source}{self._place(row.source)}"
        if same is None:
            raise ValueError(f"task {row.task_id!r} of rollout {row.rollout_id} is no longer in {where}: put it back as it was")
        raise ValueError(
            f"task {row.task_id!r} of rollout {row.rollout_id} has changed since the run: its task_hash was {row.task_hash}, and what "
            f"{where} has now is {task_hash(same)}: put it back as it was"
        )

    def _drawn(self, row: Played) -> Problem | None:
        if row.split == "train":
            return self._mixture.at(row.group_index)
        heldout = self._mixture.heldout()
        return heldout[row.group_index] if row.group_index < len(heldout) else None

    @cached_property
    def _by_id(self) -> dict[tuple[str, str], Problem]:
        """Problems of the sources that can be counted."""
        problems = (part.source.problem(index) for part in self._mixture.parts for index in range(part.source.size or 0))
        return {(problem.source, problem.task.id): problem for problem in problems}

    def _place(self, source: str) -> str:
        task = self._config.tasks.get(source)
        if task is None:
            return ", which the configuration no longer has"
        return f" ({task.path})" if task.path else f" (kind {task.kind})"


async def check_image(problem: Problem, row: Played) -> None:
    """As `check_images`, for one rollout."""
    await check_images([(problem, row)])


async def check_images(pairs: Sequence[tuple[Problem, Played]]) -> None:
    """See that the engine has the images on which repository tasks were played. Raises EngineUnavailable, ImageMissing, and ValueError
    for another image of that name."""
    containers = make_containers()
    try:
        for problem, row in pairs:
            image = read_task(Path(str(problem.reference["folder"]))).image
            found = await containers.image_id(image)
            if row.image_digest and found != row.image_digest:
                raise ValueError(
                    f"image {image} of task {row.task_id!r} is {found} now, and rollout {row.rollout_id} was played in {row.image_digest}: "
                    "give that image its name back"
                )
    finally:
        await containers.close()


def _is(problem: Problem, row: Played) -> bool:
    return (problem.source, problem.task.id) == (row.source, row.task_id)
