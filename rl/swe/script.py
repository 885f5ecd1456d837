"""`rl swe script`: writes the replies of a scripted policy for all tasks of a folder, for generator.engine=scripted."""

import json
from pathlib import Path
from typing import Literal

from environments.swe.folder import read_task, task_folders
from environments.swe.records import RepoTask
from environments.swe.script import noop_actions, oracle_actions
from environments.swe.tool_format import ToolFormat, render_call

Policy = Literal["oracle", "noop"]


def replies(task: RepoTask, *, policy: Policy, tool_format: ToolFormat) -> list[str]:
    """The assistant's messages of an episode. Raises ValueError for an oracle without a gold patch."""
    calls = oracle_actions(task) if policy == "oracle" else noop_actions()
    return [render_call(call, tool_format=tool_format) for call in calls]


def script_command(tasks: Path, *, policy: Policy, tool_format: ToolFormat, out: Path, as_json: bool) -> int:
    """Write a JSON object, task id -> texts. Raises ValueError for a folder without tasks, a damaged task, and an id that comes twice."""
    script: dict[str, list[str]] = {}
    for folder in task_folders(tasks):
        task = read_task(folder)
        if task.id in script:
            raise ValueError(f"{folder} has the id {task.id!r}, as another task of {tasks} has; ids must be unique")
        script[task.id] = replies(task, policy=policy, tool_format=tool_format)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.tmp")
    scratch.write_text(json.dumps(script, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(out)
    print(json.dumps({"out": str(out), "tasks": len(script)}) if as_json else f"{out}: the {policy}'s replies for {len(script)} tasks")
    return 0
