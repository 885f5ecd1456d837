"""This process as an owner of containers: its label, and the watcher that cleans up after it."""

import contextlib
import http.client
import os
import subprocess
import sys
import threading

from environments.containers import reaper
from environments.containers.base import ContainerError

_lock = threading.Lock()
_watchers: dict[tuple[int, str], "_Watcher"] = {}
"""By process (a fork has its own) and address of the engine."""


class _Watcher:
    """A process in a session of its own: neither a signal to our process group nor our death ends it."""

    def __init__(self, address: str, owner: str) -> None:
        command = [sys.executable, "-I", "-S", reaper.__file__, address, owner]
        self.users = 0
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", env={}, start_new_session=True
        )

    def dismiss(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate(b"q")


def own(address: str) -> str:
    """Sweep what dead owners left on an engine and have this process watched until as many `disown`; its label. Blocking."""
    owner = reaper.this_process()
    with _lock:
        key = (os.getpid(), address)
        if key not in _watchers:
            try:
                reaper.remove_all(address, reaper.is_dead)
            except (OSError, http.client.HTTPException) as error:
                raise ContainerError(f"what dead owners left on the engine could not be removed: {error}") from error
            _watchers[key] = _Watcher(address, owner)
        _watchers[key].users += 1
    return owner


def disown(address: str) -> None:
    """This user of the engine has removed all that it made. Blocking."""
    with _lock:
        key = (os.getpid(), address)
        watcher = _watchers[key]
        watcher.users -= 1
        if watcher.users == 0:
            del _watchers[key]
            watcher.dismiss()
