"""What a sandbox takes from the host: launch tools, the Python interpreter, system programs and libraries."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from environments.sandbox.base import SandboxUnavailable

STAGING_DIR = "/run"
"""Where a private mount namespace shows an interpreter that other users cannot reach on the host."""
HELP = (
    "programs can only run in a bubblewrap sandbox: install bubblewrap 0.8 or newer and util-linux "
    "(Debian: apt-get install bubblewrap util-linux) on a kernel that allows unprivileged user namespaces"
)


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

    def mounts(self, *, source: Path) -> tuple[str, ...]:
        """Bind the executable and its libraries, found under `source`, at their usual paths; hide installed packages."""
        library = self.prefix / "lib"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = [path for path in (library / version / "site-packages", library / "python3" / "dist-packages") if path.is_dir()]
        hide = tuple(word for path in packages for word in ("--tmpfs", str(path), "--remount-ro", str(path)))
        if self.prefix == Path("/usr"):  # bound already
            return hide
        inside = source / self.executable.relative_to(self.prefix)
        return ("--ro-bind", str(inside), str(self.executable), "--ro-bind", str(source / "lib"), str(library), *hide)


class Staging:
    """A private mount namespace in which the interpreter's prefix is visible to every user at `STAGING_DIR`.

    Root's interpreter may lie below a folder that other users cannot enter (`/root`). The host's own mounts stay as they are.
    """

    def __init__(self, *, namespace_fd: int) -> None:
        self._namespace_fd = namespace_fd
        # By way of this process, so that no descriptor of the namespace is inherited by the box.
        self.enter = (find_tool("nsenter"), f"--mount=/proc/{os.getpid()}/fd/{namespace_fd}", "--")

    @staticmethod
    def make(prefix: Path) -> "Staging":
        script = f'mount --bind "$0" {STAGING_DIR} && echo ready && read -r _'
        command = (find_tool("unshare"), "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script, str(prefix))
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=path, cwd="/") as holder:
            assert holder.stdin is not None and holder.stdout is not None and holder.stderr is not None
            ready = holder.stdout.readline() == b"ready\n"
            namespace_fd = os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) if ready else -1
            holder.stdin.close()
            if not ready:
                detail = holder.stderr.read().decode(errors="replace").strip()
                raise SandboxUnavailable(
                    f"the interpreter {prefix} cannot be read by other users and no private mount can show it to the sandbox ({detail}): "
                    "install Python where every user can read it, or run as an ordinary user"
                )
        return Staging(namespace_fd=namespace_fd)

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


def system_mounts() -> tuple[str, ...]:
    """Read-only system programs and libraries: /usr/bin and /usr/lib*, and /bin and /lib* as this system has them."""
    mounts: list[str] = []
    for name in ("bin", "lib", "lib64"):
        usr, top = Path("/usr") / name, Path("/") / name
        if usr.is_dir():
            mounts += ["--ro-bind", str(usr), str(usr)]
        if top.is_symlink():
            mounts += ["--symlink", os.readlink(top), str(top)]
        elif top.is_dir():
            mounts += ["--ro-bind", str(top), str(top)]
    return (*mounts, "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")
