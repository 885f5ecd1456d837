"""The node's sandbox server: shared by clients, gone with the last one, replaced when it is killed."""

import asyncio
import contextlib
import itertools
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

import environments.sandbox.make
from configs.schema import SandboxConfig
from environments.sandbox.base import Execution, Limits, Sandbox, SandboxError, SandboxUnavailable, SessionEnded
from environments.sandbox.client import PoolClient
from environments.sandbox.make import make_sandbox, use_sandbox

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
SLEEP = b"import time\ntime.sleep(60)"
SUM = b"import sys\ntotal = 0\nfor line in sys.stdin:\n    total += int(line)\n    print(total, flush=True)"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxConfig]:
    """A server of this test's own: its folder is new."""
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as folder:  # a socket's path must be short
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield SandboxConfig(slots=2)


def with_client(config: SandboxConfig, act: Callable[[PoolClient], Awaitable[T]]) -> T:
    async def main() -> T:
        client = PoolClient(config)
        try:
            return await act(client)
        finally:
            await client.close()

    return asyncio.run(main())


def wait_until(condition: Callable[[], bool]) -> None:
    """Fails by the test's own deadline."""
    while not condition():
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Ended, or a zombie that its parent has not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def descendants(pid: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def test_runs_sessions_and_guards(config: SandboxConfig) -> None:
    async def act(client: PoolClient) -> None:
        done = await client.run(b"import sys; print(open('a').read(), input()); sys.exit(3)", stdin=b"in", files={"a": b"file"})
        assert (done.stdout, done.exit_code, done.killed_by) == (b"file in\n", 3, None)
        assert (await client.run(SLEEP, limits=Limits(wall_seconds=0.3))).killed_by == "wall"
        assert (await client.run(b"import numpy; print(numpy.ones(3).sum())")).stdout == b"3.0\n"
        with pytest.raises(ValueError, match="relative path"):
            await client.run(b"", files={"../a": b""})
        session = await client.open(SUM)
        assert [await session.ask(b"%d" % n, seconds=30) for n in (4, 5)] == [b"4", b"9"]
        with pytest.raises(SessionEnded):
            await session.ask(b"no number", seconds=30)
        assert b"ValueError" in (await session.close()).stderr
        assert {"kind", "namespaces", "system-call filter"} <= {guard.name for guard in await client.guards()}
        assert client.kind == "forkserver"

    with_client(config, act)


def test_the_socket_is_this_users_alone_and_the_server_goes_with_its_last_client(config: SandboxConfig) -> None:
    async def act(client: PoolClient) -> tuple[int, list[int], Path]:
        await client.run(b"")
        (folder,) = Path(tempfile.gettempdir()).iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert sorted(path.suffix for path in folder.iterdir()) == ["", ".socket"]
        return client.server_pid, descendants(client.server_pid), folder

    server, below, folder = with_client(config, act)
    assert below
    wait_until(lambda: all(is_gone(pid) for pid in (server, *below)))
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert [path for path in Path("/sys/fs/cgroup").rglob(f"codeworld-sandbox-{server}")] == []


def test_clients_share_a_server_and_its_slots(config: SandboxConfig) -> None:
    async def main() -> tuple[set[int], list[Execution]]:
        clients = [PoolClient(SandboxConfig(slots=1)) for _ in range(3)]
        nap = b"import time; print(time.monotonic()); time.sleep(0.1); print(time.monotonic())"
        done = await asyncio.gather(*(client.run(nap) for client in clients))
        for client in clients:
            await client.close()
        return {client.server_pid for client in clients}, done

    servers, executions = asyncio.run(main())
    assert len(servers) == 1
    spans = sorted(tuple(float(word) for word in execution.stdout.split()) for execution in executions)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_a_killed_server_is_replaced_and_the_execution_retried(config: SandboxConfig) -> None:
    async def act(client: PoolClient) -> None:
        await client.run(b"")
        first = client.server_pid
        below = descendants(first)
        running = asyncio.create_task(client.run(b"import time\ntime.sleep(1)\nprint('done')"))
        await asyncio.sleep(0.3)
        os.kill(first, signal.SIGKILL)
        assert (await running).stdout == b"done\n"
        assert client.server_pid != first
        wait_until(lambda: all(is_gone(pid) for pid in below))

        first_groups = list(Path("/sys/fs/cgroup").rglob(f"codeworld-sandbox-{first}"))
        assert first_groups == []  # its successor took them away

    with_client(config, act)


def test_a_killed_zygote_is_replaced_and_the_execution_retried(config: SandboxConfig) -> None:
    async def act(client: PoolClient) -> None:
        await client.run(b"")
        server = client.server_pid
        running = asyncio.create_task(client.run(b"import time\ntime.sleep(1)\nprint('done')"))
        await asyncio.sleep(0.3)
        for pid in descendants(server):
            os.kill(pid, signal.SIGKILL)
        assert (await running).stdout == b"done\n"
        assert client.server_pid == server
        session = await client.open(SUM)
        assert await session.ask(b"1", seconds=30) == b"1"
        for pid in descendants(server):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxError):  # a session's state cannot be made again: no verdict
            await session.ask(b"1", seconds=30)

    with_client(config, act)


