"""Tasks for the planner's benchmarks: an environment of long-tailed latency, and a reward that varies whatever the model says."""

import asyncio
import hashlib
import os

import numpy as np

from environments.records import Message, Problem, StepResult, Task
from environments.registry import environment
from environments.single_turn import SingleTurn
from rewards.registry import reward


@environment("slow")
class Slow(SingleTurn):
    """Answers after a log-normal time: SLOW_MEDIAN seconds and SLOW_SPREAD, the standard deviation of its logarithm."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._task_id = task.id

    async def step(self, action: Message) -> StepResult:
        median, spread = float(os.environ.get("SLOW_MEDIAN", "0")), float(os.environ.get("SLOW_SPREAD", "0"))
        seed = hashlib.sha256(f"{self._task_id}\n{action.content}".encode()).digest()
        await asyncio.sleep(median * float(np.exp(spread * np.random.default_rng(list(seed)).standard_normal())))
        return await super().step(action)


@reward("coin")
def coin(problem: Problem, response: str) -> float:
    """+1 or -1 by the response's hash: every group has something to learn from, at any length."""
    return 1.0 if hashlib.sha256(f"{problem.task.id}{response}".encode()).digest()[0] % 2 else -1.0
