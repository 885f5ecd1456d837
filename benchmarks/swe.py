"""Repository episodes against what the container engine can do, in the same run.

    python -m benchmarks.swe [--episodes 24] [--rounds 3] [--at-once 4] [--turns 50]
    python -m benchmarks.swe --soak [--episodes 200] [--kill-every 20]

An episode creates a file, submits it, and has it graded by one trivial test: two containers. The raw side creates, starts, runs `true` in
and removes one container with the plain docker SDK, by the same create call. The sides take turns, so that a busy machine slows both.
Each ratio is given for episodes and for their containers, against two raw sides: the engine's own containers, of its default runtime and
with `--network none`, as the docker command gives them; and this project's, of the runtime that episodes get, whose network namespace the
engine leaves alone. `--soak` kills the worker that plays the episodes after
every so many, and counts what it left. Makes its own small image and task; the engine is that of DOCKER_HOST. Prints one JSON line.
"""

import argparse
import asyncio
import contextlib
import hashlib
import io
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker

from benchmarks.machine import print_result
from configs.schema import ContainersConfig
from environments.containers.address import engine_address
from environments.containers.base import Containers, ContainerSpec, ImageMissing
from environments.containers.hardening import container_config
from environments.containers.make import SharedContainers, use_containers
from environments.containers.reaper import OWNER_LABEL, owner_of
from environments.records import Message, Task
from environments.reply import ToolCall
from environments.swe.agent import RepoAgent
from environments.swe.folder import read_task, write_task
from environments.swe.grading import grade_patch
from environments.swe.images.kept_modules import SOURCE as KEPT_MODULES
from environments.swe.images.kept_modules import keeping_modules
from environments.swe.images.rootfs import ensure_python_image
from environments.swe.records import Patch, RepoTask, TreeChange
from environments.swe.tool_format import render_call
from tests.containers_host import running_engine

IMAGE = "codeworld-rl-bench:calc"
RAW_LABEL = "codeworld-rl-bench.raw"
FILES = {
    "calc.py": b"def add(a, b):\n    return a + b\n",
    "tests/test_calc.py": b"from calc import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n",
}
COMMAND = "true"
_FIRST_CALLS = 5
_CLEAN_SECONDS = 120.0


async def make_task(containers: Containers, folder: Path) -> None:
    """A task whose one test anything passes, and its image."""
    base = await ensure_python_image(containers)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as target:
        for name, data in FILES.items():
            entry = tarfile.TarInfo(f"testbed/{name}")
            entry.size, entry.mode = len(data), 0o644
            target.addfile(entry, io.BytesIO(data))
    stamp = hashlib.sha256(f"{await containers.image_id(base)} {KEPT_MODULES}".encode()).hexdigest()
    label = {"codeworld-rl-bench.base": stamp}
    known = None
    with contextlib.suppress(ImageMissing):
        known = await containers.image_label(IMAGE, *label)
    if known != label["codeworld-rl-bench.base"]:
        command = keeping_modules(("chown", "-R", "1000:1000", "/testbed"))
        made = await containers.build_step(base=base, image=IMAGE, command=command, files=tar.getvalue(), labels=label, seconds=60.0)
        assert made.exit_code == 0, made.errors
    task = RepoTask(
        id="calc-1",
        image=IMAGE,
        instruction="Add a file.",
        overlay=(TreeChange(path=b"calc.py", mode=0o100644, data=FILES["calc.py"].replace(b"a + b", b"b + a")),),
        gold=Patch(data=b"diff --git a/note.py b/note.py\nnew file mode 100644\n--- /dev/null\n+++ b/note.py\n@@ -0,0 +1 @@\n+NOTE = 1\n"),
        fail_to_pass=("tests/test_calc.py::test_add",),
        pass_to_pass=(),
        test_seconds=60.0,
    )
    write_task(task, folder)


def say(name: str, body: str = "") -> Message:
    """What a policy says to make a call."""
    return Message(role="assistant", content=render_call(ToolCall(name=name, body=body), tool_format="cwm"))


@contextlib.asynccontextmanager
async def agent_of(folder: Path) -> AsyncIterator[RepoAgent]:
    agent = RepoAgent(Task(id="bench", env="swe", prompt=(Message(role="user", content=""),), payload={"folder": str(folder)}))
    try:
        await agent.reset()
        yield agent
    finally:
        await agent.close()


async def episode(folder: Path, containers: Containers, *, number: int) -> None:
    """One that is solved, from its first call to its verdict."""
    async with agent_of(folder) as agent:
        await agent.step(say("create", f"note_{number}.py\nNOTE = {number}\n"))
        ended = await agent.step(say("submit"))
    patch = Patch.from_json(ended.outcome or {})
    assert patch is not None, ended
    verdict = await grade_patch(containers, read_task(folder), patch)
    assert verdict.status == "passed", verdict


