"""A Ray cluster of several nodes on one machine: each node has a network of its own, joined by a bridge that lies in a namespace too.

Nothing listens outside these namespaces. Needs root and `ip`; a node can be cut off, brought back, and killed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.ring import ROOT

PORT = 6379


def why_not() -> str:
    """Why such a cluster cannot be made here; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command ip is not installed (apt-get install iproute2)"
    tried = subprocess.run(["ip", "netns", "add", f"cw-try-{os.getpid()}"], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces here: {tried.stderr.strip()}"
    ip("netns", "del", f"cw-try-{os.getpid()}")
    return ""


def ip(*words: str) -> str:
    """Run `ip ...`."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class NetCluster:
    """`with NetCluster() as net: net.start("head", cpus=2); net.start("gen", cpus=1, resources={"generator_node": 1})`."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes what the commands print."""
        self._prefix = f"cw{os.getpid() % 100000}"
        self._switch = f"{self._prefix}-switch"
        # Ray's sockets lie below it, and their paths may not be long.
        self._temporary = Path("/tmp") / f"{self._prefix}-ray"
        self._folder = folder
        self._addresses: dict[str, str] = {}

    def __enter__(self) -> "NetCluster":
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self._switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._addresses:
            self.kill(node)
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", self.namespace(node))
        ip("netns", "del", self._switch)
        shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of Ray's head, for RAY_ADDRESS."""
        return f"{self._addresses['head']}:{PORT}"

    def namespace(self, node: str) -> str:
        """Name of a node's network namespace."""
        return f"{self._prefix}-{node}"

    def start(self, node: str, *, cpus: int, resources: str = "{}", code: Path = ROOT) -> None:
        """Start Ray on a node, the first time with a network. `code`: where its processes find the project."""
        if node not in self._addresses:
            self._wire(node)
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self._temporary}", "--object-store-memory=300000000"]
        other = [f"--address={self.address}", "--object-store-memory=200000000"]
        command = [
            *(
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                f"--node-ip-address={self._addresses[node]}",
                f"--num-cpus={cpus}",
                f"--resources={resources}",
            ),
            *(head if node == "head" else other),
            *("--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"),
        ]
        with (self._folder / f"ray-{node}.log").open("a") as log:
            done = self.run(node, command, stdout=log, stderr=log, code=code)
            assert done.wait(timeout=90) == 0, (self._folder / f"ray-{node}.log").read_text()

    def run(self, node: str, command: list[str], *, code: Path = ROOT, **options: object) -> "subprocess.Popen[str]":
        """Start a command inside a node's network."""
        environment = {**os.environ, "PYTHONPATH": str(code), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        if "start" not in command:
            environment["RAY_ADDRESS"] = self.address
        words = ["ip", "netns", "exec", self.namespace(node), *command]
        return subprocess.Popen(words, env=environment, cwd=self._folder, text=True, start_new_session=True, **options)  # type: ignore[call-overload]

    def cut(self, node: str) -> None:
        """Pull the plug: nothing reaches the node, and nobody is told."""
        ip("-n", self._switch, "link", "set", node, "down")

    def mend(self, node: str) -> None:
        """Put the plug back."""
        ip("-n", self._switch, "link", "set", node, "up")

    def kill(self, node: str) -> None:
        """End all processes of a node at once."""
        for pid in ip("netns", "pids", self.namespace(node)).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        deadline = time.monotonic() + 30
        while ip("netns", "pids", self.namespace(node)).split():
            assert time.monotonic() < deadline, f"processes of {node} do not end"
            time.sleep(0.1)

    def _wire(self, node: str) -> None:
        namespace = self.namespace(node)
        self._addresses[node] = f"10.77.0.{len(self._addresses) + 1}"
        ip("netns", "add", namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", node, "netns", self._switch)
        ip("-n", self._switch, "link", "set", node, "master", "br0", "up")
        ip("-n", namespace, "addr", "add", f"{self._addresses[node]}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")


@contextlib.contextmanager
def net_cluster(folder: Path) -> Iterator[NetCluster]:
    """A cluster that is taken down whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    with NetCluster(folder) as net:
        yield net
