"""`rl swe engine`: start or stop a Docker engine of this project's own, or say which one is used."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from environments.containers.base import EngineUnavailable
from environments.containers.engine import Engine
from environments.containers.local_engine import LocalEngine


def engine_command(action: str, *, as_json: bool) -> int:
    """0 when the engine is in the state that was asked for; `status`: 0 when one answers. Raises EngineUnavailable, ContainerError."""
    own = LocalEngine()
    if action == "start":
        text = "started" if own.start() else "was running"
        return _print({"state": "running", "address": own.address}, f"engine {text} at {own.address}", as_json=as_json)
    if action == "stop":
        text = "stopped" if own.stop() else "was not running"
        return _print({"state": "stopped", "address": own.address}, f"engine {text}", as_json=as_json)
    try:
        facts = describe_engine()
    except EngineUnavailable as error:
        _print({"state": "stopped", "reason": str(error)}, str(error), as_json=as_json)
        return 1
    lines = (f"{name.replace('_', ' '):16} {_text(value)}" for name, value in asdict(facts).items())
    return _print({"state": "running", **asdict(facts)}, "\n".join(lines), as_json=as_json)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFacts:
    """What an engine says of itself."""

    address: str
    version: str
    runtimes: tuple[str, ...]
    default_runtime: str
    storage: str
    """Storage driver and where it keeps its data."""
    cgroup_version: str
    seccomp: bool
    missing_limits: tuple[str, ...]
    """Limits that containers are given and that the engine's control groups cannot keep."""


def describe_engine() -> EngineFacts:
    """The engine that is used. Raises EngineUnavailable, ContainerError, and ValueError for a wrong DOCKER_HOST."""
    engine = Engine()
    try:
        about = engine.info()
    finally:
        engine.close()
    limits = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "processor"}
    return EngineFacts(
        address=engine.address,
        version=str(about["ServerVersion"]),
        runtimes=tuple(sorted(name for name in about["Runtimes"] if not name.startswith("io.containerd"))),
        default_runtime=str(about["DefaultRuntime"]),
        storage=f"{about['Driver']} in {about['DockerRootDir']}",
        cgroup_version=str(about.get("CgroupVersion", "1")),
        seccomp=any("name=seccomp" in option for option in about["SecurityOptions"]),
        missing_limits=tuple(text for name, text in limits.items() if not about.get(name)),
    )


def _text(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _print(record: Mapping[str, object], text: str, *, as_json: bool) -> int:
    print(json.dumps(record) if as_json else text)
    return 0
