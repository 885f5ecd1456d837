"""The sandbox against programs that try to get out, to take more than their share, or to outlive their run."""

import asyncio
import contextlib
import importlib.util
import itertools
import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from environments.sandbox.base import Execution, Limits, SandboxUnavailable
from environments.sandbox.bubblewrap import Bubblewrap

TIGHT = Limits(wall_seconds=2.0, cpu_seconds=1, memory_mb=256, processes=8, disk_mb=4)


def run_all(*programs: str, limits: Limits | None = None) -> list[Execution]:
    """Run Python programs side by side, each in a box of its own."""

    async def main() -> list[Execution]:
        box = Bubblewrap(slots=4)
        try:
            return await asyncio.gather(*(box.run((*box.python, "-c", program), limits=limits) for program in programs))
        finally:
            box.close()

    return asyncio.run(main())


def output_of(program: str, *, limits: Limits | None = None) -> str:
    (execution,) = run_all(program, limits=limits)
    assert execution.exit_code == 0, execution
    return execution.stdout.decode()


def box_processes() -> list[str]:
    """Processes (zombies too) that boxes of this process left behind, by the uid or the parent that only they have."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
            first_uid = 0x7000_0000 + 64 * os.getpid()
            is_box_uid = first_uid <= int(status["Uid"].split()[0]) < first_uid + 64
            is_child = int(status["PPid"]) == os.getpid() and status["Name"] in ("bwrap", "setpriv", "nsenter", "prlimit")
            if is_box_uid or is_child:
                found.append(f"{folder.name} {status['Name']} {status['State']}")
    return found


def test_files_stdin_and_both_outputs() -> None:
    async def main() -> Execution:
        box = Bubblewrap(slots=1)
        program = "import sys; print(open('data/a.txt').read(), sys.stdin.read()); print('oops', file=sys.stderr); sys.exit(7)"
        return await box.run((*box.python, "main.py"), stdin=b"input", files={"main.py": program.encode(), "data/a.txt": b"content"})

    execution = asyncio.run(main())
    assert (execution.stdout, execution.stderr) == (b"content input\n", b"oops\n")
    assert (execution.exit_code, execution.killed_by) == (7, None)


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", ""])
def test_file_names_stay_in_the_box(name: str) -> None:
    async def main() -> None:
        box = Bubblewrap(slots=1)
        await box.run((*box.python, "-c", ""), files={name: b""})

    with pytest.raises(ValueError, match="relative path"):
        asyncio.run(main())


def test_is_nobody_without_capabilities_in_an_empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "swordfish")
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(os.getuid(), os.getgid(), os.getgroups(), sorted(set(os.environ) - {"PWD", "LC_CTYPE"}))
for number, argument in ((105, 0), (272, 0x10000000), (161, b"/")):  # setuid(0), unshare(NEWUSER), chroot
    print(libc.syscall(number, argument), end=" ")
open_fds = []
for fd in range(256):
    try:
        os.fstat(fd)
        open_fds.append(fd)
    except OSError:
        pass
print(open_fds)
"""
    uid_line, call_line = output_of(program).splitlines()
    assert uid_line.startswith("1000 1000 ") and uid_line.endswith(" []")
    assert "0" not in uid_line.split("[")[1].split("]")[0].replace("65534", "").split(", ")
    assert call_line == "-1 -1 -1 [0, 1, 2]"


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's boxes run as that user")
def test_root_drops_to_a_uid_of_its_own() -> None:
    async def main() -> list[str]:
        box = Bubblewrap(slots=1)
        await box.check()
        running = asyncio.create_task(box.run((*box.python, "-c", "import time; time.sleep(60)")))
        while not any("python" in process for process in box_processes()):
            await asyncio.sleep(0.01)
        seen = box_processes()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return seen

    seen = asyncio.run(main())
    assert any("bwrap" in process for process in seen)  # bubblewrap itself is not root either
    assert box_processes() == []


def test_host_files_are_unreachable(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("swordfish")
    secret.chmod(0o644)
    tmp_path.chmod(0o755)
    paths = [
        str(secret),
        __file__,
        "/etc/passwd",
        "/proc/1/environ",
        "/proc/self/root",
        str(Path.home() / ".bashrc"),
        "/var/run/docker.sock",
    ]
    program = f"""
import os
for path in {paths!r}:
    print(os.path.exists(path))
for path in ("/x", "/usr/x", "/usr/bin/python3", "/etc/x", "/dev/x"):
    try:
        open(path, "a")
        print("written", path)
    except OSError:
        print(False)
"""
    assert set(output_of(program).split()) == {"False"}


def test_network_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted = threading.Event()
        threading.Thread(target=lambda: server.accept() and accepted.set(), daemon=True).start()
        port = server.getsockname()[1]
        program = f"""
import socket
for address in (("127.0.0.1", {port}), ("169.254.169.254", 80), ("8.8.8.8", 53)):
    try:
        socket.create_connection(address, timeout=1)
        print("connected", address)
    except OSError:
        print("refused")
"""
        assert output_of(program).split() == ["refused"] * 3
        assert not accepted.is_set()
        socket.create_connection(("127.0.0.1", port)).close()  # the server was there all along
        assert accepted.wait(5)


SPIN = "import signal\nfor s in (1, 2, 14, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
BOMBS = {
    "sleep": ("import time\ntime.sleep(60)", {"wall"}),
    "spin": (SPIN, {"wall", "kernel"}),
    "flood": ("while True: print('x' * 1000)", {"output"}),
    "stderr flood": ("import sys\nwhile True: print('x' * 1000, file=sys.stderr)", {"output"}),
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"wall", "kernel"}),
}


