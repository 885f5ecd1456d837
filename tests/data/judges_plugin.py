"""Rewards for the tests of `rl grade`."""

import asyncio
import os

from environments.registry import environment
from environments.single_turn import SingleTurn
from rewards.registry import reward
from rewards.score import Score, ScoreStatus

for name in ("graded_late", "graded_flaky", "graded_never", "graded_length"):
    environment(name)(SingleTurn)


@reward("graded_late")
async def late(problem, response):
    await asyncio.sleep(float(response))
    return 1.0


attempts = {}


@reward("graded_flaky")
def flaky(problem, response):
    attempts[response] = attempts.get(response, 0) + 1
    if attempts[response] <= int(response):
        raise OSError("the judge is away")
    return 1.0


@reward("graded_never")
async def never(problem, response):
    print("grading", os.getpid(), flush=True)
    await asyncio.sleep(3600)


@reward("graded_length")
def length(problem, response):
    assert all(not 0xD800 <= ord(character) < 0xE000 for character in response[:10])
    return Score(reward=float(len(response)), status=ScoreStatus.OK, reason=repr(response[:10]))
