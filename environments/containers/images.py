"""Images: taken apart, imported, and made from one another by one command."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from environments.containers.base import ContainerError, ExecResult
from environments.containers.container import Threads, final_state, take_result
from environments.containers.engine import Engine
from environments.containers.hardening import build_config
from environments.containers.stream import Stream
from environments.containers.waiting import to_its_end

_OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What an image says of itself."""

    environment: Mapping[str, str]
    work_dir: str
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """See Containers.build_step."""

    base: str
    image: str
    command: tuple[str, ...]
    files: bytes | None
    labels: Mapping[str, str]
    seconds: float


def tree(engine: Engine, image: str, path: str, *, max_bytes: int, labels: Mapping[str, str]) -> bytes:
    """See Containers.image_tree. `labels`: of the container that is made for it and never started."""
    container = engine.create(_never_started(image, labels))
    try:
        return engine.archive(container, path, max_bytes=max_bytes)
    finally:
        engine.remove(container)


def import_root(engine: Engine, tar_path: str, *, image: str, about: About, own: Mapping[str, str]) -> str:
    """See Containers.import_image. What the image says of itself goes in with a commit: an import takes it by its address only,
    which cannot be long. `own`: labels of our containers, which the image must not inherit."""
    container = engine.create(_never_started(engine.import_layer(tar_path), own))
    environment = [f"{name}={value}" for name, value in about.environment.items()]
    try:
        return engine.commit(
            container, image=image, config=_config(about.labels, own, Env=environment, WorkingDir=about.work_dir, Cmd=["/bin/sh"])
        )
    finally:
        engine.remove(container)


async def build(engine: Engine, step: Step, *, in_thread: Threads, own: Mapping[str, str], runtime: str) -> ExecResult:
    """See Containers.build_step. `own`: labels of our containers, which the image must not inherit."""
    about = (await in_thread(lambda: engine.image(step.base)))["Config"] or {}
    kept = {name: about[name] for name in ("Env", "WorkingDir", "User", "Cmd") if about.get(name)}
    made = _config({**(about.get("Labels") or {}), **step.labels}, own, **kept)

    async def remove(container: str) -> None:
        with contextlib.suppress(ContainerError):
            await in_thread(lambda: engine.remove(container))

    config = build_config(step.base, step.command, labels=own, runtime=runtime)
    container = await to_its_end(in_thread(lambda: engine.create(config)), undo=remove)
    try:
        if step.files is not None:
            files = step.files
            await in_thread(lambda: engine.put(container, "/", files))
        stream = await Stream.open(await in_thread(lambda: engine.attach(container)), errors_kept=_OUTPUT_BYTES)
        try:
            await in_thread(lambda: engine.start(container))
            await stream.close_stdin()

            async def exit_code() -> int:
                return (await final_state(engine, container, in_thread=in_thread)).code

            result = await take_result(stream, seconds=step.seconds, output_bytes=_OUTPUT_BYTES, exit_code=exit_code)
        finally:
            await stream.close()
        if result.exit_code == 0:
            await to_its_end(in_thread(lambda: engine.commit(container, image=step.image, config=made)))
        return result
    finally:
        await to_its_end(remove(container))


def _never_started(image: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {"Image": image, "Entrypoint": ["-"], "Labels": dict(labels), "HostConfig": {"NetworkMode": "none"}}


def _config(labels: Mapping[str, str], own: Mapping[str, str], **config: Any) -> dict[str, Any]:
    """For a commit, which takes over what the container has and this does not say."""
    return {"Cmd": ["/bin/sh"], **config, "Entrypoint": [], "Labels": {**labels, **dict.fromkeys(own, "")}}
