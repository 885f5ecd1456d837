"""Where the engine is: the address of `containers.host`, of DOCKER_HOST, of the project's own engine, or Docker's own place."""

import contextlib
import os
import socket

OWN_SOCKET = "/run/codeworld-rl/engine.sock"
"""Socket of an engine that `rl swe engine start` started."""
HOW_TO_START = (
    "as root `rl swe engine start` starts one (it needs dockerd: on Debian `apt-get install docker.io`); "
    "for another engine set containers.host or DOCKER_HOST, and let this user reach its socket (group docker)"
)
_DOCKERS_OWN = "unix:///var/run/docker.sock"


def engine_address(host: str = "") -> str:
    """The address to use: `host`, else DOCKER_HOST, else the project's own engine if it answers, else Docker's own place.

    Raises ValueError for an address that is neither a Unix socket nor plain TCP.
    """
    address = host or os.environ.get("DOCKER_HOST", "") or (f"unix://{OWN_SOCKET}" if answers(OWN_SOCKET) else _DOCKERS_OWN)
    if not address.startswith(("unix:///", "tcp://")):
        name = "containers.host" if host else "DOCKER_HOST"
        raise ValueError(f"{name} is {address!r}; it must be unix:///path/of/socket or tcp://address:port")
    return address


def answers(path: str) -> bool:
    """Somebody accepts connections on this Unix socket."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2.0)
        client.connect(path)
        return True
    return False
