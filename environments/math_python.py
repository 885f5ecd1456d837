"""Math with a Python tool: the policy may run code in a session before it answers.

A turn with a tool call is answered by a message of role `tool`; a turn without one is the final answer and ends the episode.
Every turn with a tool call, a malformed one too, uses one of the calls; when none is left, a further one ends the episode.
"""

from environments.python_session import CELL_SECONDS, PythonSession
from environments.records import Message, SandboxInfo, StepResult, StopReason, Task
from environments.reply import ToolCallError, only_tool_call
from environments.single_turn import SingleTurn

TOOL = "python"
MAX_CALLS = 4
INSTRUCTIONS = f"""You may run Python before you answer. A call is written like this, exactly one in a message:
<tool: {TOOL}>
print(6 * 7)
</tool>
Its output comes back; variables are kept from call to call. You have {MAX_CALLS} calls of at most {CELL_SECONDS:.0f} seconds. \
A message without a call is your answer: put it in \\boxed{{}}."""


class MathPython(SingleTurn):
    """A math problem with at most MAX_CALLS calls of a stateful Python session in the sandbox."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._session = PythonSession()
        self._calls_left = MAX_CALLS

    async def reset(self) -> tuple[Message, ...]:
        """The task's prompt; its system message, or a new one, ends with the instructions for the tool."""
        first, *rest = self.task.prompt
        if first.role == "system":
            return (Message(role="system", content=f"{first.content}\n\n{INSTRUCTIONS}"), *rest)
        return (Message(role="system", content=INSTRUCTIONS), first, *rest)

    async def step(self, action: Message) -> StepResult:
        """Run the call, if there is one. SandboxError is an infrastructure failure."""
        try:
            call = only_tool_call(action.content)
            if call is None or self._calls_left == 0:
                return StepResult(done=True, stop_reason=StopReason.DONE)
            if call.name != TOOL:
                raise ToolCallError(f"there is no tool {call.name!r}; the only one is {TOOL}")
        except ToolCallError as error:
            if self._calls_left == 0:
                return StepResult(done=True, stop_reason=StopReason.DONE)
            return self._answer(f"[nothing was run: {error}]")
        result = await self._session.run(call.body)
        return self._answer(result.text, exit_code=result.exit_code)

    def sandbox_info(self) -> SandboxInfo:
        """Of the session's boxes."""
        return self._session.info

    async def close(self) -> None:
        """End the session."""
        await self._session.close()

    def _answer(self, text: str, *, exit_code: int | None = None) -> StepResult:
        self._calls_left -= 1
        left = f"[{self._calls_left} of {MAX_CALLS} calls left]" if self._calls_left else "[no calls left: answer now]"
        shown = text.rstrip("\n")
        content = f"{shown}\n{left}" if shown else left
        return StepResult(messages=(Message(role="tool", name=TOOL, content=content, exit_code=exit_code),), done=False)
