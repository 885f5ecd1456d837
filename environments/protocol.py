"""The `Environment` protocol: text in, text out; an environment never sees tokens."""

from typing import Protocol, runtime_checkable

from environments.records import Budget, Message, SandboxInfo, StepResult


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


@runtime_checkable
class Budgeted(Protocol):
    """An environment that shows the policy what is left of the episode's budgets."""

    def note_budget(self, budget: Budget) -> None:
        """Called before each `step`."""
        ...


@runtime_checkable
class Sandboxed(Protocol):
    """An environment, or what it runs programs in, that can tell where they ran: the log keeps it."""

    def sandbox_info(self) -> SandboxInfo:
        """Of all that was started so far. Called before `close`."""
        ...
