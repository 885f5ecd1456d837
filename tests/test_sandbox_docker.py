"""The docker kind against a real engine, where there is one; its image is made from this interpreter."""

import asyncio
import io
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import docker
import pytest
from docker.errors import DockerException

from environments.sandbox.base import Limits, Sandbox, SandboxUnavailable, SessionEnded
from environments.sandbox.docker import DockerSandbox
from tests.attacks import RESOURCES, faults
from tests.attacks_escape import ESCAPES

T = TypeVar("T")
TAG = "codeworld-rl-test:python"
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "tkinter", "lib2to3", "turtledemo", "ensurepip", "__pycache__"}
HELD_BACK = ("memory bomb", "disk fill", "network", "setuid", "nested user namespace", "mounts", "ptrace of init", "io_uring", "keyctl")
"""Attacks that do not need the wall clock; a container takes too long to start to try all."""


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    client.api.import_image_from_data(root_file_system(), repository=TAG.split(":")[0], tag=TAG.split(":")[1])
    yield TAG
    client.images.remove(TAG, force=True)
    client.close()


def root_file_system() -> bytes:
    """This interpreter, its standard library and the libraries that they load, as a tar."""
    prefix, executable = Path(sys.base_prefix).resolve(), Path(sys.executable).resolve()
    library = prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    listed = subprocess.run(["ldd", executable, *library.glob("lib-dynload/*.so")], capture_output=True, text=True, check=True).stdout
    words = [word for line in listed.splitlines() for word in line.split()[:3] if word.startswith("/") and not word.endswith(":")]
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for folder in ("tmp", "work", "usr/bin"):
            tar.add("/usr/bin", arcname=folder, recursive=False)
        tar.add(library, filter=lambda entry: None if set(Path(entry.name).parts) & SKIPPED_FOLDERS else opened(entry))
        for path in {str(executable), *words}:
            tar.add(Path(path).resolve(), arcname=path, filter=opened)
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, str(executable)
        tar.addfile(link)
    return data.getvalue()


def opened(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mode |= 0o555
    return entry


def within(image: str, act: Callable[[Sandbox], Awaitable[T]]) -> T:
    async def main() -> T:
        sandbox = DockerSandbox(image=image, slots=2)
        try:
            return await act(sandbox)
        finally:
            await sandbox.close()

    return asyncio.run(main())


def test_runs_sessions_and_limits(image: str) -> None:
    async def act(sandbox: Sandbox) -> None:
        done = await sandbox.run(b"import sys; print(open('a/b').read(), input()); sys.exit(3)", stdin=b"in\n", files={"a/b": b"file"})
        assert (done.stdout, done.exit_code, done.killed_by) == (b"file in\n", 3, None)
        assert (await sandbox.run(b"import time; time.sleep(60)", limits=Limits(wall_seconds=3))).killed_by == "wall"
        assert (await sandbox.run(b"while True: print('x' * 1000)")).killed_by == "output"
        session = await sandbox.open(b"for i in range(2): print(int(input()) + 1, flush=True)")
        assert [await session.ask(b"%d" % n, seconds=30) for n in (1, 5)] == [b"2", b"6"]
        with pytest.raises(SessionEnded):
            await session.ask(b"1", seconds=30)
        assert (await session.close()).exit_code == 0
        assert all(guard.state == "on" for guard in await sandbox.guards())

    within(image, act)
    assert docker.from_env().containers.list(all=True, filters={"ancestor": image}) == []


def test_attacks(image: str) -> None:
    attacks = {name: attack for name, attack in (RESOURCES | ESCAPES).items() if name in HELD_BACK}

    async def act(sandbox: Sandbox) -> list[str]:
        wrong = []
        for name, attack in attacks.items():
            execution = await sandbox.run(attack.program.replace("PORT", "80").encode(), limits=attack.limits)
            wrong += [f"{name}: {fault}" for fault in faults(attack, execution)]
        return wrong

    assert within(image, act) == []


def test_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(SandboxUnavailable, match=r"no Docker engine answers.*apt-get install docker\.io"):
        DockerSandbox(image=TAG)
