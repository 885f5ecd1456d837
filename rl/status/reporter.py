"""A process's own side: says what it does, and beats while it is alive, whatever its main thread is busy with.

A frozen process does not beat; one that waits in a collective does, and says so.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import psutil

from rl.status.record import PartStatus

BEAT_SECONDS = 2.0


class Mailbox(Protocol):
    """Where records go. A call may fail; the next one is tried all the same."""

    def __call__(self, record: PartStatus) -> bool:
        """Deliver; False when the run has given this process up."""
        ...


class Reporter:
    """One a process. Thread-safe; never blocks the caller."""

    def __init__(self, part: str, *, mailbox: Mailbox, address: str = "", describe: Callable[[], tuple[str, float]] | None = None) -> None:
        """
        Args:
            address: of the node.
            describe: asked at each beat for what the process does and since when (Unix seconds), instead of `doing`. Must be quick.
        """
        self._part, self._mailbox, self._address, self._describe = part, mailbox, address, describe
        process = psutil.Process()
        self._pid, self._started, self._host = process.pid, process.create_time(), socket.gethostname()
        self._doing, self._since = "starts", time.time()
        self._event, self._event_at = "", 0.0
        self._beat = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def describe_by(self, describe: Callable[[], tuple[str, float]]) -> None:
        """From now on ask this for what the process does."""
        self._describe = describe

    def doing(self, what: str) -> None:
        """Something begins."""
        self._doing, self._since = what, time.time()

    def event(self, what: str) -> None:
        """Something has ended."""
        self._event, self._event_at = what, time.time()

    @contextlib.contextmanager
    def phase(self, what: str, *, then: str) -> Iterator[None]:
        """`what` while the block runs, an event when it ends well, and `then` after it."""
        self.doing(what)
        try:
            yield
            self.event(what)
        finally:
            self.doing(then)

    def record(self) -> PartStatus:
        """Now."""
        doing, since = self._describe() if self._describe else (self._doing, self._since)
        return PartStatus(
            part=self._part,
            host=self._host,
            address=self._address,
            pid=self._pid,
            process_started=self._started,
            doing=doing,
            since=since,
            event=self._event,
            event_at=self._event_at,
            beat=self._beat,
        )

    def close(self) -> None:
        """Beat no more."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._beat += 1
            wanted = True
            with contextlib.suppress(Exception):  # the mailbox's network, or a description read in the midst of a change
                wanted = self._mailbox(self.record())
            if not wanted:
                # The run goes on without this process. It may have been cut off, or frozen, and must not hold its node's resources.
                os._exit(1)
            self._stop.wait(BEAT_SECONDS)
