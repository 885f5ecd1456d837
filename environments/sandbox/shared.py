"""A sandbox that all episodes of one event loop share."""

from environments.per_loop import PerLoop
from environments.sandbox.base import Sandbox
from environments.sandbox.make import make_sandbox


class SharedSandbox(PerLoop):
    """Making it raises SandboxUnavailable where there is none."""

    def __init__(self) -> None:
        self.sandbox: Sandbox = make_sandbox()

    async def _end(self) -> None:
        await self.sandbox.close()
