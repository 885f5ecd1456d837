"""The docker kind against a real engine."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from environments.containers.address import engine_address
from environments.containers.reaper import remove_all, this_process
from environments.protocol import Sandboxed
from environments.sandbox.base import Limits, Sandbox, SandboxUnavailable, SessionEnded
from environments.sandbox.docker import DockerSandbox
from tests.attacks import RESOURCES, faults
from tests.attacks_escape import ESCAPES
from tests.containers_host import engine, python_image

__all__ = ["engine", "python_image"]

T = TypeVar("T")
HELD_BACK = ("memory bomb", "disk fill", "network", "setuid", "nested user namespace", "mounts", "ptrace of init", "io_uring", "keyctl")
"""Attacks that do not need the wall clock; a container takes too long to start to try all."""


def within(image: str, act: Callable[[Sandbox], Awaitable[T]]) -> T:
    async def main() -> T:
        sandbox = DockerSandbox(image=image, slots=2)
        try:
            return await act(sandbox)
        finally:
            await sandbox.close()

    return asyncio.run(main())


def test_runs_sessions_and_limits(python_image: str) -> None:
    async def act(sandbox: Sandbox) -> None:
        done = await sandbox.run(b"import sys; print(open('a/b').read(), input()); sys.exit(3)", stdin=b"in\n", files={"a/b": b"file"})
        assert (done.stdout, done.exit_code, done.killed_by) == (b"file in\n", 3, None)
        assert (await sandbox.run(b"import time; time.sleep(60)", limits=Limits(wall_seconds=3))).killed_by == "wall"
        assert (await sandbox.run(b"while True: print('x' * 1000)")).killed_by == "output"
        session = await sandbox.open(b"for i in range(2): print(int(input()) + 1, flush=True)")
        assert [await session.ask(b"%d" % n, seconds=30) for n in (1, 5)] == [b"2", b"6"]
        assert isinstance(session, Sandboxed)
        info = session.sandbox_info()
        assert info.image_digest.startswith("sha256:") and [len(ref) for ref in info.refs] == [64]
        with pytest.raises(SessionEnded):
            await session.ask(b"1", seconds=30)
        assert (await session.close()).exit_code == 0
        assert all(guard.state == "on" for guard in await sandbox.guards())

    within(python_image, act)
    assert remove_all(engine_address(), this_process().__eq__) == 0


def test_attacks(python_image: str) -> None:
    attacks = {name: attack for name, attack in (RESOURCES | ESCAPES).items() if name in HELD_BACK}

    async def act(sandbox: Sandbox) -> list[str]:
        wrong = []
        for name, attack in attacks.items():
            execution = await sandbox.run(attack.program.replace("PORT", "80").encode(), limits=attack.limits)
            wrong += [f"{name}: {fault}" for fault in faults(attack, execution)]
        return wrong

    assert within(python_image, act) == []


def test_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(SandboxUnavailable, match=r"no Docker engine answers.*apt-get install docker\.io"):
        DockerSandbox(image="any")
