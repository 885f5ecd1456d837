"""An environment, and a judge that is away for some replies and cannot use the reference of some problems."""

import zlib

from environments.records import Problem
from environments.single_turn import SingleTurn
from rewards.score import Score, ScoreStatus


class Moody(SingleTurn):
    """Named by dotted path."""


def moody(problem: Problem, response: str) -> Score:
    """The same for the same problem and reply, so that a retry does not help."""
    if zlib.crc32(problem.task.prompt[-1].content.encode()) % 3 == 0:
        return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason="the reference cannot be used")
    if zlib.crc32(response.encode()) % 3 == 0:
        raise OSError("the judge is away")
    passed = zlib.crc32(response.encode()) % 3 == 1
    return Score(reward=1.0 if passed else -1.0, status=ScoreStatus.OK if passed else ScoreStatus.POLICY_FAIL)
