"""Removes the containers and volumes of owners that are gone. Standard library only, so it starts at once as a program of its own.

    python -I -S reaper.py ADDRESS OWNER     wait for the owner's end, then remove what it left; stdin: a byte means it left nothing

Everything is labelled with its owner: a process, by boot, process namespace, pid and start time. A process of another boot or
another namespace cannot be judged from here and is left alone.
"""

import contextlib
import http.client
import json
import os
import select
import socket
import sys
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

OWNER_LABEL = "codeworld-rl.owner"
_SECONDS = 120.0
"""Of trying after the owner's end: a call that it sent last may still be under way in the engine."""


def this_process() -> str:
    """The owner that a process is."""
    return owner_of(os.getpid())


def is_dead(owner: str) -> bool:
    """The process has ended; False when that cannot be known here."""
    parts = owner.split(".")
    if len(parts) != 4 or parts[:2] != [_boot(), _namespace()] or not parts[2].isdigit():
        return False
    try:
        return owner_of(int(parts[2])) != owner
    except OSError:
        return True


def remove_all(address: str, gone: Callable[[str], bool]) -> int:
    """Remove the containers and volumes whose owner is `gone`; how many there were. Raises OSError when the engine fails."""
    filters = urllib.parse.quote(json.dumps({"label": [OWNER_LABEL]}))
    containers = ask(address, "GET", f"/containers/json?all=1&filters={filters}")
    found = [f"/containers/{one['Id']}?force=1&v=1" for one in containers if gone(one["Labels"][OWNER_LABEL])]
    for path in found:
        ask(address, "DELETE", path)
    volumes = ask(address, "GET", f"/volumes?filters={filters}")["Volumes"] or []
    left = [f"/volumes/{one['Name']}" for one in volumes if gone(one["Labels"][OWNER_LABEL])]
    for path in left:
        ask(address, "DELETE", path)
    return len(found) + len(left)


def watch(address: str, owner: str) -> None:
    """Wait for the owner's end or for its word that nothing is left."""
    with contextlib.suppress(OSError):
        process = os.pidfd_open(int(owner.split(".")[2]))
        if not is_dead(owner):
            ready, _, _ = select.select([process, 0], [], [])
            if process not in ready and os.read(0, 1):
                return
            select.select([process], [], [])  # its end of the pipe closes a little before it has ended
    deadline, quiet = time.monotonic() + _SECONDS, 0
    while quiet < 3 and time.monotonic() < deadline:
        try:
            quiet = 0 if remove_all(address, owner.__eq__) else quiet + 1
        except (OSError, http.client.HTTPException):
            quiet = 0
        time.sleep(0.5)


def owner_of(pid: int) -> str:
    """The owner that a running process is. Raises OSError when there is no such process."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return f"{_boot()}.{_namespace()}.{pid}.{int(fields[19])}"


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _namespace() -> str:
    return str(os.stat("/proc/self/ns/pid").st_ino)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path, self._seconds = path, timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._seconds)
        self.sock.connect(self._path)


def ask(address: str, method: str, path: str, *, seconds: float = 60.0) -> Any:
    """The engine's answer. What is gone, or on its way out, needs no removal. Raises OSError, HTTPException."""
    parts = urllib.parse.urlsplit(address)
    connection = (
        _UnixConnection(parts.path, timeout=seconds)
        if parts.scheme == "unix"
        else http.client.HTTPConnection(parts.netloc, timeout=seconds)
    )
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
    if answer.status >= 400 and answer.status not in (404, 409):
        raise OSError(f"{method} {path}: {answer.status} {body[:300].decode(errors='replace')}")
    return json.loads(body) if method == "GET" else None


if __name__ == "__main__":
    watch(sys.argv[1], sys.argv[2])
