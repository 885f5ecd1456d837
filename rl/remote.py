"""A process elsewhere, called by method name: deadlines, and errors that are ours. Ray's owner beside `rl/placement.py`."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.experimental import internal_kv

from rl.errors import PartGone, PartUnreachable
from rl.places import Node
from rl.status.record import PartStatus

_SPACE = b"codeworld-rl"


class Remote:
    """A handle that may be sent to other processes."""

    def __init__(self, actor: Any, *, name: str) -> None:
        """`name` tells one process of a part from the next one that takes its place."""
        self._actor = actor
        self.name = name

    async def call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        """The method's result; what it raises is raised here.

        Raises PartGone when the process has died or (with `timeout`, in seconds) has not answered in time, PartUnreachable when a
        connection broke.
        """
        try:
            async with asyncio.timeout(timeout) as deadline:
                return await awaited(getattr(self._actor, method).remote(*arguments))
        except RayTaskError as error:
            raise cause(error) from error
        except ActorUnavailableError as error:
            raise PartUnreachable(f"{self.name} cannot be reached: {first_line(error)}") from error
        except RayError as error:
            raise PartGone(f"{self.name} is gone: {last_line(error)}") from error
        except TimeoutError:
            if deadline.expired():
                raise PartGone(f"{self.name} did not answer {method} within {timeout:.0f} s") from None
            raise

    def placed(self) -> bool:
        """Whether a node has begun its process."""
        # Ray's public way asks a dashboard, which a private Ray does not have.
        return bool(state.actor_table(self._actor._actor_id.hex()).get("Pid"))

    def kill(self) -> None:
        """End the process, also one that is frozen. One on a node that cannot be reached ends itself once it hears of it."""
        with contextlib.suppress(RayError):
            ray.kill(self._actor, no_restart=True)


async def awaited(reference: Any) -> Any:
    """An object reference as a coroutine."""
    return await reference


def live_nodes() -> Sequence[Node]:
    """The cluster's machines, and what is free on each. Ray is asked once a second: every process that waits for a place wants to know."""
    return _nodes_at(int(time.monotonic()))


@lru_cache(maxsize=1)
def _nodes_at(second: int) -> Sequence[Node]:
    free = state.available_resources_per_node()
    return [Node(total=node["Resources"], free=free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]


def cause(error: BaseException) -> BaseException:
    """The exception inside a RayTaskError."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) else error


def first_line(error: BaseException) -> str:
    """Of its text."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def last_line(error: BaseException) -> str:
    """Of its text: Ray hands over what a constructor raised as the last line of a report."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """Where the parts of one run leave their records: the key-value store of Ray's head, which every node reaches anyway."""

    run_id: str

    def __call__(self, record: PartStatus, *, name: str) -> bool:
        """Leave a record; False when the process of this name was given up."""
        internal_kv._internal_kv_put(self._key("part", record.part), record.encode(), True, namespace=_SPACE)
        return not internal_kv._internal_kv_exists(self._key("gone", name), namespace=_SPACE)

    def read(self) -> Sequence[PartStatus]:
        """The newest record of each part."""
        keys = internal_kv._internal_kv_list(self._key("part", ""), namespace=_SPACE)
        found = (internal_kv._internal_kv_get(key, namespace=_SPACE) for key in keys)
        return [PartStatus.decode(data) for data in found if data]

    def give_up(self, *, part: str, name: str) -> None:
        """Tell this process of a part to end itself, should it come back, and forget its record."""
        internal_kv._internal_kv_put(self._key("gone", name), b"1", True, namespace=_SPACE)
        internal_kv._internal_kv_del(self._key("part", part), namespace=_SPACE)

    def clear(self) -> None:
        """Leave nothing behind on a cluster that goes on."""
        with contextlib.suppress(Exception):
            for kind in ("part", "gone"):
                internal_kv._internal_kv_del(self._key(kind, ""), del_by_prefix=True, namespace=_SPACE)

    def _key(self, kind: str, name: str) -> bytes:
        return f"{self.run_id}/{kind}/{name}".encode()
