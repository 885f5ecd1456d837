"""Containers of a Docker engine. Its calls block, so they run in threads; the traffic with programs runs in the event loop."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from environments.containers import images
from environments.containers.base import ContainerError, ContainerSpec, ExecResult
from environments.containers.container import DockerContainer
from environments.containers.engine import Engine
from environments.containers.hardening import container_config
from environments.containers.owner import disown, own
from environments.containers.pool import WarmPool
from environments.containers.reaper import OWNER_LABEL
from environments.containers.stream import Stream
from environments.containers.waiting import to_its_end
from environments.containers.work_folder import WorkFolder

T = TypeVar("T")
_FASTER = "crun"
"""A runtime that is taken where the engine lists it and no other is asked for. Some machines are not to its taste (control groups of
both versions): when a first start fails with it and not without it, it is not tried again."""


class DockerContainers:
    """See Containers. The engine is reached at the first call."""

    def __init__(self, *, host: str = "", runtime: str = "", at_once: int = 0, warm: int = 0) -> None:
        """`at_once`: containers alive at a time, further ones wait their turn; 0 means four a processor. `warm`: those that stand ready
        besides."""
        at_once = at_once or 4 * (os.cpu_count() or 1)
        self._host, self._runtime, self._labels = host, runtime, dict[str, str]()
        self._runtimes: tuple[str, ...] = (runtime,)
        """To be tried in this order; empty: the engine's default."""
        self._turns = asyncio.Semaphore(at_once)
        self._n_threads = 2 * (at_once + warm)
        self._threads = ThreadPoolExecutor(self._n_threads, thread_name_prefix="engine")
        self._connecting: asyncio.Future[Engine] | None = None
        self._closed = False
        self._starting: set[asyncio.Task[DockerContainer]] = set()
        self._alive: set[DockerContainer] = set()
        self._pool = WarmPool(size=warm, launch=self._launch)
        self._folders: dict[tuple[str, str], asyncio.Future[WorkFolder]] = {}

    async def start(self, spec: ContainerSpec) -> DockerContainer:
        """See Containers.start."""
        spec = replace(spec, image=await self.image_id(spec.image))
        if not spec.held:
            await self._turns.acquire()
        return await to_its_end(self._start(spec), undo=DockerContainer.remove)

    async def image_id(self, image: str) -> str:
        """See Containers.image_id."""
        if image.startswith("sha256:"):
            return image
        engine = await self._engine()
        return str((await self.in_thread(lambda: engine.image(image)))["Id"])

    async def image_bytes(self, image: str) -> int:
        """See Containers.image_bytes."""
        engine = await self._engine()
        return int((await self.in_thread(lambda: engine.image(image)))["Size"])

    async def image_label(self, image: str, label: str) -> str | None:
        """See Containers.image_label."""
        engine = await self._engine()
        about = await self.in_thread(lambda: engine.image(image))
        return ((about["Config"] or {}).get("Labels") or {}).get(label)

    async def image_tree(self, image: str, path: str, *, max_bytes: int = 1 << 30) -> bytes:
        """See Containers.image_tree."""
        engine = await self._engine()
        return await to_its_end(self.in_thread(lambda: images.tree(engine, image, path, max_bytes=max_bytes, labels=self._labels)))

    async def import_image(
        self, tar_path: str, *, image: str, environment: Mapping[str, str], work_dir: str, labels: Mapping[str, str]
    ) -> str:
        """See Containers.import_image."""
        engine = await self._engine()
        about = images.About(environment=environment, work_dir=work_dir, labels=labels)
        return await to_its_end(self.in_thread(lambda: images.import_root(engine, tar_path, image=image, about=about, own=self._labels)))

    async def build_step(
        self, *, base: str, image: str, command: Sequence[str], files: bytes | None, labels: Mapping[str, str], seconds: float
    ) -> ExecResult:
        """See Containers.build_step."""
        step = images.Step(base=base, image=image, command=tuple(command), files=files, labels=labels, seconds=seconds)
        return await images.build(await self._engine(), step, in_thread=self.in_thread, own=self._labels, runtime=self._runtime)

    async def close(self) -> None:
        """See Containers.close."""
        await to_its_end(self._close())

    async def in_thread(self, call: Callable[[], T]) -> T:
        """One of the engine's blocking calls."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _start(self, spec: ContainerSpec) -> DockerContainer:
        """In its turn, if it takes one, which ends with the container."""
        try:
            container = self._pool.take(spec) or await self._launch(spec)
        except BaseException:
            if not spec.held:
                self._turns.release()
            raise
        container.removed = self._removed_held if spec.held else self._removed
        self._alive.add(container)
        return container

    async def _launch(self, spec: ContainerSpec) -> DockerContainer:
        """A fresh container, attached to and started. Nothing of it is left when this fails."""
        if self._closed:
            raise ContainerError("this connection to the engine is closed")
        task = asyncio.ensure_future(self._create(spec))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return await asyncio.shield(task)

    async def _create(self, spec: ContainerSpec) -> DockerContainer:
        engine, folder = await self._engine(), None if spec.fills else await self._folder(spec)
        options = "" if folder is None else folder.mount_options

        def run() -> tuple[str, socket.socket]:
            first, *others = self._runtimes
            config = container_config(spec, labels=self._labels, runtime=first, folder=options)
            try:
                return _run(engine, config)
            except ContainerError:
                if not others:
                    raise
            made = _run(engine, container_config(spec, labels=self._labels, runtime=others[0], folder=options))
            self._runtimes = tuple(others)
            return made

        id, connection = await self.in_thread(run)
        stream = await Stream.open(connection)
        return DockerContainer(id=id, engine=engine, stream=stream, work_dir=spec.work_dir, folder=folder, in_thread=self.in_thread)

    def _removed(self, container: DockerContainer) -> None:
        self._removed_held(container)
        self._turns.release()

    def _removed_held(self, container: DockerContainer) -> None:
        self._alive.remove(container)

    async def _folder(self, spec: ContainerSpec) -> WorkFolder:
        """The content of an image's work folder, taken once."""
        key = (spec.image, spec.work_dir)
        if key not in self._folders:
            self._folders[key] = asyncio.ensure_future(self._read_folder(*key))
        reading = self._folders[key]
        try:
            return await asyncio.shield(reading)
        finally:
            if reading.done() and (reading.cancelled() or reading.exception() is not None):
                self._folders.pop(key, None)

    async def _read_folder(self, image: str, path: str) -> WorkFolder:
        try:
            return WorkFolder.of(await self.image_tree(image, path))
        except FileNotFoundError:
            return WorkFolder.absent()

    async def _engine(self) -> Engine:
        if self._connecting is None or (self._connecting.done() and self._connecting.exception() is not None):
            self._connecting = asyncio.ensure_future(self.in_thread(self._connect))
        return await asyncio.shield(self._connecting)

    def _connect(self) -> Engine:
        engine = Engine(host=self._host, connections=self._n_threads)
        try:
            self._labels = {OWNER_LABEL: own(engine.address)}
            if not self._runtime and _FASTER in engine.info()["Runtimes"]:
                self._runtimes = (_FASTER, "")
        except BaseException:
            engine.close()
            raise
        return engine

    async def _close(self) -> None:
        self._closed = True
        if self._starting:
            await asyncio.wait(tuple(self._starting))
        await self._pool.close()
        ends = await asyncio.gather(*(container.remove() for container in tuple(self._alive)), return_exceptions=True)
        if self._connecting is not None:
            await asyncio.wait([self._connecting])
            if self._connecting.exception() is None:
                engine = self._connecting.result()
                engine.close()
                self._connecting = None
                await self.in_thread(lambda: disown(engine.address))
        self._threads.shutdown(wait=False)
        for end in ends:
            if isinstance(end, BaseException):
                raise end


def _run(engine: Engine, config: Mapping[str, Any]) -> tuple[str, socket.socket]:
    """A container that is attached to and started, and the connection. Nothing is left when it fails."""
    container = engine.create(config)
    connection = None
    try:
        connection = engine.attach(container)
        engine.start(container)
    except BaseException:
        if connection is not None:
            connection.close()
        with contextlib.suppress(ContainerError):
            engine.remove(container)
        raise
    return container, connection
