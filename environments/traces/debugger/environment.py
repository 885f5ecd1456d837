"""The debugger as an environment: each turn shows a state and an action, and the policy says where the debugger stands after it.

    task ─► recording (sandbox) ─► walk (seed) ─► state and action ─► the policy's frame ─► the true state and the next action ─► ...

What is shown is always the true state, whatever the policy predicted. The grader makes the same walk of its own.
"""

from environments.records import Message, StepResult, StopReason, Task
from environments.sandbox.shared import SharedSandbox
from environments.single_turn import SingleTurn
from environments.traces.debugger.machine import Machine
from environments.traces.debugger.task import LIMITS, DebuggerTask, opening_text, turn_text, walk_digest
from environments.traces.debugger.walk import Step
from environments.traces.recordings import Recordings


class SharedRecordings(SharedSandbox):
    """The recordings that the episodes of one event loop share."""

    def __init__(self) -> None:
        super().__init__()
        self.recordings = Recordings(self.sandbox, limits=LIMITS)

    async def _end(self) -> None:
        await self.recordings.close()
        await super()._end()


class TraceDebugger(SingleTurn):
    """Ends after the last step of the walk; at once for a program that cannot be debugged, for which there is no reward."""

    def __init__(self, task: Task) -> None:
        """Raises ValueError for a payload that is none."""
        super().__init__(task)
        self._asked = DebuggerTask.of(task)
        self._shared: SharedRecordings | None = None
        self._machine: Machine | None = None
        self._steps: tuple[Step, ...] = ()
        self._turn = 0

    async def reset(self) -> tuple[Message, ...]:
        """The task's prompt, with the program and the first turn behind its last message. SandboxError is an infrastructure failure."""
        self._shared = SharedRecordings.take()
        try:
            self._machine, self._steps = self._asked.walk(await self._shared.recordings.of(self._asked.program))
        except ValueError:  # the grader finds the same, and says why
            return self.task.prompt
        *before, last = self.task.prompt
        return (*before, Message(role=last.role, content=f"{last.content}\n{opening_text(self._machine, self._steps)}"))

    async def step(self, action: Message) -> StepResult:
        """Show the state after the action, and the next action."""
        self._turn += 1
        if self._machine is None:
            return StepResult(done=True, stop_reason=StopReason.DONE)
        if self._turn >= len(self._steps):
            outcome = {"walk": walk_digest(self._machine, self._steps)}
            return StepResult(done=True, stop_reason=StopReason.DONE, outcome=outcome)
        return StepResult(messages=(Message(role="user", content=turn_text(self._machine, self._steps[self._turn])),), done=False)

    async def close(self) -> None:
        """Release the sandbox."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await shared.release()
