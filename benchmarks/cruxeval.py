"""CRUXEval in all modes with the policies whose result is known: the gold one must pass everywhere, an empty reply nowhere.

    python benchmarks/cruxeval.py DATA_FILE

`DATA_FILE`: JSON lines with `code`, `input` and `output`. The problems and the rewards are those of configs/cruxeval.yaml. Prints one JSON
line; a gold reply that fails, or an empty one that passes, goes to stderr, and the exit status is then 1.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import print_result
from configs.load import load_config
from configs.schema import Config
from environments.records import Episode, Message, Problem, StopReason
from environments.sources.build import build_source
from rewards.registry import make_grader
from rewards.score import Score, ScoreStatus

CONFIG = Path(__file__).parent.parent / "configs" / "cruxeval.yaml"
AT_ONCE = 8


async def grade(reward: str, jobs: Sequence[tuple[Problem, str]]) -> list[Score]:
    """The scores of replies, a few at a time."""
    grader, places = make_grader(reward), asyncio.Semaphore(AT_ONCE)

    async def one(problem: Problem, text: str) -> Score:
        reply = Message(role="assistant", content=text)
        async with places:
            return await grader.grade(problem, Episode(messages=(reply,), stop_reason=StopReason.DONE, n_sampled_tokens=1))

    try:
        return await asyncio.gather(*(one(problem, text) for problem, text in jobs))
    finally:
        await grader.close()


def check(name: str, *, config: Config) -> dict[str, Any]:
    """One mode."""
    task = config.tasks[name]
    source = build_source(name, config=task, seed=0)
    problems = [source.problem(index) for index in range(source.size or 0)]
    gold = [(problem, str(problem.reference["solution"])) for problem in problems]
    started = time.perf_counter()
    scores = asyncio.run(grade(task.reward or task.env, [*gold, *((problem, "") for problem in problems)]))
    seconds = time.perf_counter() - started
    passed = [score.status is ScoreStatus.OK for score in scores]
    for number, (problem, score) in enumerate(zip([*problems, *problems], scores, strict=True)):
        if passed[number] != (number < len(problems)):
            print(f"{name}: {problem.task.id}: {score.status.value}: {score.reason}", file=sys.stderr)
    n = len(problems)
    return {"problems": n, "gold_passes": sum(passed[:n]), "empty_passes": sum(passed[n:]), "grading_seconds": round(seconds, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="DATA_FILE")
    config = load_config([CONFIG], [f"tasks.output_direct.path={parser.parse_args().file}"])
    started = time.perf_counter()
    modes = {name: check(name, config=config) for name in config.tasks}
    print_result(benchmark="cruxeval", **modes, seconds=round(time.perf_counter() - started, 1))
    return int(any(mode["gold_passes"] < mode["problems"] or mode["empty_passes"] for mode in modes.values()))


if __name__ == "__main__":
    sys.exit(main())
