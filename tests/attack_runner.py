"""Runs the hostile programs in one sandbox, and says what went wrong.

As a program (`python -m tests.attack_runner KIND`) it prints a JSON list: tests run it as another user.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from environments.sandbox.base import Sandbox
from environments.sandbox.bubblewrap import Bubblewrap
from environments.sandbox.forkserver import ForkServer
from tests.attacks import BYTES, RESOURCES, SECRET, faults
from tests.attacks_escape import ESCAPES
from tests.sandbox_host import Host

KINDS: dict[str, Callable[[], Sandbox]] = {"forkserver": lambda: ForkServer(slots=1), "bubblewrap": lambda: Bubblewrap(slots=1)}
SHORT = ("fork bomb", "memory bomb", "disk fill", "50 MB of stdout", "network", "setuid", "nested user namespace", "kill everything")
"""What another user's run tries besides all that takes no time: everything but the other programs that run into the wall clock."""


async def run_attacks(kind: str, host: Host, *, only: "tuple[str, ...]" = ()) -> list[str]:
    """All in one sandbox with one slot, one after the other: what an attack leaves behind, the next execution meets."""
    wrong: list[str] = []
    sandbox = KINDS[kind]()
    try:
        for name, attack in (RESOURCES | ESCAPES).items():
            if only and name not in only and "wall" in attack.killed_by:
                continue
            execution = await sandbox.run(host.fill_in(attack.program).encode(), limits=attack.limits)
            wrong += [f"{name}: {fault}" for fault in faults(attack, execution)]
            after = await sandbox.run(b"import os\nprint(os.listdir('/work'), os.listdir('/tmp'))")
            if after.stdout.strip() != b"[] ['main.py']" or after.exit_code != 0:
                wrong.append(f"{name}: the next execution is {after}")
            wrong += [f"{name} left {trace}" for trace in host.traces()]
        for name, source in BYTES.items():
            execution = await sandbox.run(source)
            if execution.exit_code == 0 or b"GOT" in execution.stdout:
                wrong.append(f"{name}: {execution}")
        if (await sandbox.run(b"print('fine')")).stdout != b"fine\n":
            wrong.append("the last execution is not fine")
    finally:
        await sandbox.close()
    wrong += [f"at the end: {trace}" for trace in host.traces(idle=True)]
    return wrong + (["a program reached a server of the host"] if host.was_reached() else [])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Host.make(Path(folder), secret=SECRET) as host:
        print(json.dumps(asyncio.run(run_attacks(sys.argv[1], host, only=SHORT))))


if __name__ == "__main__":
    main()
