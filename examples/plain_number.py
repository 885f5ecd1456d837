"""An environment that asks again until the reply is a plain number, and its reward."""

from environments.records import Message, Problem, StepResult, StopReason
from environments.registry import environment
from environments.single_turn import SingleTurn
from rewards.registry import reward


@environment("plain_number")
class PlainNumber(SingleTurn):
    async def step(self, action: Message) -> StepResult:
        if action.content.isdecimal():
            return StepResult(done=True, stop_reason=StopReason.DONE)
        return StepResult(done=False, messages=(Message(role="user", content="Digits only."),))


@reward("plain_number")
def plain_number(problem: Problem, response: str) -> float:
    if response == problem.reference["answer"]:
        return 1.0  # above 0 counts as solved
    return sum(map(str.isdecimal, response)) / max(1, len(response)) - 1.0
