"""Many executions in one sandbox pool, one in twenty hostile: does anything stay behind?

    python benchmarks/soak.py [--executions 50000] [--kind forkserver]

Prints one JSON line with what the pool occupied before (after a warm-up) and after, and what each kind of program came to.
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import asdict
from itertools import count

from benchmarks.machine import print_result
from benchmarks.pool import Footprint
from configs.schema import SandboxConfig
from environments.sandbox.base import Limits
from environments.sandbox.client import PoolClient

HOSTILE_SHARE = 0.05
IN_FLIGHT = 4
ORDINARY = b"print(sum(i * i for i in range(100)))"
ORDINARY_OUTPUT = b"328350\n"
HOSTILE = {
    "fork bomb": b"import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory bomb": b"a = []\nwhile True: a.append(bytearray(1 << 20))",
    "disk fill": b"for i in range(99):\n    with open(f'/work/{i}', 'wb', buffering=0) as f: f.write(bytes(1 << 20))",
    "inode flood": b"import os\nfor n in range(200_000): os.close(os.open(f'/work/{n}', os.O_CREAT))",
    "output flood": b"import os\nwhile True: os.write(1, bytes(65536))",
    "spin": b"import signal\nfor s in (1, 2, 3, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "sleep": b"import time\ntime.sleep(60)",
    "daemon": b"import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)",
    "zombies": b"import os\nfor _ in range(5):\n    if os.fork() == 0: os._exit(0)",
    "kill all": b"import os\nos.kill(-1, 9)",
    "crash": b"import ctypes\nctypes.string_at(0)",
    "links and pipes": b"import os\nos.symlink('/etc/passwd', 'a')\nos.mkfifo('b')\nos.remove('/tmp/main.py')",
    "sockets": b"import socket\nkeep = [socket.socketpair() for _ in range(99)]\nsocket.socket(2, 1)",
    "threads": b"import threading, time, os\nfor _ in range(5): threading.Thread(target=time.sleep, args=(60,)).start()\nos._exit(0)",
    "NUL bytes": b"print(1)\x00",
}
HOSTILE_LIMITS = Limits(wall_seconds=0.4, cpu_seconds=1, memory_mb=64, processes=8, disk_mb=4, output_bytes=1 << 18)


async def soak(*, executions: int, kind: str) -> None:
    client = PoolClient(SandboxConfig(kind=kind))  # type: ignore[arg-type]  # argparse has checked it
    draw, numbers, outcomes = random.Random(0), count(), Counter[str]()

    async def worker(last: int) -> None:
        while next(numbers) < last:
            if draw.random() < HOSTILE_SHARE:
                name, program = draw.choice(list(HOSTILE.items()))
                done = await client.run(program, limits=HOSTILE_LIMITS)
                outcomes[f"{name}: {done.killed_by or f'exit {done.exit_code}'}"] += 1
            else:
                done = await client.run(ORDINARY)
                outcomes["ordinary: right" if done.stdout == ORDINARY_OUTPUT else "ordinary: WRONG"] += 1

    async def together(last: int) -> None:
        await asyncio.gather(*(worker(last) for _ in range(IN_FLIGHT)))

    await together(400)
    before = Footprint.count(client.server_pid)
    server, numbers, outcomes = client.server_pid, count(), Counter[str]()
    started = time.perf_counter()
    await together(executions)
    seconds = time.perf_counter() - started
    after = Footprint.count(client.server_pid)
    await client.close()
    print_result(
        benchmark="soak",
        kind=kind,
        executions=sum(outcomes.values()),
        hostile=sum(n for name, n in outcomes.items() if not name.startswith("ordinary")),
        wrong=outcomes["ordinary: WRONG"],
        same_server=server == client.server_pid,
        seconds=round(seconds, 1),
        before=asdict(before),
        after=asdict(after),
        outcomes=dict(sorted(outcomes.items())),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=50_000)
    parser.add_argument("--kind", choices=("forkserver", "bubblewrap"), default="forkserver")
    arguments = parser.parse_args()
    asyncio.run(soak(executions=arguments.executions, kind=arguments.kind))
