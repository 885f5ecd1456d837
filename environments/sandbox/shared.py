"""A sandbox that all episodes of one event loop share."""

import asyncio
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

from environments.sandbox.base import Sandbox
from environments.sandbox.make import make_sandbox


class SharedSandbox:
    """Made for the first episode that takes it, closed with the last one that releases it; each subclass is shared by itself."""

    _by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Any]]

    def __init_subclass__(cls) -> None:
        cls._by_loop = WeakKeyDictionary()

    def __init__(self) -> None:
        self.sandbox: Sandbox = make_sandbox()
        self._users = 0

    @classmethod
    def take(cls) -> Self:
        """Use the running loop's one until `release`. Raises SandboxUnavailable."""
        loop = asyncio.get_running_loop()
        shared: Self | None = cls._by_loop.get(loop)
        if shared is None:
            shared = cls._by_loop[loop] = cls()
        shared._users += 1
        return shared

    async def release(self) -> None:
        """Stop using it."""
        self._users -= 1
        if self._users == 0:
            del self._by_loop[asyncio.get_running_loop()]
            await self.sandbox.close()