def test_bombs_are_stopped_and_leave_nothing() -> None:
    executions = run_all(*(program for program, _ in BOMBS.values()), limits=TIGHT)
    for (name, (_, killed_by)), execution in zip(BOMBS.items(), executions, strict=True):
        assert execution.exit_code == 137, name
        assert execution.killed_by in killed_by, name
        assert len(execution.stdout) + len(execution.stderr) <= TIGHT.output_bytes, name
    assert box_processes() == []


def test_processor_time_is_limited() -> None:
    (execution,) = run_all(SPIN, limits=Limits(wall_seconds=60, cpu_seconds=1))
    assert execution.killed_by == "kernel"


def test_memory_disk_and_processes_are_limited() -> None:
    memory = "try:\n    a = []\n    while True: a.append(bytearray(1 << 20))\nexcept MemoryError:\n    n = len(a); del a; print(n)"
    disk = """
import os
n = 0
try:
    for i in range(9):
        with open(f"/work/{i}", "wb", buffering=0) as file:
            for _ in range(3): n += file.write(bytes(1 << 20))
except OSError: print(n >> 20)
"""
    processes = """
import os, time
n = 0
try:
    while True:
        if os.fork() == 0: time.sleep(60)
        n += 1
except OSError: print(n, flush=True)
os._exit(0)
"""
    results = [int(execution.stdout) for execution in run_all(memory, disk, processes, limits=TIGHT)]
    assert 0 < results[0] < 256
    assert 0 < results[1] <= 4
    assert 0 < results[2] < 8


def test_nothing_outlives_the_program() -> None:
    daemon = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
print("done")
"""
    assert output_of(daemon) == "done\n"
    assert box_processes() == []


def test_cancelling_at_any_moment_leaves_nothing() -> None:
    async def main() -> None:
        box = Bubblewrap(slots=4)
        await box.check()

        async def cancelled_after(seconds: float) -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(box.run((*box.python, "-c", "import time; time.sleep(60)")), timeout=seconds)

        await asyncio.gather(*(cancelled_after(0.002 * number) for number in range(40)))

    asyncio.run(main())
    assert box_processes() == []


def test_the_program_cannot_kill_its_box_from_inside() -> None:
    assert output_of("import os, signal\nos.kill(1, 9)\ntry: os.kill(-1, 9)\nexcept OSError: pass\nprint('alive')") == "alive\n"


def test_input_that_is_never_read_and_output_that_is_not_text() -> None:
    async def main() -> tuple[Execution, Execution]:
        box = Bubblewrap(slots=2)
        unread = box.run((*box.python, "-c", "print('done')"), stdin=bytes(8 << 20))
        raw = box.run((*box.python, "-c", r"import os; os.write(1, b'\xff\x00\xfe')"))
        return await asyncio.gather(unread, raw)

    unread, raw = asyncio.run(main())
    assert unread.stdout == b"done\n" and unread.exit_code == 0
    assert raw.stdout == b"\xff\x00\xfe"


def test_a_crash_is_an_execution() -> None:
    segfault, abort, missing = run_all("import ctypes; ctypes.string_at(0)", "import os; os.abort()", "import no_such_module")
    assert segfault.exit_code == 139 and segfault.killed_by is None
    assert abort.exit_code > 128
    assert missing.exit_code == 1 and b"ModuleNotFoundError" in missing.stderr


def test_installed_packages_are_hidden() -> None:
    spec = importlib.util.find_spec("numpy")
    assert spec is not None and spec.origin is not None
    (execution,) = run_all(f"import sys; sys.path.append({str(Path(spec.origin).parents[1])!r}); import numpy")
    assert b"ModuleNotFoundError" in execution.stderr


def test_no_more_boxes_at_once_than_slots() -> None:
    async def main() -> list[Execution]:
        box = Bubblewrap(slots=1)
        nap = "import time; print(time.monotonic()); time.sleep(0.1); print(time.monotonic())"
        return await asyncio.gather(*(box.run((*box.python, "-c", nap)) for _ in range(3)))

    spans = sorted(tuple(float(word) for word in execution.stdout.split()) for execution in asyncio.run(main()))
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"`bwrap` was not found.*apt-get install bubblewrap"):
        Bubblewrap()


def test_a_sandbox_that_does_not_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        box = Bubblewrap(slots=1)
        await box.run((*box.python, "-c", "print(1)"))

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        broken = Path(folder) / "bwrap"
        broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
            asyncio.run(main())


def test_limits_and_slots_are_checked() -> None:
    with pytest.raises(ValueError, match=r"limits\.memory_mb is 0"):
        Limits(memory_mb=0)
    with pytest.raises(ValueError, match="slots is 65"):
        Bubblewrap(slots=65)
