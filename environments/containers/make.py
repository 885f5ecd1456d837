"""Choose the containers of a process."""

from configs.schema import ContainersConfig
from environments.containers.base import ContainerLimits, Containers
from environments.containers.docker import DockerContainers
from environments.per_loop import PerLoop

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


class SharedContainers(PerLoop):
    """The connection that all users on one event loop share."""

    def __init__(self) -> None:
        self.containers: Containers = make_containers()

    async def _end(self) -> None:
        await self.containers.close()
