"""The host of a sandbox under test: secrets to be looked for, services to be reached, and traces to be found."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_HELPERS = ("bwrap", "setpriv", "nsenter", "prlimit")


@dataclass(kw_only=True)
class Host:
    """What the programs attack."""

    values: dict[str, str]
    """Placeholder in a program: its value here."""
    before: dict[str, object]
    reached: threading.Event = field(default_factory=threading.Event)

    @staticmethod
    @contextlib.contextmanager
    def make(folder: Path, *, secret: str) -> "Iterator[Host]":
        """Listens on loopback and on two unix sockets; a file that all may read holds the secret."""
        for parent in (folder, *folder.parents):
            with contextlib.suppress(PermissionError):
                if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
                    parent.chmod(0o755)
        file = folder / "secret.txt"
        file.write_text(secret)
        abstract = f"codeworld-test-{os.urandom(8).hex()}"
        servers = [socket.create_server(("127.0.0.1", 0)), *(socket.socket(socket.AF_UNIX) for _ in range(2))]
        servers[1].bind("\0" + abstract)
        servers[2].bind(str(folder / "unix"))
        (folder / "unix").chmod(0o777)
        values = {
            "PORT": str(servers[0].getsockname()[1]),
            "ABSTRACT": abstract,
            "UNIX_PATH": str(folder / "unix"),
            "POOL": f"/tmp/codeworld-rl-{os.geteuid()}",
            "HOSTPID": str(os.getpid()),
            "HOSTFILE": str(file),
            "CHECKOUT": __file__,
            "HOSTNAME": os.uname().nodename,
        }
        host = Host(values=values, before=snapshot())
        for server in servers:
            server.listen()
            threading.Thread(target=host._accept, args=(server,), daemon=True).start()
        try:
            yield host
        finally:
            for server in servers:
                server.shutdown(socket.SHUT_RDWR)  # ends the thread that waits for a client
                server.close()

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            server.accept()
            self.reached.set()

    def fill_in(self, program: str) -> str:
        for name, value in self.values.items():
            program = program.replace(name, value)
        return program

    def was_reached(self) -> bool:
        return self.reached.is_set()

    def traces(self, *, idle: bool = False) -> list[str]:
        """Processes of boxes, and what differs from before. `idle`: the sandbox is closed, its own processes are gone too."""
        found = [process for process in box_processes() if idle or "python" not in process]
        now = snapshot()
        return found + [f"{name}: {value!r}, before {self.before[name]!r}" for name, value in now.items() if value != self.before[name]]


def snapshot() -> dict[str, object]:
    """Files and mounts that an escape would change."""
    return {
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "core pattern": Path("/proc/sys/kernel/core_pattern").read_text(),
        "shared memory": sorted(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else [],
        "System V": [len(Path(f"/proc/sysvipc/{kind}").read_text().splitlines()) for kind in ("shm", "msg", "sem")],
        "host name": os.uname().nodename,
    }


def box_processes() -> list[str]:
    """Processes (zombies too) that boxes of this process left behind, by the uid or the parent that only they have."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
            first_uid = 0x7000_0000 + 64 * os.getpid()
            is_box_uid = first_uid <= int(status["Uid"].split()[0]) < first_uid + 64
            is_child = int(status["PPid"]) == os.getpid() and status["Name"] in _HELPERS
            if is_box_uid or is_child:
                found.append(f"{folder.name} {status['Name']} {status['State']}")
    return found
