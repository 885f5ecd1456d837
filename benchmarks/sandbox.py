"""Trivial programs with full isolation, against a plain interpreter and bubblewrap in the same run.

    python benchmarks/sandbox.py [--seconds 4] [--rounds 3]

Executions a second with two at once and the median latency one at a time, medians over rounds in which the sides take turns; the
fork-server has numpy preloaded, and is measured through the pool, as graders use it. Prints one JSON line.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks.machine import print_result
from benchmarks.pool import Footprint
from configs.schema import SandboxConfig
from environments.sandbox.client import PoolClient

Run = Callable[[bytes], Awaitable[bytes]]
TRIVIAL = b"print(1)"
NUMPY = b"import numpy; print(int(numpy.ones(1).sum()))"


async def plain(source: bytes) -> bytes:
    """`python -I`, without any isolation."""
    command = (sys.executable, "-I", "-c", source.decode())
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0]


async def latency_ms(run: Run, source: bytes, *, seconds: float) -> float:
    """Median over executions one after the other."""
    took, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        assert await run(source) == b"1\n"
        took.append(time.perf_counter() - started)
    return statistics.median(took) * 1e3


async def per_second(run: Run, source: bytes, *, at_once: int, seconds: float) -> float:
    done, end = 0, time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < end:
            assert await run(source) == b"1\n"
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return done / (time.perf_counter() - started)


async def compare(*, seconds: float, rounds: int) -> None:
    forkserver, bubblewrap = (PoolClient(SandboxConfig(kind=kind, slots=2)) for kind in ("forkserver", "bubblewrap"))

    def boxed(client: PoolClient) -> Run:
        async def run(source: bytes) -> bytes:
            return (await client.run(source)).stdout

        return run

    sides = {
        "forkserver": (boxed(forkserver), TRIVIAL),
        "forkserver, program uses numpy": (boxed(forkserver), NUMPY),
        "bubblewrap": (boxed(bubblewrap), TRIVIAL),
        "python -I": (plain, TRIVIAL),
    }
    for run, source in sides.values():
        await asyncio.gather(*(run(source) for _ in range(8)))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    latencies: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (run, source) in sides.items():
            rates[name].append(await per_second(run, source, at_once=2, seconds=seconds))
            latencies[name].append(await latency_ms(run, source, seconds=seconds / 2))
    footprint = Footprint.count(forkserver.server_pid)
    await forkserver.close()
    await bubblewrap.close()
    print_result(
        benchmark="sandbox",
        per_second_at_2={name: round(statistics.median(found), 1) for name, found in rates.items()},
        median_ms_at_1={name: round(statistics.median(found), 2) for name, found in latencies.items()},
        rounds=rounds,
        seconds=seconds,
        preload=list(SandboxConfig().preload),
        pool_processes=footprint.pool_processes,
        pool_mib=footprint.pool_mib,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(compare(seconds=arguments.seconds, rounds=arguments.rounds))
