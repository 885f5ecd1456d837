"""Control groups of the boxes: memory and processes of a whole box, on cgroup v1 or v2 where this process may make groups.

One group a zygote, below `codeworld-sandbox-PID`, where PID is the process that owns them. A group that its owner left behind (it was
killed) is removed by whoever makes groups next.
"""

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "codeworld-sandbox-"
_LAG_BYTES = 8 << 20
_REMOVE_SECONDS = 5.0
_ABANDONED_SECONDS = 1.0
"""The processes of an owner that was killed just now are about to end too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Controllers:
    """Folders in which this process may make groups, by controller."""

    memory: Path | None
    pids: Path | None
    version: int | None
    found: str
    """What is there, or why nothing is, for `rl doctor`."""

    @staticmethod
    def find() -> "Controllers":
        """Look at the mounts and try; never raises."""
        try:
            mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
            own = {line.split(":")[1]: line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
        except OSError as error:
            return Controllers(memory=None, pids=None, version=None, found=f"/proc is hidden: {error}")
        reasons: list[str] = []
        places: dict[str, Path] = {}
        for _, mount, kind, options, *_ in mounts:
            for controller in ("memory", "pids"):
                if kind == "cgroup" and controller in options.split(","):
                    group = own.get(next((names for names in own if controller in names.split(",")), ""), "/")
                    if (place := _writable(Path(mount), group, reasons)) is not None:
                        places[controller] = place
        if places:
            found = f"cgroup v1: {', '.join(f'{name} at {path}' for name, path in sorted(places.items()))}"
            return Controllers(memory=places.get("memory"), pids=places.get("pids"), version=1, found=found)
        for _, mount, kind, *_ in mounts:
            if kind == "cgroup2" and (place := _writable(Path(mount), own.get("", "/"), reasons)) is not None:
                enabled = _enable(place, reasons)
                if "memory" in enabled:
                    pids = place if "pids" in enabled else None
                    return Controllers(memory=place, pids=pids, version=2, found=f"cgroup v2: {' '.join(sorted(enabled))} at {place}")
        return Controllers(memory=None, pids=None, version=None, found="; ".join(dict.fromkeys(reasons)) or "no cgroups are mounted")

    def group(self, name: str) -> "Group":
        """Make the group `name` of this process. Raises OSError."""
        remove_abandoned(self)
        folders = {}
        for controller, place in (("memory", self.memory), ("pids", self.pids)):
            if place is not None:
                owner = place / f"{_PREFIX}{os.getpid()}"
                owner.mkdir(exist_ok=True)
                if self.version == 2:
                    _enable(owner, [])
                (owner / name).mkdir(exist_ok=True)
                folders[controller] = owner / name
        return Group(folders=folders, version=self.version or 1)


class Group:
    """The limits of one zygote and its box."""

    def __init__(self, *, folders: dict[str, Path], version: int) -> None:
        self._memory, self._pids = folders.get("memory"), folders.get("pids")
        self._version = version
        self._set: dict[str, int] = {}
        self._base_bytes = 0
        self._kills = 0

    def join(self, pid: int) -> None:
        """Move a process in, before it has started others."""
        for folder in {self._memory, self._pids} - {None}:
            (folder / "cgroup.procs").write_text(str(pid))  # type: ignore[operator]  # None was taken out

    def measure_base(self) -> None:
        """What the zygote itself occupies is no box's use."""
        if self._memory is not None:
            self._base_bytes = self._usage()
            self._kills = self._oom_kills()

    def limit(self, *, memory_bytes: int, processes: int) -> None:
        """Set the limits of the next box. Raises OSError."""
        if self._memory is not None:
            # The kernel frees what it kept for dead processes some time after they are gone (150 MiB after a fork bomb, on a busy
            # machine), and until then it counts here: that must not be the next program's loss.
            lag = self._usage() - self._base_bytes
            total = self._base_bytes + memory_bytes + (lag if lag > _LAG_BYTES else 0)
            names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if self._version == 1 else ("memory.max",)
            growing = total > self._set.get(names[0], 1 << 62)  # both begin without a limit
            for name in reversed(names) if growing else names:  # memory with swap may never be below memory
                self._write(self._memory, name, total)
            if self._version == 2:
                self._write(self._memory, "memory.swap.max", 0)
        if self._pids is not None:
            self._write(self._pids, "pids.max", processes)

    def killed_by_memory(self) -> bool:
        """Whether the kernel killed a process for memory since the last question."""
        if self._memory is None:
            return False
        before, self._kills = self._kills, self._oom_kills()
        return self._kills > before

    def remove(self) -> None:
        """Once its processes are dead; the kernel may take a moment to agree."""
        for folder in {self._memory, self._pids} - {None}:
            assert folder is not None
            _remove(folder, seconds=_REMOVE_SECONDS)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # the last one takes the owner's folder along

    def _usage(self) -> int:
        assert self._memory is not None
        return int((self._memory / ("memory.usage_in_bytes" if self._version == 1 else "memory.current")).read_text())

    def _oom_kills(self) -> int:
        assert self._memory is not None
        text = (self._memory / ("memory.oom_control" if self._version == 1 else "memory.events")).read_text()
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)

    def _write(self, folder: Path, name: str, value: int) -> None:
        if self._set.get(name) != value and (name != "memory.memsw.limit_in_bytes" or (folder / name).exists()):
            (folder / name).write_text(str(value))
            self._set[name] = value


def remove_abandoned(controllers: Controllers) -> None:
    """Groups of processes that are no more."""
    for place in {controllers.memory, controllers.pids} - {None}:
        assert place is not None
        for folder in place.glob(f"{_PREFIX}*"):
            owner = re.fullmatch(r"\d+", folder.name.removeprefix(_PREFIX))
            if owner is not None and not _lives(int(owner.group())):
                for below in folder.iterdir():
                    if below.is_dir():
                        _remove(below, seconds=_ABANDONED_SECONDS)
                _remove(folder, seconds=0.0)


def _lives(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _writable(mount: Path, group: str, reasons: list[str]) -> Path | None:
    """This process's own group, or the top where that is hidden by a mount of a part of the tree."""
    place = mount / group.lstrip("/")
    if not place.is_dir():
        place = mount
    probe = place / f"{_PREFIX}probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        reasons.append(f"{place} is not writable: {error.strerror}")
        return None
    return place


def _enable(place: Path, reasons: list[str]) -> set[str]:
    """Controllers that children of a v2 group have."""
    for name in ("memory", "pids"):
        try:
            (place / "cgroup.subtree_control").write_text(f"+{name}")
        except OSError as error:  # no such controller in v2, or the group holds processes
            reasons.append(f"{place} cannot give {name} to its children: {error.strerror}")
    return set((place / "cgroup.subtree_control").read_text().split()) & {"memory", "pids"}


def _remove(folder: Path, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while folder.is_dir():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() >= end:
                return
            time.sleep(0.01)
