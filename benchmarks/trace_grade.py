"""Grading of trace predictions: frames a second, against the standard library's JSON reader on the same frames.

    python benchmarks/trace_grade.py [--rounds 7] [--programs 40]

Each generated program of each level asks for its whole trace. Graded are the right reply, one with a wrong value in every third frame, and
one that breaks off in the middle of a frame, each as the first reply to its problem and as a later one. The baseline reads the
expected frames, written as a JSON list of objects with all locals, by `json.loads`: less than any grader has to do. Medians over
rounds of processor time.

Then episodes of the debugger: walks of 8 forward actions through a quarter as many programs, whose answers are right, or wrong in every
third turn. A first episode of a program waits for the sandbox, which records it, and is timed by the clock; later ones share the recording.
Prints one JSON line.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.machine import print_result
from configs.schema import TaskConfig
from environments.records import Episode, Message, Problem, StopReason
from environments.sandbox.make import make_sandbox
from environments.sources.build import build_source
from environments.traces import tasks
from environments.traces.debugger.environment import TraceDebugger
from environments.traces.generator import SHAPES
from environments.traces.tasks import DEBUGGER, FULL, read_frame_task
from environments.traces.text import FRAME
from rewards.score import ScoreStatus
from rewards.trace_debugger import TraceDebuggerGrader
from rewards.trace_frames import TraceFullGrader

TURNS = 8


def problems(count: int, *, env: str = FULL, **options: Any) -> list[Problem]:
    config = TaskConfig(kind="traces", env=env, options={"levels": " ".join(SHAPES), **options})
    source = build_source("benchmark", config=config, seed=0)
    return [source.problem(index) for index in range(count * len(SHAPES))]


def wrong(answer: str) -> str:
    """Another value in every third frame, and the form of frames all the same."""
    frames = answer.split(FRAME)
    return FRAME.join(frame.replace('": "', '": "9', 1) if number % 3 == 0 else frame for number, frame in enumerate(frames))


def grade(asked: Sequence[Problem], reply_to: Callable[[str], str], *, again: bool) -> tuple[float, set[ScoreStatus]]:
    """Seconds of processor time, and how the replies were judged."""

    async def run() -> tuple[float, set[ScoreStatus]]:
        grader = TraceFullGrader()
        pairs = [
            (problem, Episode(messages=(Message(role="assistant", content=reply_to(str(problem.reference["answer"]))),),
                              stop_reason=StopReason.DONE, n_sampled_tokens=1))
            for problem in asked
        ]  # fmt: skip
        took, statuses = 0.0, set()
        for problem, episode in pairs:
            tasks._frame_task.cache_clear()
            if again:
                read_frame_task(FULL, problem.reference)
            started = time.process_time()
            score = await grader.grade(problem, episode)
            took += time.process_time() - started
            statuses.add(score.status)
        return took, statuses

    return asyncio.run(run())


async def play(problem: Problem, answers: Sequence[str]) -> Episode:
    """An episode of the debugger."""
    environment = TraceDebugger(problem.task)
    messages = list(await environment.reset())
    try:
        for answer in answers:
            messages.append(Message(role="assistant", content=answer))
            result = await environment.step(messages[-1])
            messages += result.messages
    finally:
        await environment.close()
    return Episode(messages=tuple(messages), stop_reason=StopReason.DONE, n_sampled_tokens=1, outcome=result.outcome)


async def debugger_rates(*, rounds: int, count: int) -> dict[str, int]:
    """Answers a second."""
    asked = problems(count, env=DEBUGGER, turns=TURNS, actions="forward")
    gold = [[str(text) for text in problem.reference["replies"]] for problem in asked]  # type: ignore[union-attr]
    wrong = [[f"{text}stuff" if number % 3 == 0 else text for number, text in enumerate(texts)] for texts in gold]
    sandbox = make_sandbox()
    grader = TraceDebuggerGrader(sandbox=sandbox)
    times: dict[str, list[float]] = {}
    try:
        for name, answers in (("right", gold), ("wrong", wrong)):
            episodes = [await play(problem, texts) for problem, texts in zip(asked, answers, strict=True)]
            if name == "right":
                started = time.perf_counter()
                for pair in zip(asked, episodes, strict=True):
                    await grader.grade(*pair)
                times["debugger_first"] = [time.perf_counter() - started]
            for _ in range(rounds):
                started = time.process_time()
                statuses = {(await grader.grade(*pair)).status for pair in zip(asked, episodes, strict=True)}
                times.setdefault(f"debugger_{name}_later", []).append(time.process_time() - started)
                assert statuses == {ScoreStatus.OK if name == "right" else ScoreStatus.POLICY_FAIL}, statuses
    finally:
        await grader.close()
        await sandbox.close()
    return {name: round(sum(map(len, gold)) / statistics.median(took)) for name, took in times.items()}


def main(*, rounds: int, count: int) -> None:
    asked = problems(count)
    expected = [read_frame_task(FULL, problem.reference).expected for problem in asked]
    frames = sum(map(len, expected))
    texts = [json.dumps([asdict(event) for event in events]) for events in expected]
    replies: dict[str, Callable[[str], str]] = {"right": str, "wrong": wrong, "broken": lambda answer: answer[: len(answer) * 2 // 3]}
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        started = time.process_time()
        for text in texts:
            json.loads(text)
        times.setdefault("json_loads", []).append(time.process_time() - started)
        for name, reply_to in replies.items():
            for again in (False, True):
                took, statuses = grade(asked, reply_to, again=again)
                assert statuses == ({ScoreStatus.OK} if name == "right" else {ScoreStatus.POLICY_FAIL}), statuses
                times.setdefault(f"{name}_{'later' if again else 'first'}", []).append(took)
    rates: dict[str, Any] = {name: round(frames / statistics.median(took)) for name, took in times.items()}
    rates |= asyncio.run(debugger_rates(rounds=rounds, count=count // 4))
    print_result(
        benchmark="trace_grade",
        frames_per_s=rates["right_first"],
        times_json_loads=round(rates["json_loads"] / rates["right_first"], 1),
        problems=len(asked),
        frames=frames,
        rounds=rounds,
        rates=rates,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--programs", type=int, default=40, help="of each level")
    arguments = parser.parse_args()
    main(rounds=arguments.rounds, count=arguments.programs)
