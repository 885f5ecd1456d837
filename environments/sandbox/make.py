"""Choose the sandbox of a process."""

from configs.schema import SandboxConfig
from environments.sandbox.base import Sandbox
from environments.sandbox.client import PoolClient

_config = SandboxConfig()


def use_sandbox(config: SandboxConfig) -> None:
    """State once, at a process's start, which sandbox `make_sandbox` gives from then on."""
    global _config
    _config = config


def make_sandbox(*, slots: int = 0) -> Sandbox:
    """The node's sandbox, shared by all processes of this user with the same settings.

    `slots`: executions that the caller has running at once, 0 means as many as the node's server lets it. Raises SandboxUnavailable
    when this machine cannot run one, ValueError for wrong settings.
    """
    client = PoolClient(_config, slots=slots)
    client.ensure_server()
    return client
