"""`rl swe run`: plays a list of tool calls through the environment, without a model, and grades what comes of it."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from environments.records import Episode, Message, Problem, StopReason, Task
from environments.registry import make_environment
from environments.reply import ToolCall
from environments.swe.folder import read_task
from environments.swe.records import Patch
from environments.swe.script import read_actions
from environments.swe.tool_format import ToolFormat, render_call
from rewards.registry import make_grader
from rewards.score import Score
from rl.log.text import visible
from rl.swe.grade import EXIT_STATUS

ENVIRONMENT = "swe"


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """One action and what came back."""

    call: ToolCall
    observation: str
    """Empty for the submit that ended the episode."""

    def text(self, number: int) -> str:
        """For a person."""
        return visible(f"--- {number}: {self.call.name}\n{self.call.body}\n\n{self.observation or '(the episode is done)'}\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished episode and its score."""

    task_id: str
    played: tuple[Played, ...]
    left: int
    """Actions behind the one that ended the episode."""
    episode: Episode
    score: Score

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        score = self.score
        return {
            "task": self.task_id,
            "turns": [{"tool": one.call.name, "input": one.call.body, "observation": one.observation} for one in self.played],
            "left": self.left,
            "stop_reason": self.episode.stop_reason.value,
            "outcome": dict(self.episode.outcome),
            "score": {
                "reward": score.reward,
                "status": score.status.value,
                "reason": score.reason,
                "parts": {name: asdict(part) for name, part in score.parts.items()},
            },
        }

    def text(self) -> str:
        """The end, for a person: the patch and the score."""
        patch = Patch.from_json(self.episode.outcome)
        lines = ["--- patch", patch.data.decode("utf-8", "replace") if patch else "(nothing was submitted)\n"]
        if self.left:
            lines.append(f"({self.left} further actions were not played)")
        reward = "none" if self.score.reward is None else f"{self.score.reward:g}"
        lines.append(f"score: {self.score.status.value}, reward {reward}: {self.score.reason}")
        return visible("\n".join(lines))


def run_command(task: Path, *, actions: Path, reward: str, tool_format: ToolFormat, as_json: bool) -> int:
    """Exit status: 0 passed, 1 not, 2 when there is no score. Raises ValueError for wrong input, ContainerError when the engine is at
    fault, EngineUnavailable and ImageMissing."""
    calls = read_actions(actions)
    repo = read_task(task)
    folder = str(task.resolve())
    problem = Problem(
        task=Task(
            id=repo.id,
            env=ENVIRONMENT,
            prompt=(Message(role="user", content=repo.instruction),),
            payload={"folder": folder, "tool_format": tool_format},
        ),
        reference={"folder": folder},
        source="run",
    )

    def tell(number: int, played: Played) -> None:
        if not as_json:
            print(played.text(number), flush=True)

    run = asyncio.run(play(problem, calls, reward=reward, tool_format=tool_format, tell=tell))
    print(json.dumps(run.to_json(), allow_nan=False) if as_json else run.text())
    return EXIT_STATUS[run.score.status]


async def play(
    problem: Problem, calls: Sequence[ToolCall], *, reward: str, tool_format: ToolFormat, tell: Callable[[int, Played], None]
) -> Run:
    """Play the actions until the episode is done, then grade it. `tell` hears of each."""
    grader = make_grader(reward)
    environment = make_environment(problem.task)
    played: list[Played] = []
    stop_reason, outcome = StopReason.SCRIPT_END, {}
    try:
        try:
            messages = list(await environment.reset())
            for call in calls:
                said = Message(role="assistant", content=render_call(call, tool_format=tool_format))
                result = await environment.step(said)
                messages += [said, *result.messages]
                played.append(Played(call=call, observation="\n".join(message.content for message in result.messages)))
                tell(len(played), played[-1])
                if result.done:
                    stop_reason, outcome = result.stop_reason or StopReason.DONE, dict(result.outcome)
                    break
        finally:
            await environment.close()
        episode = Episode(messages=tuple(messages), stop_reason=stop_reason, n_sampled_tokens=0, outcome=outcome)
        score = await grader.grade(problem, episode)
    finally:
        await grader.close()
    return Run(task_id=problem.task.id, played=tuple(played), left=len(calls) - len(played), episode=episode, score=score)
