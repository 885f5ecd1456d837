"""`rl swe rates`: how often the policy of a run solved each task, written into the tasks' metadata."""

import json
from dataclasses import dataclass
from pathlib import Path

from environments.swe.folder import read_task, set_metadata, task_folders
from rl.log.query import RunLog
from rl.log.runs import find_run

_QUERY = "SELECT task_id, count(*) FILTER (reward > 0), count(*) FROM rollouts WHERE reward IS NOT NULL GROUP BY task_id ORDER BY task_id"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What a run did with one task."""

    task: str
    solved: int
    graded: int


def rates_command(run: str, tasks: Path, *, as_json: bool) -> int:
    """Set `solve_rate` and `graded` of every task that the run graded, print them, and say which others were left; 1 when none was.

    Raises ValueError for an unknown run or a damaged task.
    """
    folders = {read_task(folder).id: folder for folder in task_folders(tasks)}
    with RunLog(find_run(run)) as log:
        rates = [Rate(task=str(task), solved=int(solved), graded=int(graded)) for task, solved, graded in log.query(_QUERY).rows]
    found = [rate for rate in rates if rate.task in folders]
    for rate in found:
        set_metadata(folders[rate.task], solve_rate=round(rate.solved / rate.graded, 6), graded=rate.graded)
    if as_json:
        print(json.dumps({rate.task: {"solve_rate": rate.solved / rate.graded, "graded": rate.graded} for rate in found}))
    else:
        print(
            "\n".join([*(f"{rate.solved:>5} of {rate.graded:<5} {rate.task}" for rate in found), f"{len(found)} of {len(folders)} tasks"])
        )
    return 0 if found else 1
