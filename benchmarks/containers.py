"""Containers through this project's client, against a plain loop over the Docker SDK on the same engine in the same run.

    python -m benchmarks.containers [--rounds 3] [--each 3] [--runtime crun] [--killed 0]

The raw loop creates a container (no network, read-only root, the same limits and tmpfs), starts it, runs `true` by exec and removes
it by force, as a first script would. Ours starts one, fills its work folder, speaks to its main process and removes it. Both with four
at once; the sides take turns. Then one container's round trips: exec of `true` by both, a line to the main process and back.
`--killed N`: N containers, with their owner killed at every twentieth; counts what is left. Needs an engine and a prepared image
(`--image`, with /bin/sh and /testbed). Prints one JSON line. Whole episodes are measured by benchmarks/swe.py.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import docker

from benchmarks.machine import print_result
from environments.containers.address import engine_address
from environments.containers.base import ContainerSpec
from environments.containers.docker import DockerContainers
from environments.containers.reaper import remove_all

AT_ONCE = 4
KILLED_EVERY = 20
OWNER = """
import asyncio, sys
from environments.containers.base import ContainerSpec
from environments.containers.docker import DockerContainers
async def main():
    containers = DockerContainers(at_once=4)
    async def one():
        container = await containers.start(ContainerSpec(image=sys.argv[1], command=("cat",)))
        await container.write(b"x")
        print("x", end="", flush=True)
        await container.remove()
    await asyncio.gather(*(one() for _ in range(100)))
asyncio.run(main())
"""


def raw(client: docker.APIClient, image: str) -> None:
    """One container by the SDK alone."""
    tmpfs = "size=268435456,mode=1777"
    host = client.create_host_config(
        network_mode="none", read_only=True, cap_drop=["ALL"], security_opt=["no-new-privileges"], mem_limit="1g", pids_limit=256,
        tmpfs={"/tmp": tmpfs, "/testbed": tmpfs},
    )  # fmt: skip
    container = client.create_container(image, ["sleep", "600"], user="1000:1000", host_config=host)["Id"]
    client.start(container)
    client.exec_start(client.exec_create(container, ["true"])["Id"])
    client.remove_container(container, force=True)


async def ours(containers: DockerContainers, image: str) -> None:
    """One container by our client."""
    container = await containers.start(ContainerSpec(image=image, command=("cat",)))
    await container.write(b"x")
    assert await container.read(1) == b"x"
    await container.remove()


async def per_second(act: Callable[[], Awaitable[None]], *, each: int) -> float:
    async def worker() -> None:
        for _ in range(each):
            await act()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return AT_ONCE * each / (time.perf_counter() - started)


async def median_ms(act: Callable[[], Awaitable[object]], *, n: int) -> float:
    took = []
    for _ in range(n):
        started = time.perf_counter()
        await act()
        took.append(time.perf_counter() - started)
    return statistics.median(took) * 1e3


async def compare(*, image: str, runtime: str, rounds: int, each: int) -> dict[str, float]:
    client = docker.APIClient(base_url=engine_address(), version="auto", max_pool_size=AT_ONCE)
    containers = DockerContainers(runtime=runtime, at_once=AT_ONCE)
    sides: dict[str, Callable[[], Awaitable[None]]] = {
        "raw": lambda: asyncio.to_thread(raw, client, image),
        "ours": lambda: ours(containers, image),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for act in sides.values():
        await act()
    for _ in range(rounds):
        for name, act in sides.items():
            rates[name].append(await per_second(act, each=each))
    container = await containers.start(ContainerSpec(image=image, command=("cat",)))

    def raw_exec() -> None:
        client.exec_start(client.exec_create(container.id, ["true"])["Id"])

    async def echo() -> None:
        await container.write(b"x")
        await container.read(1)

    raw_ms = await median_ms(lambda: asyncio.to_thread(raw_exec), n=20)
    own_ms = await median_ms(lambda: container.exec(["true"], seconds=60), n=20)
    echo_ms = await median_ms(echo, n=200)
    await containers.close()
    client.close()
    middle = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "raw_per_second": round(middle["raw"], 2),
        "ours_per_second": round(middle["ours"], 2),
        "ours_to_raw": round(middle["ours"] / middle["raw"], 2),
        "exec_ms_raw": round(raw_ms, 1),
        "exec_ms_ours": round(own_ms, 1),
        "exec_ratio": round(own_ms / raw_ms, 2),
        "main_process_ms": round(echo_ms, 2),
    }


def left_after_kills(image: str, *, n: int) -> int:
    """Start `n` containers in processes that are killed at every twentieth; what is left when their watchers have ended."""
    owners = set[str]()
    for _ in range(0, n, KILLED_EVERY):
        process = subprocess.Popen([sys.executable, "-c", OWNER, image], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.read(KILLED_EVERY)
        process.kill()
        process.wait()
        process.stdout.close()
        owners.add(f".{process.pid}.")
    time.sleep(10)
    return remove_all(engine_address(), lambda owner: any(part in owner for part in owners))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="codeworld-rl-test:python")
    parser.add_argument("--runtime", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", type=int, default=3, help="containers of each of the four workers, a round")
    parser.add_argument("--killed", type=int, default=0)
    arguments = parser.parse_args()
    found = asyncio.run(compare(image=arguments.image, runtime=arguments.runtime, rounds=arguments.rounds, each=arguments.each))
    left = left_after_kills(arguments.image, n=arguments.killed) if arguments.killed else None
    print_result(benchmark="containers", at_once=AT_ONCE, **found, **vars(arguments), left_after_kills=left)
