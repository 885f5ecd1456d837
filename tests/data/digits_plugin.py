"""An environment that even an untrained model can learn: say digits."""

import asyncio
import os

from environments.records import Message, Problem, StepResult
from environments.registry import environment
from environments.single_turn import SingleTurn
from rewards.registry import reward


@environment("digits")
class Digits(SingleTurn):
    """Takes DIGITS_DELAY seconds until the file DIGITS_UNTIL is there, so that a test can act before a run is over."""

    async def step(self, action: Message) -> StepResult:
        if not os.path.exists(os.environ.get("DIGITS_UNTIL", "")):
            await asyncio.sleep(float(os.environ.get("DIGITS_DELAY", "0")))
        return await super().step(action)


@reward("digits")
def digits(problem: Problem, response: str) -> float:
    """+1 for at least one digit."""
    return 1.0 if any(character.isdigit() for character in response) else -1.0


environment("digits-then-huge")(SingleTurn)
_graded = 0


@reward("digits-then-huge")
def digits_then_huge(problem: Problem, response: str) -> float:
    """After the first steps rewards so large that the loss overflows: a stand-in for a run that diverges."""
    global _graded
    _graded += 1
    return digits(problem, response) * (1.0 if _graded < 80 else 3e38)
