"""`rl swe engine`: start or stop a Docker engine of this project's own, or say which one is used."""

import json
from collections.abc import Mapping

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
        about = describe_engine()
    except EngineUnavailable as error:
        _print({"state": "stopped", "reason": str(error)}, str(error), as_json=as_json)
        return 1
    return _print({"state": "running", **about}, "\n".join(f"{name:10} {value}" for name, value in about.items()), as_json=as_json)


def describe_engine() -> dict[str, str]:
    """What the engine that is used says of itself. Raises EngineUnavailable, ContainerError."""
    engine = Engine()
    try:
        about = engine.info()
    finally:
        engine.close()
    return {
        "address": engine.address,
        "version": str(about["ServerVersion"]),
        "runtimes": ", ".join(sorted(about["Runtimes"])),
        "default": str(about["DefaultRuntime"]),
        "storage": f"{about['Driver']} in {about['DockerRootDir']}",
        "cgroups": f"version {about.get('CgroupVersion', '1')}, driver {about['CgroupDriver']}",
        "security": ", ".join(option.partition("name=")[2].partition(",")[0] for option in about["SecurityOptions"]),
    }


def _print(record: Mapping[str, str], text: str, *, as_json: bool) -> int:
    print(json.dumps(record) if as_json else text)
    return 0
