"""What a sandbox takes from the host: launch tools, the Python interpreter, packages, system programs and libraries, uids."""

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from environments.sandbox.base import Limits, SandboxUnavailable

STAGING_DIR = "/run"
"""Where a private mount namespace shows what other users cannot reach on the host."""
HELP = (
    "programs can only run in a sandbox: install bubblewrap 0.8 or newer and util-linux "
    "(Debian: apt-get install bubblewrap util-linux) on a kernel that allows unprivileged user namespaces"
)
DEVICES = ("null", "urandom")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""All that a program sees: libraries must not start a thread for each of the host's processors."""
UID_BASE = 0x7000_0000
"""First uid of the boxes: above the ranges of packages, users, subordinate ids and containers. Process p owns the 64 uids from
base + 64 p on; the largest pid (2**22 - 1) ends exactly below 2**31."""
UIDS_PER_PROCESS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount:
    """One entry of a box's root."""

    kind: Literal["bind", "link", "hide"]
    """bind: read-only, with everything below. link: a symbolic link. hide: an empty folder on top."""
    target: str
    source: str = ""
    """What is bound, or where the link points to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpreter:
    """This process's interpreter, as installed (not its virtual environment)."""

    prefix: Path
    executable: Path

    @staticmethod
    def locate() -> "Interpreter":
        executable, prefix = Path(sys.executable).resolve(), Path(sys.base_prefix).resolve()
        if not executable.is_relative_to(prefix):
            raise SandboxUnavailable(
                f"the interpreter {executable} lies outside its own prefix {prefix}: use a regular Python installation"
            )
        return Interpreter(prefix=prefix, executable=executable)

    def mounts(self, packages: Sequence[Path]) -> tuple[Mount, ...]:
        """The executable, its libraries, and `packages` in place of all that is installed."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        library = self.prefix / "lib"
        own = (
            ()
            if self.prefix == Path("/usr")  # part of the system's folders
            else (
                Mount(kind="bind", source=str(self.executable), target=str(self.executable)),
                Mount(kind="bind", source=str(library), target=str(library)),
            )
        )
        installed = [path for path in (library / version / "site-packages", library / "python3" / "dist-packages") if path.is_dir()]
        if packages and not installed:
            raise SandboxUnavailable(f"the interpreter {self.executable} has no folder for packages below {library}: empty sandbox.preload")
        hidden = tuple(Mount(kind="hide", target=str(path)) for path in installed)
        shown = tuple(Mount(kind="bind", source=str(path), target=str(installed[0] / path.name)) for path in packages)
        return (*own, *hidden, *shown)


class Staging:
    """A private mount namespace in which chosen folders and files are visible to every user below `STAGING_DIR`.

    Root's interpreter may lie below a folder that other users cannot enter (`/root`). The host's own mounts stay as they are.
    """

    def __init__(self, *, namespace_fd: int, places: Mapping[str, str]) -> None:
        self._namespace_fd = namespace_fd
        self.places = places
        """Path on the host: path in the namespace."""
        # By way of this process, so that no descriptor of the namespace is inherited by the box.
        self.enter = (find_tool("nsenter"), f"--mount=/proc/{os.getpid()}/fd/{namespace_fd}", "--")

    @staticmethod
    def make(sources: Sequence[str]) -> "Staging":
        script = (
            f"mount -t tmpfs -o mode=755,size=64k tmpfs {STAGING_DIR} || exit; n=0\n"
            f'for s in "$@"; do t={STAGING_DIR}/$n; if [ -d "$s" ]; then mkdir $t; else : >$t; fi; '
            'mount --bind "$s" $t || exit; n=$((n+1)); done; echo ready; read -r _'
        )
        command = (find_tool("unshare"), "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script, "sh", *sources)
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=path, cwd="/") as holder:
            assert holder.stdin is not None and holder.stdout is not None and holder.stderr is not None
            ready = holder.stdout.readline() == b"ready\n"
            namespace_fd = os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) if ready else -1
            holder.stdin.close()
            if not ready:
                detail = holder.stderr.read().decode(errors="replace").strip()
                raise SandboxUnavailable(
                    f"{', '.join(sources)} cannot be read by other users and no private mount can show it to the sandbox ({detail}): "
                    "install Python where every user can read it, or run as an ordinary user"
                )
        return Staging(namespace_fd=namespace_fd, places={source: f"{STAGING_DIR}/{n}" for n, source in enumerate(sources)})

    def close(self) -> None:
        if self._namespace_fd >= 0:
            os.close(self._namespace_fd)
            self._namespace_fd = -1


def find_tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxUnavailable(f"`{name}` was not found on PATH; {HELP}")
    return path


def others_reach(path: Path) -> bool:
    """Whether a user without any group of ours may enter every folder above `path`."""
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)


def system_mounts() -> tuple[Mount, ...]:
    """Read-only system programs and libraries: /usr/bin and /usr/lib*, and /bin and /lib* as this system has them."""
    mounts: list[Mount] = []
    for name in ("bin", "lib", "lib64"):
        usr, top = f"/usr/{name}", f"/{name}"
        if Path(usr).is_dir():
            mounts.append(Mount(kind="bind", source=usr, target=usr))
        if Path(top).is_symlink():
            mounts.append(Mount(kind="link", source=os.readlink(top), target=top))
        elif Path(top).is_dir():
            mounts.append(Mount(kind="bind", source=top, target=top))
    cache = "/etc/ld.so.cache"
    return (*mounts, *([Mount(kind="bind", source=cache, target=cache)] if Path(cache).is_file() else ()))


def package_paths(modules: Sequence[str]) -> tuple[Path, ...]:
    """Where `modules` are installed: their folders or files, and the libraries that their wheels brought (`NAME.libs`).

    Modules of the standard library have no place of their own. Raises ValueError for one that is not installed.
    """
    paths: list[Path] = []
    for name in modules:
        spec = None if "." in name else importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"sandbox.preload names {name!r}, which is no installed top-level module: install it, or drop it")
        if name in sys.stdlib_module_names:
            continue
        place = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        paths += [path for path in (place, place.parent / f"{name}.libs") if path.exists()]
    return tuple(dict.fromkeys(paths))


def box_uid(number: int) -> int:
    """Host uid of this process's box `number`: limits on processes count by uid. Raises SandboxUnavailable."""
    uid = UID_BASE + os.getpid() * UIDS_PER_PROCESS + number
    try:
        lines = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError as error:
        raise SandboxUnavailable(f"/proc is hidden ({error}): mount it, the sandbox needs it to map uids") from error
    if not any(inside <= uid < inside + count for inside, _, count in lines):
        raise SandboxUnavailable(
            f"no free uid range: this user namespace maps no uid {uid}, which root's sandboxes take for themselves: "
            f"map {UID_BASE} to {UID_BASE + (1 << 28) - 1} too, or run as an ordinary user"
        )
    return uid


def check_files(files: Mapping[str, bytes], limits: Limits) -> None:
    """Raises ValueError for names that leave the box and for files that do not fit into it."""
    for name in files:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\0" in name or path == PurePosixPath("."):
            raise ValueError(f"file name {name!r} of a sandbox run must be a relative path without `..`")
    size = sum(len(content) for content in files.values())
    if size > limits.disk_mb << 20:
        raise ValueError(f"the files of a sandbox run have {size} bytes, limits.disk_mb is {limits.disk_mb}: raise it")


def pack_program(source: bytes, files: Mapping[str, bytes]) -> bytes:
    """A program and its files as one message: the length of a JSON list of names and sizes, that list, the contents.

    The program itself is the part without a name.
    """
    parts = {"": source, **files}
    names = json.dumps([[name, len(content)] for name, content in parts.items()]).encode()
    return b"".join((struct.pack("=I", len(names)), names, *parts.values()))
