"""What all users on one event loop share."""

import asyncio
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary


class PerLoop(ABC):
    """Made for the first user of an event loop, ended with its last; each subclass is shared by itself."""

    _by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Any]]
    _users = 0

    def __init_subclass__(cls) -> None:
        cls._by_loop = WeakKeyDictionary()

    @classmethod
    def take(cls) -> Self:
        """Use the running loop's one until `release`. Raises what making it raises."""
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
            await self._end()

    @abstractmethod
    async def _end(self) -> None:
        """Its last user has gone."""
