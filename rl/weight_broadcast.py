"""One process's place in the group that broadcasts weights: learner ranks send, generators hear, whoever fails tells all others to stop.

    rank 0: bucket, bucket, last ─► everybody;  rank 1: bucket, last ─► everybody;  ...

Every process takes part in every broadcast, in this order; the other ranks throw away what they hear. A group serves one set of processes:
when that changes, or a broadcast fails, it is left, and another is made under the next number. It stands beside the learner's own process
group and knows nothing of it. No wait in here is longer than the group's timeout or a message of one that has failed.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from rl.errors import BroadcastFailed
from rl.records import WeightBucket
from rl.weight_frame import encode
from rl.weight_store import Place, stop_group, why_stopped

_LOOK_SECONDS = 0.2
_LONGEST_NAP = 0.002


class WeightBroadcast:
    """A place that was taken. The calls may come from any thread, one at a time."""

    def __init__(self, place: Place, *, address: str, note: Callable[[str], None]) -> None:
        """Meet all others of the group. Raises BroadcastFailed.

        Args:
            address: of this node, on which gloo listens.
            note: hears what this process waits for.
        """
        self._place, self._note = place, note
        self._device = torch.device("cpu")
        self._host = [torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)]
        """Frames take turns in them."""
        self._turn = 0
        self._group: Any = None
        self._work: Any = None
        """The operation under way."""
        self._note(f"waits for all {place.size} processes of group {place.group}, which broadcasts weights")
        try:
            self._store = self._connect()
            if place.backend == "nccl":
                self._device = _own_gpu()
            self._meet(address)
        except RuntimeError as error:  # also what a store reports
            raise self._failed(f"could not meet the others: {error}") from error

    def send_in_turn(self, buckets: Sequence[WeightBucket]) -> None:
        """A learner rank's part of a version: send its own buckets when it is its turn, and let the other ranks send theirs.

        Raises BroadcastFailed.
        """
        for root in range(self._place.senders):
            if root == self._place.rank:
                for bucket in buckets:
                    self._send(bucket)
                continue
            while not self._hear(root)[1]:
                pass

    def hear(self, root: int) -> tuple[np.ndarray, bool]:
        """The next frame of a learner rank, and whether it is its last. It holds until the call after the next. Raises BroadcastFailed."""
        moved, last = self._hear(root)
        frame = moved if moved.device.type == "cpu" else self._room(len(moved)).copy_(moved)
        return frame.numpy(), last

    def leave(self) -> None:
        """Break off whatever is under way, and do not wait for it."""
        group, work = self._group, self._work
        self._group = self._work = None
        if group is not None:
            threading.Thread(target=_abandon, args=([group, work],), name="leave weight group", daemon=True).start()

    def _send(self, bucket: WeightBucket) -> None:
        frame = torch.from_numpy(encode(bucket, room=lambda nbytes: self._room(nbytes).numpy()))
        head = torch.tensor([len(frame), bucket.last], dtype=torch.int64)
        what = f"sends bucket {bucket.index} of version {bucket.version} to all of group {self._place.group}"
        for tensor in (head, frame):
            self._broadcast(tensor.to(self._device), root=self._place.rank, what=what)

    def _hear(self, root: int) -> tuple[Tensor, bool]:
        what = f"waits for learner rank {root} in a broadcast of group {self._place.group}"
        nbytes, last = self._broadcast(torch.zeros(2, dtype=torch.int64, device=self._device), root=root, what=what).tolist()
        on_cpu = self._device.type == "cpu"
        target = self._room(nbytes) if on_cpu else torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        return self._broadcast(target, root=root, what=what), bool(last)

    def _broadcast(self, tensor: Tensor, *, root: int, what: str) -> Tensor:
        """The tensor, on the group's device, with the root's values."""
        if self._group is None:
            raise BroadcastFailed(f"this process has left group {self._place.group}")
        self._note(what)
        options = distributed.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = root, 0, timedelta(seconds=self._place.timeout)
        try:
            self._work = work = self._group.broadcast([tensor], options)
            self._until(work.is_completed, what)
            work.wait()
        except RuntimeError as error:
            raise self._failed(f"{what}: {error}") from error
        self._work = None
        return tensor

    def _until(self, done: Callable[[], bool], what: str) -> None:
        """Raises BroadcastFailed at the deadline, and when another of the group has failed."""
        begun = looked = time.monotonic()
        while not done():
            now = time.monotonic()
            if now - begun > self._place.timeout:
                raise self._failed(f"{what}: nothing came of it within {self._place.timeout:.0f} s")
            if now - looked > _LOOK_SECONDS:
                looked = now
                if why := why_stopped(self._store, self._place.group):
                    self.leave()
                    raise BroadcastFailed(why)
            # Short operations are noticed at once, long ones cost no processor.
            time.sleep(min(_LONGEST_NAP, (now - begun) / 10))

    def _failed(self, why: str) -> BroadcastFailed:
        """Leave, and let everybody know."""
        with contextlib.suppress(RuntimeError, AttributeError):  # there may be no store
            stop_group(self._store, self._place.group, f"process {self._place.rank} of {self._place.size} {why}")
        self.leave()
        return BroadcastFailed(why)

    def _room(self, nbytes: int) -> Tensor:
        self._turn = 1 - self._turn
        if self._host[self._turn].numel() < nbytes:
            self._host[self._turn] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        return self._host[self._turn][:nbytes]

    def _connect(self) -> TCPStore:
        timeout = timedelta(seconds=self._place.timeout)
        return TCPStore(self._place.host, self._place.port, is_master=False, wait_for_workers=False, timeout=timeout)

    def _meet(self, address: str) -> None:
        """Make the group and let it work once; in a thread, since it cannot be told to stop."""
        made: list[Any] = []

        def make() -> None:
            try:
                group = self._make(address)
                group.broadcast([torch.zeros(1, dtype=torch.uint8, device=self._device)], distributed.BroadcastOptions()).wait()
                made.append(group)
            except Exception as error:
                made.append(error)

        thread = threading.Thread(target=make, name="meet weight group", daemon=True)
        thread.start()
        self._until(lambda: not thread.is_alive(), f"waits for all {self._place.size} processes of group {self._place.group}")
        if isinstance(made[0], Exception):
            raise RuntimeError(made[0]) from made[0]
        (self._group,) = made

    def _make(self, address: str) -> Any:
        # A store's client serves one call at a time, and this one waits in it.
        store = PrefixStore(f"{self._place.group}", self._connect())
        if self._place.backend == "gloo":
            options = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices = [distributed.ProcessGroupGloo.create_device(hostname=address)]
            options._timeout = timedelta(seconds=self._place.timeout)
            return distributed.ProcessGroupGloo(store, self._place.rank, self._place.size, options)
        torch.cuda.set_device(self._device)
        # NCCL's own watchdog ends the process: this class must be the first to notice.
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=10 * self._place.timeout)
        return distributed.ProcessGroupNCCL(store, self._place.rank, self._place.size, options)


def _own_gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise RuntimeError("this process sees no GPU, and its group uses NCCL, since all processes asked Ray for one")
    return torch.device("cuda", torch.cuda.current_device())


def _abandon(held: list[Any]) -> None:
    """Let go of a group, once nothing is under way in it: gloo breaks nothing off, and its end would hold up all threads of the process."""
    group, work = held
    held.clear()
    with contextlib.suppress(RuntimeError):
        group.abort()
    while work is not None and not work.is_completed():
        time.sleep(_LOOK_SECONDS)