class Raw:
    """The engine's own containers, over the plain docker SDK."""

    def __init__(self, *, runtime: str) -> None:
        """`runtime`: of this project's side."""
        self._runtime = runtime
        self._api: Any = docker.APIClient(base_url=engine_address(), version="auto", max_pool_size=16)

    def cycle(self, *, plain: bool) -> None:
        """Create, start, run one command, remove."""
        spec = ContainerSpec(image=IMAGE, command=("sleep", "600"), fills=True)
        config = container_config(spec, labels={RAW_LABEL: "1"}, runtime="" if plain else self._runtime, folder="")
        config |= {"NetworkDisabled": not plain}
        container = self._api.create_container_from_config(config)["Id"]
        try:
            self._api.start(container)
            command = self._api.exec_create(container, [COMMAND])["Id"]
            self._api.exec_start(command)
            assert self._api.exec_inspect(command)["ExitCode"] == 0
        finally:
            self._api.remove_container(container, force=True, v=True)

    def close(self) -> None:
        self._api.close()


async def runtime_of_episodes(containers: Containers) -> str:
    """What a container gets that asks for none."""
    container = await containers.start(ContainerSpec(image=IMAGE, command=("sleep", "600")))
    api: Any = docker.APIClient(base_url=engine_address(), version="auto")
    try:
        return str(api.inspect_container(container.id)["HostConfig"]["Runtime"])
    finally:
        api.close()
        await container.remove()


