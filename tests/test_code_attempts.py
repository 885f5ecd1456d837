"""The multi-attempt environment: public tests after each attempt, hidden ones only in the grader."""

import asyncio
from typing import Any

import pytest

from environments.code_attempts import CodeAttempts
from environments.records import Episode, Message, StopReason, Task
from environments.registry import make_environment
from rewards.registry import make_grader
from rewards.score import ScoreStatus
from tests.code_grading import SHORT, fenced, problem_with

PUBLIC = [{"args": [2], "expected": 4}, {"args": [3], "expected": 9}]
HIDDEN = [{"args": [12345], "expected": 152399025}]
RIGHT, DOUBLE = "def solve(n): return n * n", "def solve(n): return n + n"


def task_with(**payload: Any) -> Task:
    return Task(
        id="t1",
        env="code_attempts",
        prompt=(Message(role="user", content="Square."),),
        payload={"entry_point": "solve", **SHORT, **payload},
    )


def play(task: Task, *replies: str) -> list[str]:
    """What the environment answered to each reply; `done` ends the list."""

    async def main() -> list[str]:
        environment = make_environment(task)
        assert await environment.reset() == task.prompt
        answers = []
        try:
            for reply in replies:
                step = await environment.step(Message(role="assistant", content=reply))
                answers.append("done" if step.done else step.messages[0].content)
                assert step.done == (step.stop_reason is StopReason.DONE) and bool(step.messages) == (not step.done)
                if step.done:
                    break
        finally:
            await environment.close()
        return answers

    return asyncio.run(main())


def test_failures_are_shown_until_the_public_tests_pass() -> None:
    answers = play(task_with(public_tests=PUBLIC), fenced(DOUBLE), fenced(RIGHT), "never asked")
    assert answers == [
        "1 of 2 public tests failed:\n- solve(3) returned 6, expected 9\n2 attempts are left. Write the whole program again.",
        "done",
    ]


def test_the_last_attempt_ends_the_episode() -> None:
    first, second, third = play(task_with(public_tests=PUBLIC, attempts=3), "no code", fenced("def solve(n): return"), fenced(DOUBLE))
    assert first.startswith("Nothing was run: 0 fenced blocks instead of exactly one.\n2 attempts are left.")
    assert second.startswith("2 of 2 public tests failed:\n- solve(2) returned None, expected 4\n") and "1 attempt is left" in second
    assert third == "done"
    assert play(task_with(public_tests=PUBLIC, attempts=1), fenced(DOUBLE)) == ["done"]


def test_public_tests_may_be_source() -> None:
    (answer, done) = play(
        task_with(public_tests="assert solve(2) == 4\nassert solve(3) == 9", entry_point=None), fenced(DOUBLE), fenced(RIGHT)
    )
    assert "- line 2: assert solve(3) == 9: AssertionError" in answer and done == "done"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)",
        "def solve(n):\n    while True: pass",
        "def solve(n): raise Exception('\ud800' + chr(0) + 'x' * 10**6)",
        "x" * 99_000,
    ],
)
def test_hostile_attempts_get_a_short_answer(code: str) -> None:
    (answer,) = play(task_with(public_tests=PUBLIC), fenced(code))
    assert len(answer) < 1000 and "\0" not in answer
    answer.encode()


def test_hidden_tests_decide_on_the_last_attempt() -> None:
    """Knowing the public tests by heart ends the episode early and does not pass."""
    by_heart = "def solve(n): return {2: 4, 3: 9}.get(n)"
    assert play(task_with(public_tests=PUBLIC), fenced(by_heart)) == ["done"]
    environment = CodeAttempts(task_with(public_tests=PUBLIC))
    assert "152399025" not in repr(vars(environment))
    problem = problem_with({"entry_point": "solve", "tests": HIDDEN}, env="code_attempts")

    async def statuses() -> list[ScoreStatus]:
        grader = make_grader("code_attempts")
        try:
            return [(await grader.grade(problem, episode(*codes))).status for codes in ((RIGHT, by_heart), (by_heart, RIGHT))]
        finally:
            await grader.close()

    def episode(*codes: str) -> Episode:
        messages = [
            message
            for code in codes
            for message in (Message(role="assistant", content=fenced(code)), Message(role="user", content="Again."))
        ]
        return Episode(messages=tuple(messages), stop_reason=StopReason.DONE, n_sampled_tokens=1)

    assert asyncio.run(statuses()) == [ScoreStatus.POLICY_FAIL, ScoreStatus.OK]


@pytest.mark.parametrize("payload", [{}, {"public_tests": []}, {"public_tests": "x = 1"}])
def test_a_task_without_public_tests_is_an_error(payload: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"task t1: payload\.public_tests: "):
        make_environment(task_with(**payload))


def test_many_episodes_share_one_runner() -> None:
    """Forty episodes at once would need eighty boxes, more than there are."""

    async def main() -> list[str]:
        episodes = [CodeAttempts(task_with(public_tests=f"assert solve(2) == {n}", test_seconds=20, total_seconds=60)) for n in range(40)]
        steps = await asyncio.gather(*(episode.step(Message(role="assistant", content=fenced(RIGHT))) for episode in episodes))
        await asyncio.gather(*(episode.close() for episode in episodes))
        return ["done" if step.done else "shown" for step in steps]

    assert asyncio.run(main()) == ["done" if n == 4 else "shown" for n in range(40)]
