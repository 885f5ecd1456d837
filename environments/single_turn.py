"""One question, one reply: the environment of every task whose grader needs only the policy's answer."""

from environments.records import Message, StepResult, StopReason, Task


class SingleTurn:
    """Shows the task's prompt and ends at the first reply. A good base class: override `step` to answer back."""

    def __init__(self, task: Task) -> None:
        self.task = task

    async def reset(self) -> tuple[Message, ...]:
        """Return the task's prompt."""
        return self.task.prompt

    async def step(self, action: Message) -> StepResult:
        """End the episode, whatever was said: judging it is the grader's work."""
        return StepResult(done=True, stop_reason=StopReason.DONE)

    async def close(self) -> None:
        """Nothing to release."""
