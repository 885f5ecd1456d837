"""Containers of a real engine: what goes in, what comes out, and what is refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from environments.containers.base import Containers, ContainerSpec
from environments.containers.make import make_containers
from tests.containers_host import engine, python_image

__all__ = ["engine", "python_image"]
T = TypeVar("T")


def within(act: Callable[[Containers], Awaitable[T]]) -> T:
    async def main() -> T:
        containers = make_containers()
        try:
            return await act(containers)
        finally:
            await containers.close()

    return asyncio.run(main())


def test_main_process_is_spoken_to(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        container = await containers.start(ContainerSpec(image=python_image, command=("sh", "-c", "id -u; cat; echo gone >&2; exit 3")))
        await container.write(b"hello")
        await container.close_stdin()
        assert await container.read(100) == b"1000\n"
        assert await container.read(100) == b"hello"
        end = await container.wait()
        assert (end.code, end.out_of_memory, container.errors()) == (3, False, b"gone\n")

    within(act)
