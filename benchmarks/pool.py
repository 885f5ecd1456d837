"""What a sandbox pool occupies on the host, counted from outside."""

import os
from dataclasses import dataclass
from pathlib import Path

from environments.sandbox.host import UID_BASE, UIDS_PER_PROCESS


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """One count of everything that could leak."""

    pool_processes: int
    """The server and all its descendants."""
    box_uid_processes: int
    """Processes, zombies too, with a uid from the server's range, whoever their parent is."""
    cgroups: int
    mounts: int
    """Of this process and of the server."""
    server_descriptors: int
    files: int
    """In the server's own folder and in /dev/shm."""
    pool_mib: float
    """Proportional set size of the pool's processes."""
    client_mib: float
    """The same of this process."""

    @staticmethod
    def count(server_pid: int) -> "Footprint":
        parents = dict(_parents())
        pool = {server_pid}
        while more := {pid for pid, parent in parents.items() if parent in pool} - pool:
            pool |= more
        first_uid = UID_BASE + UIDS_PER_PROCESS * server_pid
        groups = f"codeworld-sandbox-{server_pid}/*/"
        folders = (Path(f"/tmp/codeworld-rl-{os.geteuid()}"), Path("/dev/shm"))
        return Footprint(
            pool_processes=len(pool),
            box_uid_processes=sum(first_uid <= uid < first_uid + UIDS_PER_PROCESS for uid in _uids()),
            cgroups=sum(1 for root in Path("/sys/fs/cgroup").iterdir() if root.is_dir() for _ in root.rglob(groups)),
            mounts=sum(len(Path(f"/proc/{pid}/mounts").read_text().splitlines()) for pid in (os.getpid(), server_pid)),
            server_descriptors=len(os.listdir(f"/proc/{server_pid}/fd")),
            files=sum(len(list(folder.iterdir())) for folder in folders if folder.is_dir()),
            pool_mib=round(sum(_pss_mib(pid) for pid in pool), 1),
            client_mib=round(_pss_mib(os.getpid()), 1),
        )


def _parents() -> "list[tuple[int, int]]":
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found.append((int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])))
            except OSError:  # it ended meanwhile
                continue
    return found


def _uids() -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found.append(folder.stat().st_uid)
            except OSError:
                continue
    return found


def _pss_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
