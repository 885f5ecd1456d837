"""The store by which the processes of a broadcast group meet, and tell each other to stop.

Without torch until one is opened: the run's own process needs none for other ways of transport.
"""

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

_STOPPED = "stopped"
"""Key under which a group's store has why it is of no more use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What a process must know to take its place in a group."""

    group: int
    """Number of the group: grows with each that is made in a run."""
    backend: Literal["gloo", "nccl"]
    host: str
    port: int
    """Where the group's store is."""
    rank: int
    """In the group: learner ranks first, as they are, then generators."""
    senders: int
    """Learner ranks."""
    size: int
    timeout: float
    """Seconds for the group to be made, and for one bucket to get through."""


def open_store(address: str) -> "TCPStore":
    """The store by which processes meet, on a free port of this address alone."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server((address, 0))
    host, port = listener.getsockname()[:2]
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def stop_group(store: Any, group: int, why: str) -> None:
    """Tell all of a group to stop; the first reason stays. Safe to call at any time."""
    store.compare_set(f"{group}/{_STOPPED}", "", why)


def why_stopped(store: Any, group: int) -> str:
    """Empty while nobody has failed."""
    key = f"{group}/{_STOPPED}"
    return str(store.get(key).decode()) if store.check([key]) else ""
