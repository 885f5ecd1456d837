"""A small repository in an image, a task that broke it, and an agent to talk to, for tests on a real engine."""

import asyncio
import contextlib
import hashlib
import io
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from environments.containers.base import Container, ImageMissing
from environments.containers.make import SharedContainers
from environments.records import Budget, Message, StepResult, Task
from environments.reply import ToolCall
from environments.swe.agent import RepoAgent
from environments.swe.folder import write_task
from environments.swe.images.rootfs import ensure_python_image
from environments.swe.records import Patch, RepoTask, TreeChange
from environments.swe.tool_format import render_call
from tests.containers_host import engine

__all__ = ["engine"]
T = TypeVar("T")
_STAMP = "codeworld-rl-test.content"
REPO_IMAGE = "codeworld-rl-test:agent-calc"
SECRET = "74231"
"""In the line that the task took away, and nowhere else."""
_SUMS = f"""def add(a, b):
    return a + b + 0 * {SECRET}


def mean(values):
    total = 0
    for value in values:
        total = add(total, value)
    return total / len(values)
"""
_TESTS = """from calc import add, mean


def test_add():
    assert add(2, 3) == 5


def test_mean():
    assert mean([1, 2, 6]) == 3


def test_zero():
    assert add(0, 0) == 0
"""
FILES = {
    "calc/__init__.py": b"from calc.sums import add, mean\n",
    "calc/sums.py": _SUMS.encode(),
    "tests/test_sums.py": _TESTS.encode(),
    "notes/latin.txt": b"caf\xe9\none\ntwo\none\n",
    "notes/dos.txt": b"first\r\nsecond\r\n",
    "README.md": b"calc\n====\n\nSums.\n",
}
GOLD = f"""diff --git a/calc/sums.py b/calc/sums.py
--- a/calc/sums.py
+++ b/calc/sums.py
@@ -1,5 +1,5 @@
 def add(a, b):
-    return a - b
+    return a + b + 0 * {SECRET}
 
 
 def mean(values):
""".encode()


def mutated_task() -> RepoTask:
    """`add` subtracts; a file of the image is gone, too."""
    broken = FILES["calc/sums.py"].replace(b"return a + b + 0 * 74231", b"return a - b")
    return RepoTask(
        id="calc-1",
        image=REPO_IMAGE,
        instruction="add(2, 3) gives -1.",
        overlay=(
            TreeChange(path=b"README.md", mode=None),
            TreeChange(path=b"calc/sums.py", mode=0o100644, data=broken),
        ),
        gold=Patch(data=GOLD),
        fail_to_pass=("tests/test_sums.py::test_add", "tests/test_sums.py::test_mean"),
        pass_to_pass=("tests/test_sums.py::test_zero",),
        test_seconds=60.0,
    )


@pytest.fixture(scope="session")
def task_folder(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the task, whose image the engine has."""
    asyncio.run(_make_image())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("tasks") / "calc-1"
        write_task(mutated_task(), folder)
        yield folder


class Talk:
    """An episode, spoken to by tool calls."""

    def __init__(self, folder: Path, **options: Any) -> None:
        payload = {"folder": str(folder), "command_seconds": 20.0, **options}
        self.agent = RepoAgent(Task(id="calc-1", env="swe", prompt=(Message(role="user", content="fix"),), payload=payload))

    async def step(self, name: str, body: str = "", *, budget: Budget | None = None) -> StepResult:
        """The environment's answer to a call."""
        if budget is not None:
            self.agent.note_budget(budget)
        return await self.agent.step(Message(role="assistant", content=render_call(ToolCall(name=name, body=body), tool_format="cwm")))

    async def say(self, name: str, body: str = "") -> str:
        """What the agent is shown of a call's result, without the tags around it."""
        result = await self.step(name, body)
        (message,) = result.messages
        assert not result.done and message.role == "tool" and message.name == name
        assert message.content.startswith("<output>\n") and message.content.endswith("</output>")
        return message.content.removeprefix("<output>\n").removesuffix("</output>").removesuffix("\n")

    async def bash(self, command: str) -> str:
        """The output of a command."""
        return await self.say("bash", command)

    def container(self) -> Container:
        """The one that runs."""
        assert self.agent._box is not None
        return self.agent._box.container


def talk(folder: Path, act: Callable[[Talk], Awaitable[T]], **options: Any) -> T:
    """Play one episode and close it."""

    async def main() -> T:
        one = Talk(folder, **options)
        try:
            await one.agent.reset()
            return await act(one)
        finally:
            await one.agent.close()

    return asyncio.run(main())


async def _make_image() -> None:
    """Once an engine, and again when its content or its base have changed."""
    shared = SharedContainers.take()
    try:
        containers = shared.containers
        base = await ensure_python_image(containers)
        stamp = hashlib.sha256(f"{await containers.image_id(base)} {FILES}".encode()).hexdigest()
        with contextlib.suppress(ImageMissing):
            if await containers.image_label(REPO_IMAGE, _STAMP) == stamp:
                return
        command = ("sh", "-c", "chown -R 1000:1000 /testbed")
        made = await containers.build_step(base=base, image=REPO_IMAGE, command=command, files=_tar(), labels={_STAMP: stamp}, seconds=60.0)
    finally:
        await shared.release()
    assert made.exit_code == 0, made


def _tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in FILES.items():
            entry = tarfile.TarInfo(f"testbed/{name}")
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()