async def per_second(one: Callable[[int], Awaitable[object]], *, count: int, at_once: int) -> float:
    """Rate of `count` calls, so many at once."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return count / (time.perf_counter() - started)


async def timed(call: Awaitable[object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    await call
    return (time.perf_counter() - started) * 1000


async def turns_and_execs(folder: Path, *, turns: int) -> dict[str, float]:
    """Medians, ms: a turn of the agent and the engine's own exec in its container, in turns; and an episode's first call."""
    first, turn_ms, exec_ms = [], [], []
    for _ in range(_FIRST_CALLS):
        async with agent_of(folder) as agent:
            first.append(await timed(agent.step(say("bash", COMMAND))))
    async with agent_of(folder) as agent:
        await agent.step(say("bash", COMMAND))
        assert agent._box is not None
        container = agent._box.container
        for _ in range(turns):
            turn_ms.append(await timed(agent.step(say("bash", COMMAND))))
            exec_ms.append(await timed(container.exec(["bash", "-c", COMMAND], seconds=60.0)))
    return {
        "first_call_ms": statistics.median(first),
        "turn_ms": statistics.median(turn_ms),
        "exec_ms": statistics.median(exec_ms),
        "turn_to_exec": statistics.median(turn_ms) / statistics.median(exec_ms),
    }


async def compare(folder: Path, *, episodes: int, rounds: int, at_once: int, turns: int, runtime: str) -> dict[str, Any]:
    """Medians over rounds in which the sides take turns."""
    shared = SharedContainers.take()
    threads = ThreadPoolExecutor(at_once)
    loop = asyncio.get_running_loop()
    sides: dict[str, Callable[[int], Awaitable[object]]] = {
        "episodes": lambda number: episode(folder, shared.containers, number=number),
        "raw": lambda _: loop.run_in_executor(threads, lambda: raw.cycle(plain=False)),
        "raw_network_none": lambda _: loop.run_in_executor(threads, lambda: raw.cycle(plain=True)),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    try:
        await make_task(shared.containers, folder)
        with contextlib.closing(Raw(runtime=runtime or await runtime_of_episodes(shared.containers))) as raw:
            for one in sides.values():
                await per_second(one, count=at_once, at_once=at_once)
            for _ in range(rounds):
                for name, one in sides.items():
                    rates[name].append(await per_second(one, count=episodes, at_once=at_once))
            figures: dict[str, float] = {f"{name}_per_second": statistics.median(found) for name, found in rates.items()}
            for name in ("raw", "raw_network_none"):
                ratio = statistics.median(mine / its for mine, its in zip(rates["episodes"], rates[name], strict=True))
                figures |= {f"episodes_to_{name}": ratio, f"containers_to_{name}": 2 * ratio}
            figures |= await turns_and_execs(folder, turns=turns)
    finally:
        threads.shutdown()
        await shared.release()
    return {name: round(value, 3) for name, value in figures.items()}


async def prepare(folder: Path) -> None:
    shared = SharedContainers.take()
    try:
        await make_task(shared.containers, folder)
    finally:
        await shared.release()


async def play(folder: Path, *, first: int, at_once: int) -> None:
    """A worker of the soak: tells of each episode that it begins and that it has scored, until it is killed."""
    shared = SharedContainers.take()

    async def one(number: int) -> None:
        print(f"begun {number}", flush=True)
        await episode(folder, shared.containers, number=number)
        print(f"scored {number}", flush=True)

    await per_second(lambda number: one(first + number), count=1 << 30, at_once=at_once)


def soak(folder: Path, *, episodes: int, kill_every: int, at_once: int, runtime: str) -> dict[str, Any]:
    """Score `episodes`, killing the worker after every `kill_every`, at a random moment of those that it is in the middle of."""
    draw, events, owners = random.Random(0), Counter[str](), set[str]()
    api: Any = docker.APIClient(base_url=engine_address(), version="auto")
    containers, killed, started = set[str](), 0, time.perf_counter()
    while sum(event.startswith("scored") for event in events) < episodes:
        command = [sys.executable, "-m", "benchmarks.swe", "--work-in", str(folder), "--first", str(killed << 16)]
        worker = subprocess.Popen([*command, "--at-once", str(at_once), "--runtime", runtime], stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        owner, scored = owner_of(worker.pid), 0
        for line in worker.stdout:
            events[line.strip()] += 1
            scored += line.startswith("scored")
            if scored == kill_every:
                break
        else:
            raise RuntimeError(f"the worker ended by itself with exit code {worker.wait()}")
        time.sleep(draw.random())
        containers |= {one["Id"] for one in api.containers(all=True, filters={"label": f"{OWNER_LABEL}={owner}"})}
        worker.kill()
        events.update(line.strip() for line in worker.stdout)
        worker.wait()
        owners.add(owner)
        killed += 1
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "killed": killed,
        "begun": sum(event.startswith("begun") for event in events),
        "scored": sum(event.startswith("scored") for event in events),
        "scored_wrongly": sum(
            count != 1 or events[event.replace("scored", "begun")] != 1 for event, count in events.items() if event.startswith("scored")
        ),
        "alive_when_killed": len(containers),
        **left_behind(api, owners=owners, containers=containers),
    }


def left_behind(api: Any, *, owners: set[str], containers: set[str]) -> dict[str, Any]:
    """What is there of dead workers, once it stops getting less; processes are theirs when an id of theirs is in what they run as."""

    def count() -> dict[str, int]:
        labels = [f"{OWNER_LABEL}={owner}" for owner in owners]
        found = [api.containers(all=True, filters={"label": label}) for label in labels]
        volumes = [api.volumes(filters={"label": label})["Volumes"] or [] for label in labels]
        return {
            "containers_left": sum(map(len, found)),
            "volumes_left": sum(map(len, volumes)),
            "processes_left": sum(any(id in text for id in (*owners, *containers)) for text in processes()),
        }

    started = time.perf_counter()
    while any((left := count()).values()) and time.perf_counter() - started < _CLEAN_SECONDS:
        time.sleep(0.2)
    return {**left, "clean_after_seconds": round(time.perf_counter() - started, 1)}


def processes() -> list[str]:
    """Command line and control groups of each."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append((entry / "cmdline").read_text(errors="replace") + (entry / "cgroup").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=0, help="24 a round, 200 of a soak")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--runtime", default="")
    parser.add_argument("--warm", type=int, default=0)
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--kill-every", type=int, default=20)
    parser.add_argument("--work-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    episodes = args.episodes or (200 if args.soak else 24)
    use_containers(ContainersConfig(runtime=args.runtime, warm=args.warm))
    if args.work_in:
        asyncio.run(play(args.work_in, first=args.first, at_once=args.at_once))
        return
    with running_engine() as address, tempfile.TemporaryDirectory() as place:
        os.environ["DOCKER_HOST"] = address
        os.environ["XDG_CACHE_HOME"] = place
        folder = Path(place, "calc-1")
        if args.soak:
            asyncio.run(prepare(folder))
            figures = soak(folder, episodes=episodes, kill_every=args.kill_every, at_once=args.at_once, runtime=args.runtime)
        else:
            figures = asyncio.run(
                compare(folder, episodes=episodes, rounds=args.rounds, at_once=args.at_once, turns=args.turns, runtime=args.runtime)
            )
    print_result(
        benchmark="swe soak" if args.soak else "swe", runtime=args.runtime or "default", at_once=args.at_once, warm=args.warm, **figures
    )


if __name__ == "__main__":
    main()
