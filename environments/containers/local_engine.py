"""A Docker engine of this project's own, for a machine where none runs: started by hand, without registry, network or service manager.

It lives in a mount namespace of its own: what it mounts, its size-capped memory disk with all images included, is gone with its
last process. It changes no firewall rule and no network setting of the host. Only root can start it, and only root can reach it.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from environments.containers.address import OWN_SOCKET
from environments.containers.base import ContainerError, EngineUnavailable
from environments.containers.reaper import ask

_INSTALL = "on Debian or Ubuntu: apt-get install docker.io"
_PROGRAMS = ("dockerd", "containerd", "containerd-shim", "containerd-shim-runc-v2")
_MOST_BYTES = 8 << 30
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalEngine:
    """The engine of one folder, running or not."""

    folder: Path = Path(OWN_SOCKET).parent
    """Holds its socket, its log and its data; only root can enter it."""

    @property
    def socket(self) -> Path:
        return self.folder / Path(OWN_SOCKET).name

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    def running(self) -> bool:
        """It answers; its socket is there some time before."""
        try:
            ask(self.address, "GET", "/version", seconds=5.0)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def start(self) -> bool:
        """Start it and wait until it answers; False when it was running. Raises EngineUnavailable with the reason when it cannot."""
        if os.geteuid() != 0:
            raise EngineUnavailable("only root can start a Docker engine: repeat the command as root, or have an engine started")
        missing = [name for name in ("dockerd", "containerd", "unshare") if shutil.which(name) is None]
        if missing:
            raise EngineUnavailable(f"{' and '.join(missing)} not found: install Docker's engine ({_INSTALL}) and repeat the command")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with self._locked():
            if self.running():
                return False
            self._end_processes()
            self._clear()  # an old file with the pid of a helper that is not quite gone would be believed
            self._wait_ready(self._launch())
            return True

    def stop(self) -> bool:
        """End it with all of its containers; False when there was nothing to end. Raises EngineUnavailable, ContainerError."""
        if os.geteuid() != 0:
            raise EngineUnavailable("only root can stop the engine that root started")
        if not self.folder.is_dir():
            return False
        with self._locked():
            found = self._end_processes()
            self._clear()
        return found

    def log_tail(self, lines: int = 5) -> str:
        """The last lines that it wrote."""
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    @property
    def _log(self) -> Path:
        return self.folder / "engine.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "engine.pid"

    @property
    def _group(self) -> str:
        """Control group that all of its containers are in."""
        return f"codeworld-rl-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One starts or stops it at a time; its processes do not inherit the lock."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _clear(self) -> None:
        """Remove what an engine that has ended left in the folder; its memory disk is gone with it."""
        for name in ("data", "exec"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in (self.socket, self._pid_file):
            path.unlink(missing_ok=True)

    def _launch(self) -> "subprocess.Popen[bytes]":
        data, execution = self.folder / "data", self.folder / "exec"
        for path in (data, execution):
            path.mkdir(mode=0o711, exist_ok=True)
        size = min(_MOST_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
        command = [
            *("dockerd", "--data-root", str(data), "--exec-root", str(execution), "--pidfile", str(self._pid_file)),
            *("--host", self.address, "--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs"),
            *("--cgroup-parent", f"/{self._group}", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"),
            *("--log-level", "warn", "--raw-logs"),
        ]
        if crun := shutil.which("crun"):
            command += ["--add-runtime", f"crun={crun}"]
        # crun refuses to work where control groups of both versions are mounted; the engine uses the first then.
        script = (
            "if [ -e /sys/fs/cgroup/unified/cgroup.procs ]; then umount /sys/fs/cgroup/unified; fi\n"
            f"mount -t tmpfs -o size={size},mode=711 codeworld-rl {shlex.quote(str(data))} && exec {shlex.join(command)}"
        )
        environment = {"PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin", "HOME": "/root"}
        with open(self._log, "wb") as log:
            return subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                start_new_session=True,
            )

    def _wait_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self.running():
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                self._end_processes()
                process.kill()
                process.wait()
                what = f"ended with exit status {process.returncode}" if ended else f"did not answer within {_START_SECONDS:g} s"
                raise EngineUnavailable(f"dockerd {what}; the end of {self._log}:\n{self.log_tail()}")
            time.sleep(0.05)

    def _end_processes(self) -> bool:
        """Politely first: a clean end unmounts and removes more than a kill."""
        found = self._processes()
        for pid, name in found.items():
            if name == "dockerd":
                _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while "dockerd" in self._processes().values() and time.monotonic() < deadline:
            time.sleep(0.05)
        deadline = time.monotonic() + _STOP_SECONDS
        while left := (*self._contained(), *self._processes()):
            for pid in left:
                _signal(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ContainerError(f"processes {sorted(left)} of the engine in {self.folder} do not end")
            time.sleep(0.05)
        for group in self._groups():
            for path in sorted(group.rglob("*"), key=lambda path: -len(path.parts)):
                if path.is_dir():
                    _remove_group(path)
            _remove_group(group)
        return bool(found)

    def _processes(self) -> dict[int, str]:
        """Processes of this engine and its helpers, by the paths in their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    name = os.path.basename(words[0])
                    if name in _PROGRAMS and any(word.startswith(f"{self.folder}/") for word in words[1:]):
                        found[int(entry.name)] = name
        return found

    def _groups(self) -> list[Path]:
        root = Path("/sys/fs/cgroup")
        return [path for path in (root / self._group, *root.glob(f"*/{self._group}")) if path.is_dir()]

    def _contained(self) -> set[int]:
        """Processes in its containers."""
        found: set[int] = set()
        for group in self._groups():
            for path in group.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    found.update(map(int, path.read_text().split()))
        return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _remove_group(path: Path) -> None:
    with contextlib.suppress(OSError):  # busy for a moment longer: empty, and used again by the next engine
        path.rmdir()
