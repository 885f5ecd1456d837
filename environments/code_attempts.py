"""Several attempts at one program: after each, the public tests run in the sandbox and their failures are shown."""

from environments.code_tests.read import read_tests
from environments.code_tests.records import Report
from environments.code_tests.runner import SharedRunner
from environments.fenced import ExtractionError, code_block
from environments.records import Message, StepResult, StopReason, Task
from environments.single_turn import SingleTurn

DEFAULT_ATTEMPTS = 3
_MAX_FAILURES = 3


class CodeAttempts(SingleTurn):
    """Ends when an attempt passes all public tests, or at the last attempt. The last attempt is what the grader tests."""

    def __init__(self, task: Task) -> None:
        """Raises ValueError for a task without usable `public_tests` in its payload."""
        super().__init__(task)
        payload = {**task.payload, "tests": task.payload.get("public_tests"), "partial_credit": True}
        try:
            self._tests = read_tests(task.env, payload)
        except (ValueError, TypeError) as error:
            raise ValueError(f"task {task.id}: payload.public_tests: {error}") from None
        self._attempts_left = int(task.payload.get("attempts", DEFAULT_ATTEMPTS))
        self._shared: SharedRunner | None = None

    async def step(self, action: Message) -> StepResult:
        """Test the attempt and show what failed. SandboxError is an infrastructure failure."""
        self._attempts_left -= 1
        if self._attempts_left <= 0:
            return StepResult(done=True, stop_reason=StopReason.DONE)
        try:
            code = code_block(action.content)
        except ExtractionError as error:
            return self._answer(f"Nothing was run: {error}.")
        if self._shared is None:
            self._shared = SharedRunner.take()
        report = await self._shared.runner.run(code, self._tests)
        if report.all_passed:
            return StepResult(done=True, stop_reason=StopReason.DONE)
        return self._answer(_shown(report))

    async def close(self) -> None:
        """Release the sandbox."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await shared.release()

    def _answer(self, text: str) -> StepResult:
        left = "1 attempt is left" if self._attempts_left == 1 else f"{self._attempts_left} attempts are left"
        return StepResult(messages=(Message(role="user", content=f"{text}\n{left}. Write the whole program again."),), done=False)


def _shown(report: Report) -> str:
    if report.broken:
        raise ValueError(f"the public tests cannot be used: {report.broken}")
    lines = [f"{report.total - report.passed} of {report.total} public tests failed:"]
    lines += [f"- {failure}" for failure in report.failures[:_MAX_FAILURES]]
    return "\n".join(lines)
