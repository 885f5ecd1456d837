"""Choose the containers of a process."""

import asyncio
from typing import ClassVar, Self
from weakref import WeakKeyDictionary

from configs.schema import ContainersConfig
from environments.containers.base import ContainerLimits, Containers
from environments.containers.docker import DockerContainers

_config = ContainersConfig()


def use_containers(config: ContainersConfig) -> None:
    """State once, at a process's start, which containers `make_containers` gives from then on."""
    global _config
    _config = config


def make_containers() -> Containers:
    """A connection to the configured engine, for one event loop. The engine is reached at the first call."""
    return DockerContainers(host=_config.host, runtime=_config.runtime, at_once=_config.at_once, warm=_config.warm)


def container_limits() -> ContainerLimits:
    """What one container of the configuration may use."""
    return ContainerLimits(memory_mb=_config.memory_mb, processes=_config.processes, cpus=_config.cpus, disk_mb=_config.disk_mb)


class SharedContainers:
    """Made for the first user of an event loop, closed with its last."""

    _by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, "SharedContainers"]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self.containers: Containers = make_containers()
        self._users = 0

    @classmethod
    def take(cls) -> Self:
        """Use the running loop's one until `release`."""
        shared = cls._by_loop.get(asyncio.get_running_loop())
        if not isinstance(shared, cls):
            shared = cls()
            cls._by_loop[asyncio.get_running_loop()] = shared
        shared._users += 1
        return shared

    async def release(self) -> None:
        """Stop using it."""
        self._users -= 1
        if self._users == 0:
            del self._by_loop[asyncio.get_running_loop()]
            await self.containers.close()
