"""Containers that stand ready before they are asked for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from environments.containers.base import ContainerError, ContainerSpec
from environments.containers.container import DockerContainer
from environments.sandbox.base import SandboxError

_IDLE_SECONDS = 60.0
"""After which nobody is expected to ask again."""


class WarmPool:
    """Of one spec, the one that was asked for last. A container leaves it once and never comes back."""

    def __init__(
        self, *, size: int, launch: Callable[[ContainerSpec], Awaitable[DockerContainer]], idle_seconds: float = _IDLE_SECONDS
    ) -> None:
        self._size, self._launch, self._idle_seconds = size, launch, idle_seconds
        self._spec: ContainerSpec | None = None
        self._ready: list[DockerContainer] = []
        self._launching: set[asyncio.Task[None]] = set()
        self._removing: set[asyncio.Task[None]] = set()
        self._idle: asyncio.TimerHandle | None = None

    def take(self, spec: ContainerSpec) -> DockerContainer | None:
        """One that is ready, if any; others are started in its place, in the background."""
        if self._size == 0:
            return None
        if spec != self._spec:
            self.drop()
            self._spec = spec
        found = None
        while self._ready and found is None:
            oldest = self._ready.pop(0)
            if oldest.alive:
                found = oldest
            else:
                self._remove(oldest)
        while len(self._ready) + len(self._launching) < self._size:
            self._keep(self._launching, asyncio.ensure_future(self._add(spec)))
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self.drop)
        return found

    def drop(self) -> None:
        """Remove all, in the background; those under way too, when they are there."""
        self._spec = None
        if self._idle is not None:
            self._idle.cancel()
        while self._ready:
            self._remove(self._ready.pop())

    async def close(self) -> None:
        """Remove all and wait for that."""
        self.drop()
        while waited := self._launching | self._removing:
            await asyncio.wait(waited)

    async def _add(self, spec: ContainerSpec) -> None:
        try:
            container = await self._launch(spec)
        except SandboxError:  # who asks next meets the same fault, and is told
            return
        if spec == self._spec:
            self._ready.append(container)
        else:
            self._remove(container)

    def _remove(self, container: DockerContainer) -> None:
        async def remove() -> None:
            try:
                await container.remove()
            except ContainerError:
                return  # the engine is gone, or the watcher does it

        self._keep(self._removing, asyncio.ensure_future(remove()))

    @staticmethod
    def _keep(tasks: set[asyncio.Task[None]], task: "asyncio.Task[Any]") -> None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)
