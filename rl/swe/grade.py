"""`rl swe grade`: the score of one patch of one task."""

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path

from environments.containers.base import ImageMissing
from environments.records import Episode, Problem, StopReason, Task
from environments.swe.folder import read_task
from environments.swe.records import Patch
from rewards.registry import make_grader
from rewards.score import Score, ScoreStatus
from rewards.swe_log import notes_of
from rl.log.text import visible

EXIT_STATUS = {ScoreStatus.OK: 0, ScoreStatus.POLICY_FAIL: 1, ScoreStatus.INFRA: 2, ScoreStatus.UNGRADABLE: 2}


def grade_command(folder: Path, *, patch: Path, reward: str, as_json: bool) -> int:
    """Grade and print; 0 for a patch that passes, 1 for one that fails, 2 when there is no score.

    Raises ValueError for a folder that is no task and for a patch file that cannot be read, ContainerError, EngineUnavailable.
    """
    task = read_task(folder)
    try:
        data = patch.read_bytes()
    except OSError as error:
        raise ValueError(f"--patch: {patch} cannot be read: {error.strerror}") from error
    score = asyncio.run(score_patch(folder, Patch(data=data), reward=reward, task_id=task.id))
    if as_json:
        print(json.dumps({"task": task.id, **score_fields(score)}))
    else:
        print(score_text(task.id, score))
    return EXIT_STATUS[score.status]


async def score_patch(folder: Path, patch: Patch, *, reward: str, task_id: str) -> Score:
    """What a grader makes of a patch that was handed in. Raises ContainerError, EngineUnavailable."""
    grader = make_grader(reward)
    problem = Problem(task=Task(id=task_id, env="swe", prompt=()), reference={"folder": str(folder)}, source="rl swe grade")
    episode = Episode(messages=(), stop_reason=StopReason.DONE, n_sampled_tokens=0, outcome=patch.to_json())
    try:
        return await grader.grade(problem, episode)
    except ImageMissing as error:
        return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason=str(error))
    finally:
        await grader.close()


def score_fields(score: Score) -> dict[str, object]:
    """A score as plain values; JSON has no NaN."""
    parts = {name: {**asdict(part), "value": part.value if math.isfinite(part.value) else None} for name, part in score.parts.items()}
    return {
        "status": score.status.value,
        "reward": score.reward,
        "reason": score.reason,
        "parts": parts,
        "notes": notes_of(score.log).splitlines(),
    }


def score_text(task_id: str, score: Score) -> str:
    """A score for a person."""
    reward = "-" if score.reward is None else f"{score.reward:g}"
    lines = [f"{visible(task_id, one_line=True)}  {score.status.value}  reward {reward}  {visible(score.reason, one_line=True)}"]
    lines += [f"  {name:<14} {part.value:.3f}  {visible(part.reason, one_line=True)}" for name, part in score.parts.items()]
    lines += [f"  {visible(line, one_line=True)}" for line in notes_of(score.log).splitlines()]
    return "\n".join(lines)
