"""What every container gets, as the engine's API wants it: no network, no capabilities, a read-only root, capped tmpfs, limits."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from environments.containers.base import AGENT_UID, TESTER_UID, ContainerSpec, User
from environments.sandbox.seccomp import docker_profile

UIDS: Mapping[User, int] = {"agent": AGENT_UID, "tester": TESTER_UID, "root": 0}
HOME = "/home/agent"
ENVIRONMENT = {
    "HOME": HOME,
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}
NO_NETWORK = {"NetworkDisabled": True}
"""A network namespace of the container's own that the engine leaves alone: it holds the loopback device and nothing else. The network
mode `none` gives the same, but the engine then starts a second copy of itself in every start, which takes half of the time."""
_INODES_A_MIB = 64
"""Of a tmpfs: 16 KiB a file."""
_SHARED_MEMORY = 64 << 20
_GO = "go"
START_LINE = b"\n"
"""What a container's main process waits for: its work folder can be filled only once it runs."""
_BUILD_MEMORY = 4 << 30
_BECOME_CAPABILITIES = ("SETGID", "SETUID")
_BUILD_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")


def container_config(spec: ContainerSpec, *, labels: Mapping[str, str], runtime: str, folder: str) -> dict[str, Any]:
    """Body of the engine's create call. `folder`: tmpfs options for owner and mode of a work folder that the engine fills."""
    uid, limits = UIDS[spec.user], spec.limits
    first = 0 if spec.fills and spec.user == "tester" else uid
    size = tmpfs_size(limits.disk_mb)
    tmpfs = {"/tmp": f"{size},mode=1777,nosuid,nodev,exec", HOME: f"{size},mode=755,uid={uid},gid={uid},nosuid,nodev,exec"}
    if spec.fills:
        tmpfs[spec.work_dir] = f"{size},mode=755,uid={first},gid={first},nosuid,nodev,exec"
    return {
        "Image": spec.image,
        "Entrypoint": list(spec.command) if spec.fills else ["/bin/sh", "-c", f'read -r {_GO} && exec "$@"', "sh"],
        "Cmd": [] if spec.fills else list(spec.command),
        "User": f"{first}:{first}",
        "WorkingDir": spec.work_dir,
        "Hostname": "box",
        "StopSignal": "SIGKILL",
        **NO_NETWORK,
        "Env": [f"{name}={value}" for name, value in (ENVIRONMENT | dict(spec.environment)).items()],
        "Labels": dict(labels),
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            **host_config(
                memory=limits.memory_mb << 20,
                processes=limits.processes,
                cpus=limits.cpus,
                tmpfs=tmpfs,
                ulimits={"core": 0, "nofile": 4096},
                runtime=runtime,
            ),
            "IpcMode": "private",
            "ShmSize": _SHARED_MEMORY,
            "Mounts": [] if spec.fills else [_volume(spec, labels=labels, options=f"{size},nosuid,nodev,{folder}")],
            "CapAdd": list(_BECOME_CAPABILITIES) if first != uid else [],
        },
    }


def _volume(spec: ContainerSpec, *, labels: Mapping[str, str], options: str) -> dict[str, Any]:
    """A work folder that the engine's file calls reach, which do not see a container's own tmpfs."""
    return {
        "Type": "volume",
        "Target": spec.work_dir,
        "VolumeOptions": {
            "NoCopy": True,  # what the engine copied would be on a tmpfs that it unmounts again before the start
            "Labels": dict(labels),
            "DriverConfig": {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs", "o": options}},
        },
    }


def build_config(image: str, command: Sequence[str], *, labels: Mapping[str, str], runtime: str) -> dict[str, Any]:
    """Body of the create call of a build step: root, with a writable root and the capabilities that installing software needs."""
    shared = host_config(memory=_BUILD_MEMORY, processes=1024, cpus=0, tmpfs={}, ulimits={"core": 0}, runtime=runtime)
    return {
        "Image": image,
        "Entrypoint": list(command),
        "Cmd": [],
        "User": "0:0",
        "Hostname": "box",
        "StopSignal": "SIGKILL",
        **NO_NETWORK,
        "Env": [f"{name}={value}" for name, value in (ENVIRONMENT | {"HOME": "/root"}).items()],
        "Labels": dict(labels),
        "OpenStdin": True,
        "StdinOnce": True,
        "HostConfig": {**shared, "ReadonlyRootfs": False, "IpcMode": "private", "CapAdd": list(_BUILD_CAPABILITIES)},
    }


def host_config(
    *, memory: int, processes: int, cpus: float, tmpfs: Mapping[str, str], ulimits: Mapping[str, int], runtime: str, loopback: bool = True
) -> dict[str, Any]:
    """The part of the engine's HostConfig that all containers share. `memory` in bytes; `loopback`: sockets of IP too, which reach
    nothing but the container itself."""
    return {
        "NetworkMode": "none",
        "IpcMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={_seccomp(loopback)}"],
        "Tmpfs": dict(tmpfs),
        "Memory": memory,
        "MemorySwap": memory,
        "PidsLimit": processes,
        "NanoCpus": round(cpus * 1e9),
        "Ulimits": [{"Name": name, "Soft": value, "Hard": value} for name, value in ulimits.items()],
        "LogConfig": {"Type": "none", "Config": {}},
        **({"Runtime": runtime} if runtime else {}),
    }


def tmpfs_size(disk_mb: int) -> str:
    """Mount options that cap a tmpfs in bytes and in files."""
    return f"size={disk_mb << 20},nr_inodes={max(1024, _INODES_A_MIB * disk_mb)}"


@cache
def _seccomp(loopback: bool) -> str:
    return json.dumps(docker_profile(loopback=loopback))
