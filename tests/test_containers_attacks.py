"""Hostile programs in containers of a real engine: limits hold, what is forbidden fails, and the engine goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from environments.containers.address import engine_address
from environments.containers.base import Container, ContainerError, Containers, ContainerSpec
from environments.containers.reaper import OWNER_LABEL, is_dead, remove_all, this_process
from tests.containers_host import engine, python_image
from tests.test_containers import SMALL, idle, left_over, output, within

__all__ = ["engine", "python_image"]
PROBE = """
import ctypes, errno, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    libc.syscall(number, *args)
    return errno.errorcode.get(ctypes.get_errno(), "done")
def family(number, kind=socket.SOCK_STREAM):
    try:
        socket.socket(number, kind).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def connect(address):
    try:
        socket.create_connection(address, 2)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"
def write(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
server = socket.create_server(("127.0.0.1", 0))
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "uid": os.getuid(), "capabilities": [status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")],
    "no new privileges": status["NoNewPrivs"], "filter": status["Seccomp"],
    "interfaces": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]),
    "outside": connect(("192.0.2.1", 80)), "host": connect(("127.0.0.1", HOST_PORT)), "itself": connect(server.getsockname()),
    "vsock": family(40), "netlink": family(16, socket.SOCK_RAW), "packet": family(17, socket.SOCK_RAW),
    "alg": family(38, socket.SOCK_SEQPACKET),
    "io_uring": call(425, 1, None), "keyctl": call(250, 0, 0, 0), "bpf": call(321, 0, 0, 0), "ptrace": call(101, 0, 0, 0, 0),
    "user namespace": call(272, 0x10000000), "mount": call(165, 0, 0, 0, 0, 0),
    "root": write("/x"), "etc": write("/etc/x"), "proc": write("/proc/sys/kernel/core_pattern"),
    "work": write("/testbed/x"), "tmp": write("/tmp/x"),
    "home": write(os.path.expanduser("~/x")),
    "environment": sorted(os.environ),
}))
"""


FORK_BOMB = """
import errno, os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(60)
    except OSError as error:
        os.write(1, errno.errorcode[error.errno].encode())
        time.sleep(60)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the probe names system calls by their x86-64 numbers")
