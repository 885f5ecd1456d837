"""Grading in tests: short ways to a problem, a reply and a score, and problems to attack."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from environments.records import Episode, Message, Problem, StopReason, Task
from rewards.registry import make_grader
from rewards.score import Score

SHORT = {"test_seconds": 1.0, "total_seconds": 5.0, "memory_mb": 256}
"""Limits for code that is meant to run into them."""
CALLS = {"entry_point": "solve", "tests": [{"args": [n], "expected": n * n} for n in (3, 4, 7)], **SHORT}
ASSERTS = {
    "entry_point": "solve",
    "tests": "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(4) == 16\n    assert candidate(7) == 49\n",
    **SHORT,
}
STDIO = {"tests": [{"stdin": f"{n}\n", "stdout": f"{n * n}\n"} for n in (3, 4, 7)], **SHORT}


def problem_with(reference: Mapping[str, Any], *, env: str = "code") -> Problem:
    return Problem(task=Task(id="t1", env=env, prompt=()), reference=reference, source="test")


def episode_of(response: str) -> Episode:
    return Episode(messages=(Message(role="assistant", content=response),), stop_reason=StopReason.DONE, n_sampled_tokens=1)


def fenced(code: str) -> str:
    return f"Here it is.\n```python\n{code}\n```\n"


def grade_pairs(pairs: Sequence[tuple[Mapping[str, Any], str]], *, env: str = "code") -> list[Score]:
    """The scores of (reference, response) pairs, eight at a time, by one grader."""

    async def main() -> list[Score]:
        grader = make_grader(env)
        places = asyncio.Semaphore(8)

        async def one(reference: Mapping[str, Any], response: str) -> Score:
            async with places:
                return await grader.grade(problem_with(reference, env=env), episode_of(response))

        try:
            return await asyncio.gather(*(one(reference, response) for reference, response in pairs))
        finally:
            await grader.close()

    return asyncio.run(main())


def grade_codes(reference: Mapping[str, Any], codes: Sequence[str], *, env: str = "code") -> list[Score]:
    """The scores of several pieces of code for one problem."""
    return grade_pairs([(reference, fenced(code)) for code in codes], env=env)


def grade_code(reference: Mapping[str, Any], code: str, *, env: str = "code") -> Score:
    """The score of one piece of code."""
    return grade_codes(reference, [code], env=env)[0]
