"""An environment that even an untrained model can learn: say digits."""

from environments.records import Problem
from environments.registry import environment
from environments.single_turn import SingleTurn
from rewards.registry import reward

environment("digits")(SingleTurn)


@reward("digits")
def digits(problem: Problem, response: str) -> float:
    """+1 for at least one digit."""
    return 1.0 if any(character.isdigit() for character in response) else -1.0