def test_what_a_program_finds(python_image: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = PROBE.replace("HOST_PORT", str(server.getsockname()[1]))

        async def act(containers: Containers) -> dict[str, object]:
            container = await containers.start(ContainerSpec(image=python_image, command=("python3", "-c", probe)))
            end, text = await container.wait(), await container.read(1 << 16)
            assert end.code == 0, container.errors()
            return dict(json.loads(text))

        found = within(act)
    none = "0000000000000000"
    assert found == {
        **{"uid": 1000, "capabilities": [none] * 5, "no new privileges": "1", "filter": "2", "interfaces": ["lo"]},
        **{"outside": "ENETUNREACH", "host": "ECONNREFUSED", "itself": "done"},
        **dict.fromkeys(("vsock", "netlink", "packet", "alg"), "EACCES"),
        **dict.fromkeys(("keyctl", "bpf", "ptrace", "user namespace", "mount"), "EPERM"),
        **{"io_uring": "ENOSYS", "root": "EROFS", "etc": "EROFS", "proc": "EROFS", "work": "done", "tmp": "done", "home": "done"},
        "environment": ["HOME", "HOSTNAME", "LANG", "PATH", "PWD", "PYTHONDONTWRITEBYTECODE", "SHLVL", "_"],
    } | {"environment": found["environment"]}
    assert {"HOME", "LANG", "PATH"} <= set(found["environment"])  # type: ignore[call-overload]
    assert not set(found["environment"]) & (set(os.environ) - {"HOME", "LANG", "PATH", "PWD", "SHLVL", "_", "PYTHONDONTWRITEBYTECODE"})  # type: ignore[call-overload]


def test_floods_stop_at_their_limits(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        container = await containers.start(idle(python_image, limits=SMALL))
        for folder in ("/testbed", "/tmp", "$HOME"):
            fill = f"import os\nopen(os.path.expandvars('{folder}/big'), 'wb').write(bytes(50_000_000))"
            done = await container.exec(["python3", "-c", fill], seconds=60)
            assert b"No space left" in done.errors
            await output(container, f"rm {folder}/big")
            flood = f"import os\nfor n in range(100000): open(os.path.expandvars('{folder}/') + str(n), 'w').close()"
            done = await container.exec(["python3", "-c", flood], seconds=60)
            assert b"No space left" in done.errors
            await output(container, f"rm -rf {folder}/[0-9]*")
        done = await container.exec(["python3", "-c", FORK_BOMB], seconds=3)
        assert b"EAGAIN" in done.output
        await container.remove()
        hungry = ContainerSpec(image=python_image, command=("python3", "-c", "x = bytearray(10**9); print(len(x))"), limits=SMALL)
        container = await containers.start(hungry)
        end = await container.wait()
        assert (end.code, end.out_of_memory) == (137, True)

    within(act)


def test_container_that_ends_itself(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        container: Container = await containers.start(ContainerSpec(image=python_image, command=("sh", "-c", "sleep 600 & wait")))
        done = await container.exec(["sh", "-c", "kill -9 -1"], seconds=60)
        assert done.exit_code is not None
        await container.wait()
        for act in (container.exec(["true"], seconds=60), container.write(b"x")):
            with pytest.raises(ContainerError):
                await act
        assert len(await container.archive("/testbed", max_bytes=1 << 20)) > 0
        await container.remove()

    within(act)
    assert left_over() == 0


OWNER = """
import asyncio, sys
from environments.containers.base import ContainerSpec
from environments.containers.docker import DockerContainers
from environments.containers.reaper import this_process
async def main():
    containers = DockerContainers(warm=1)
    for _ in range(2):
        await containers.start(ContainerSpec(image=sys.argv[1], command=("sleep", "600")))
    print(this_process(), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_killed_owner_leaves_nothing_and_the_living_keep_theirs(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        mine = await containers.start(idle(python_image))
        other = subprocess.Popen([sys.executable, "-c", OWNER, python_image], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        owner = other.stdout.readline().strip()
        watchers = watchers_of(owner)
        assert len(watchers) == 1
        assert not is_dead(owner)
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
        assert is_dead(owner)
        deadline = time.monotonic() + 60
        while watchers_of(owner) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert watchers_of(owner) == []  # it ends when it finds nothing more
        assert remove_all(engine_address(), owner.__eq__) == 0
        assert await output(mine, "echo here") == "here\n"

    within(act)
    assert watchers_of(this_process()) == []


def test_next_owner_sweeps_what_a_dead_one_left(python_image: str) -> None:
    other = subprocess.Popen([sys.executable, "-c", OWNER, python_image], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    owner = other.stdout.readline().strip()
    for pid in watchers_of(owner):
        os.kill(pid, signal.SIGKILL)
    other.kill()
    other.wait()
    other.stdout.close()
    seen = list[str]()
    assert remove_all(engine_address(), lambda found: seen.append(found) is not None) == 0
    assert seen.count(owner) >= 4  # containers and volumes

    async def act(containers: Containers) -> None:
        await containers.image_id(python_image)

    within(act)
    seen.clear()
    assert remove_all(engine_address(), lambda found: seen.append(found) is not None) == 0
    assert owner not in seen


def test_owners_that_cannot_be_judged_are_let_be() -> None:
    boot, namespace, pid, start = this_process().split(".")
    assert not is_dead(this_process())
    assert is_dead(f"{boot}.{namespace}.{pid}.{int(start) + 1}")
    assert is_dead(f"{boot}.{namespace}.{2**22 + 1}.1")
    for other in ("", "text", f"other.{namespace}.{2**22 + 1}.1", f"{boot}.1.{2**22 + 1}.1"):
        assert not is_dead(other)
    assert OWNER_LABEL == "codeworld-rl.owner"


def watchers_of(owner: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if owner.encode() in words and any(word.endswith(b"reaper.py") for word in words):
            found.append(int(name))
    return found


NEIGHBOUR = """
import ctypes, fcntl, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def tried(act):
    try:
        return act() or "done"
    except OSError as error:
        return type(error).__name__
def call(number, *arguments):
    found = libc.syscall(number, *arguments)
    if found < 0:
        raise OSError(ctypes.get_errno(), "")
    return found and "done"
def bind(family, address):
    server = socket.socket(family)
    server.bind(address)
    server.listen()
    kept.append(server)
def connect(family, address):
    socket.socket(family).connect(address)
def lock():
    file = open("/bin/sh", "rb")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    kept.append(file)
def make(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
kept = []
print(json.dumps({
    **{f"connect {at!r}": tried(lambda: connect(kind, at)) for kind, at in ((1, "\\0neighbour"), (2, ("127.0.0.1", 7777)))},
    "attach": tried(lambda: call(29, 7777, 4096, 0o600)),
    **{f"bind {at!r}": tried(lambda: bind(kind, at)) for kind, at in ((1, "\\0neighbour"), (2, ("127.0.0.1", 7777)))},
    **{path: tried(lambda: make(path)) for path in ("/dev/shm/neighbour", "/tmp/neighbour", "/testbed/neighbour")},
    "shared memory": tried(lambda: call(29, 7777, 4096, 0o2600)),
    "queue": tried(lambda: call(240, b"neighbour", 0o302, 0o600, None)),
    "lock": tried(lock),
    "processes": sorted(name for name in os.listdir("/proc") if name.isdigit() and name != str(os.getpid())),
    "signal": tried(lambda: os.kill(-1, 0)),
    "groups": sorted(name for _, folders, _ in os.walk("/sys/fs/cgroup") for name in folders if len(name) == 64),
    "writable": [at for at, _, _ in os.walk("/sys") if os.access(at, os.W_OK) and at != "/sys/fs/cgroup"],
}), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the program names system calls by their x86-64 numbers")
def test_neighbours_do_not_meet(python_image: str) -> None:
    """Two containers of one user at a time: each makes things by name that the other makes too, and finds none of the other's. (crun mounts
    an own tmpfs of 1 MiB at /sys/fs/cgroup.)"""

    async def act(containers: Containers) -> list[dict[str, object]]:
        found = []
        for _ in range(2):  # the first goes on while the second looks
            container = await containers.start(ContainerSpec(image=python_image, command=("python3", "-c", NEIGHBOUR)))
            text = await container.read(1 << 16)
            assert text, container.errors()
            found.append(dict(json.loads(text)))
        return found

    first, second = within(act)
    assert first == second
    refused = {name: answer for name, answer in second.items() if answer != "done"}
    assert refused == {
        **{"connect '\\x00neighbour'": "ConnectionRefusedError", "connect ('127.0.0.1', 7777)": "ConnectionRefusedError"},
        **dict.fromkeys(("attach", "shared memory", "queue"), "PermissionError"),
        **{"processes": [], "signal": "ProcessLookupError", "groups": [], "writable": []},
    }


def test_a_container_that_writes_without_end_is_removed(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        container = await containers.start(ContainerSpec(image=python_image, command=("cat", "/dev/zero")))
        assert await container.read(1)
        await container.remove()

    within(act)
    assert left_over() == 0
