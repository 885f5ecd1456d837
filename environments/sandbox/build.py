"""The sandbox that a configuration describes, and the name of its server."""

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from configs.schema import SandboxConfig
from environments.sandbox.base import Sandbox, SandboxUnavailable
from environments.sandbox.bubblewrap import Bubblewrap
from environments.sandbox.forkserver import ForkServer


def pool_key(config: SandboxConfig) -> str:
    """Name of the server's socket: differs with the settings, the interpreter and this package's own code."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    text = json.dumps([asdict(config), sys.executable, str(Path(__file__).parent), code.hexdigest()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def build_sandbox(config: SandboxConfig) -> tuple[Sandbox, str]:
    """The sandbox and its kind, after a first program ran in it. Raises SandboxUnavailable, ValueError.

    `auto` takes the fork-server, and bubblewrap where that cannot run; it never takes less than either.
    """
    kinds = ("forkserver", "bubblewrap") if config.kind == "auto" else (config.kind,)
    reasons = []
    for kind in kinds:
        sandbox: Sandbox | None = None
        try:
            if kind == "forkserver":
                sandbox = ForkServer(slots=config.slots, packages=config.preload)
            elif kind == "bubblewrap":
                sandbox = Bubblewrap(slots=config.slots, packages=config.preload)
            else:
                from environments.sandbox.docker import DockerSandbox

                sandbox = DockerSandbox(slots=config.slots, image=config.image)
            await sandbox.guards()
            return sandbox, kind
        except SandboxUnavailable as error:
            reasons.append(str(error) if len(kinds) == 1 else f"{kind}: {error}")
            if sandbox is not None:
                await sandbox.close()
    raise SandboxUnavailable("; ".join(reasons))