def test_only_retries_that_fail_are_an_error(config: SandboxConfig) -> None:
    async def act(client: PoolClient) -> None:
        await client.run(b"")
        seen: set[int] = set()

        async def kill_all_servers() -> None:
            while len(seen) < 3:
                if client.server_pid not in seen:
                    await asyncio.sleep(0.3)
                    seen.add(client.server_pid)
                    os.kill(client.server_pid, signal.SIGKILL)
                await asyncio.sleep(0.01)

        killer = asyncio.create_task(kill_all_servers())
        try:
            with pytest.raises(SandboxError, match="3 sandbox servers died"):
                await client.run(SLEEP, limits=Limits(wall_seconds=100))
        finally:
            killer.cancel()
        assert (await client.run(b"print('fine')")).stdout == b"fine\n"
        left = [path for pid in seen for path in Path("/sys/fs/cgroup").rglob(f"codeworld-sandbox-{pid}")]
        assert left == []  # the last server took the groups of the others away

    with_client(config, act)


def test_a_client_that_dies_takes_its_boxes_along(config: SandboxConfig) -> None:
    code = f"""
import asyncio, tempfile
tempfile.tempdir = {tempfile.gettempdir()!r}
from configs.schema import SandboxConfig
from environments.sandbox.client import PoolClient
async def main():
    client = PoolClient(SandboxConfig(slots=2))
    session = await client.open({SUM!r})
    await session.ask(b"1", seconds=60)
    print(client.server_pid, flush=True)
    await client.run({SLEEP!r})
asyncio.run(main())
"""

    async def act(client: PoolClient) -> None:
        await client.run(b"")
        idle = len(descendants(client.server_pid))
        other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
        assert other.stdout is not None and int(await asyncio.to_thread(other.stdout.readline)) == client.server_pid
        while len(descendants(client.server_pid)) < idle + 4:  # two more processes for each of its boxes
            await asyncio.sleep(0.02)
        other.kill()
        other.communicate()
        # Zygotes stay, boxes go: each zygote is two processes.
        while (len(descendants(client.server_pid)) - idle) % 2 or len(descendants(client.server_pid)) > idle + 4:
            await asyncio.sleep(0.02)
        done = await asyncio.wait_for(asyncio.gather(*(client.run(b"print('fine')") for _ in range(4))), timeout=60)
        assert [execution.stdout for execution in done] == [b"fine\n"] * 4

    with_client(config, act)


def test_a_cancelled_run_frees_its_slot(config: SandboxConfig) -> None:
    async def act(client: PoolClient) -> bytes:
        for seconds in (0.0, 0.05, 0.3, 0.6):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.gather(client.run(SLEEP), client.run(SLEEP), client.run(SLEEP)), timeout=seconds)
        return (await client.run(b"print('fine')")).stdout

    assert with_client(config, act) == b"fine\n"


def test_what_is_wrong_is_said_when_a_sandbox_is_made(config: SandboxConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments.sandbox.make, "_config", SandboxConfig())
    use_sandbox(SandboxConfig(preload=("no_such_package",)))
    with pytest.raises(ValueError, match=r"sandbox\.preload names 'no_such_package'"):
        make_sandbox()
    use_sandbox(SandboxConfig(kind="bubblewrap"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        make_sandbox()
    use_sandbox(SandboxConfig(kind="auto"))
    sandbox: Sandbox = make_sandbox()
    assert asyncio.run(sandbox.run(b"print('fine')")).stdout == b"fine\n"


def test_a_folder_that_others_can_enter_is_refused(config: SandboxConfig) -> None:
    folder = Path(tempfile.gettempdir()) / f"codeworld-rl-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match="not a folder of this user alone"):
        PoolClient(config)


def test_configuration_is_checked() -> None:
    with pytest.raises(ValueError, match=r"sandbox\.slots is 33"):
        SandboxConfig(slots=33)
    with pytest.raises(ValueError, match=r"sandbox\.image is empty"):
        SandboxConfig(kind="docker")
