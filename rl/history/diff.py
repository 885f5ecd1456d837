"""`rl diff`: two rollouts of a run, one task across its policy versions, or two runs."""

from collections.abc import Sequence

from rl.history.diff_pair import Pair, diff_pair
from rl.history.diff_runs import RunDiff, diff_runs
from rl.history.diff_task import TaskDiff, diff_task
from rl.log.compare import TokenCount
from rl.log.query import json_line
from rl.log.runs import find_run
from rl.view.open_run import OpenRun

_USE = "give two rollout ids of the run, or --task TASK_ID, or one other run"


def diff_command(run: str, others: Sequence[str], *, task: str | None, by: str | None, as_json: bool) -> int:
    """Print what differs; `by` names the tokens in which two runs are equal.

    Raises ValueError for wrong words and for an unknown run, rollout or task.
    """
    root = find_run(run)
    opened = OpenRun(root.name, root)
    report: Pair | TaskDiff | RunDiff
    if by is not None and (task is not None or len(others) != 1):
        raise ValueError(f"--by {by} says by which tokens two runs are compared: give one other run and no --task")
    if task is not None:
        if others:
            raise ValueError(f"--task compares the policy versions of one run, so {' '.join(others)} is too much: {_USE}")
        report = diff_task(opened, task)
    elif len(others) == 2:
        report = diff_pair(opened, (others[0], others[1]))
    elif len(others) == 1:
        try:
            other = find_run(others[0])
        except ValueError as error:
            raise ValueError(f"{error} ({_USE})") from None
        report = diff_runs(opened, OpenRun(other.name, other), by=TokenCount(by or TokenCount.SAMPLED.value))
    else:
        raise ValueError(f"nothing to compare {run} with: {_USE}")
    print(json_line(report.to_json()) if as_json else report.text())
    return 0
