"""What a turn of a repository agent costs, against the engine's own exec in the same run.

    python -m benchmarks.swe_agent TASK_DIR [--turns N]

Turns and execs alternate on the same container, so that a busy machine slows both. The first call includes the start of the container.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable
from pathlib import Path

from environments.records import Message, Task
from environments.reply import ToolCall
from environments.swe.agent import RepoAgent
from environments.swe.tool_format import render_call

COMMAND = "true"
_FIRST_CALLS = 5


async def timed(call: Awaitable[object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    await call
    return (time.perf_counter() - started) * 1000


def turn(agent: RepoAgent) -> Awaitable[object]:
    """One bash call through the environment."""
    text = render_call(ToolCall(name="bash", body=COMMAND), tool_format="cwm")
    return agent.step(Message(role="assistant", content=text))


async def first_call(folder: Path) -> float:
    """From the first call of an episode to its observation, ms."""
    agent = RepoAgent(Task(id="bench", env="swe", prompt=(Message(role="user", content=""),), payload={"folder": str(folder)}))
    try:
        await agent.reset()
        return await timed(turn(agent))
    finally:
        await agent.close()


async def measure(folder: Path, *, turns: int) -> dict[str, float]:
    """Medians, ms."""
    keeper = RepoAgent(Task(id="bench", env="swe", prompt=(Message(role="user", content=""),), payload={"folder": str(folder)}))
    try:
        await keeper.reset()
        await turn(keeper)  # makes the base tree and reads the image's work folder, once a process
        first = [await first_call(folder) for _ in range(_FIRST_CALLS)]
        assert keeper._box is not None
        container = keeper._box.container
        turn_ms, exec_ms = [], []
        for _ in range(turns):
            turn_ms.append(await timed(turn(keeper)))
            exec_ms.append(await timed(container.exec(["bash", "-c", COMMAND], seconds=60.0)))
    finally:
        await keeper.close()
    figures = {"turn_ms": statistics.median(turn_ms), "exec_ms": statistics.median(exec_ms), "first_call_ms": statistics.median(first)}
    return {**figures, "turn_to_exec": figures["turn_ms"] / figures["exec_ms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--turns", type=int, default=100)
    args = parser.parse_args()
    print(json.dumps({name: round(value, 3) for name, value in asyncio.run(measure(args.task, turns=args.turns)).items()}))


if __name__ == "__main__":
    main()
