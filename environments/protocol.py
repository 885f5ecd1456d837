"""The `Environment` protocol: text in, text out; an environment never sees tokens."""

from typing import Protocol

from environments.records import Message, StepResult


class Environment(Protocol):
    """One episode of one task. Single-use: made by a factory, reset once, stepped until done, closed.

    Any exception that leaves these methods is an infrastructure failure: the rollout is retried, then recorded with
    `Score.status == infra` and no reward.
    """

    async def reset(self) -> tuple[Message, ...]:
        """Start the episode and return its opening messages."""
        ...

    async def step(self, action: Message) -> StepResult:
        """Apply the policy's message (role `assistant`)."""
        ...

    async def close(self) -> None:
        """Release sandboxes and processes. Called exactly once, whatever happened before."""
        ...
