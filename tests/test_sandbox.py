"""What every kind of sandbox promises, without hostility; and what each says when it cannot run here."""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from environments.sandbox.base import Execution, Limits, Sandbox, SandboxUnavailable, SessionEnded
from environments.sandbox.bubblewrap import Bubblewrap
from environments.sandbox.forkserver import ForkServer
from tests.sandbox_host import box_processes

T = TypeVar("T")
Kind = Callable[..., Sandbox]
ROOT = Path(__file__).parent.parent
by_kind = pytest.mark.parametrize("kind", [ForkServer, Bubblewrap])
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change what a process sees of the host")


def within(kind: Kind, act: Callable[[Sandbox], Awaitable[T]], *, slots: int = 2, packages: tuple[str, ...] = ()) -> T:
    """`act` on a sandbox, which is closed afterwards."""

    async def main() -> T:
        sandbox = kind(slots=slots, packages=packages)
        try:
            return await act(sandbox)
        finally:
            await sandbox.close()

    return asyncio.run(main())


def run_one(kind: Kind, program: str, *, packages: tuple[str, ...] = ()) -> Execution:
    return within(kind, lambda sandbox: sandbox.run(program.encode()), slots=1, packages=packages)


@by_kind
def test_files_stdin_and_both_outputs(kind: Kind) -> None:
    program = "import sys; print(open('data/a.txt').read(), sys.stdin.read()); print('oops', file=sys.stderr); sys.exit(7)"
    execution = within(kind, lambda box: box.run(program.encode(), stdin=b"input", files={"data/a.txt": b"content"}))
    assert (execution.stdout, execution.stderr) == (b"content input\n", b"oops\n")
    assert (execution.exit_code, execution.killed_by) == (7, None)
    assert execution.wall_seconds > 0


@by_kind
@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "", "."])
def test_file_names_stay_in_the_box(kind: Kind, name: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        within(kind, lambda box: box.run(b"", files={name: b""}))


@by_kind
def test_files_must_fit(kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"limits\.disk_mb is 1"):
        within(kind, lambda box: box.run(b"", files={"a": bytes(2 << 20)}, limits=Limits(disk_mb=1)))


@by_kind
def test_programs_end_as_in_an_interpreter(kind: Kind) -> None:
    programs = {
        "import sys; sys.exit(3)": (3, b"", b""),
        "import sys; sys.exit('no')": (1, b"", b"no\n"),
        "raise SystemExit": (0, b"", b""),
        "exit(4)": (4, b"", b""),
        "import atexit; atexit.register(print, 'last'); print('first')": (0, b"first\nlast\n", b""),
        "import threading; threading.Timer(0.05, print, ['late']).start()": (0, b"late\n", b""),
        "print(__name__, __file__ == __import__('sys').argv[0])": (0, b"__main__ True\n", b""),
        "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)": (0, b"A\n", b""),
        "import os; os.abort()": (134, b"", b""),
        "import ctypes; ctypes.string_at(0)": (139, b"", b""),
    }

    async def act(sandbox: Sandbox) -> dict[str, Execution]:
        done = await asyncio.gather(*(sandbox.run(program.encode()) for program in programs))
        return dict(zip(programs, done, strict=True))

    for program, execution in within(kind, act).items():
        code, stdout, stderr = programs[program]
        if code > 128:
            assert execution.exit_code > 128 and execution.killed_by is None, program
        else:
            assert (execution.exit_code, execution.stdout, execution.stderr) == (code, stdout, stderr), program


@by_kind
def test_traceback_shows_the_program_alone(kind: Kind) -> None:
    stderr = run_one(kind, "def f():\n    return 1 / 0\nf()").stderr.decode()
    assert stderr.startswith("Traceback (most recent call last):\n  File") and stderr.count("File ") == 2
    assert "return 1 / 0" in stderr and stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "SyntaxError" in run_one(kind, "x =").stderr.decode()


@by_kind
def test_environment_is_empty_and_ids_are_its_own(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "swordfish")
    program = "import os, socket\nprint(os.getuid(), os.getgid(), os.getgroups(), socket.gethostname(), os.getcwd(), *sorted(os.environ))"
    words = run_one(kind, program).stdout.decode().split()
    assert words[:2] == ["1000", "1000"] and words[3:5] == ["box", "/work"]
    assert set(words[5:]) <= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PWD", "LC_CTYPE"}


@by_kind
def test_chosen_packages_are_there_and_others_are_hidden(kind: Kind) -> None:
    program = "import numpy; print(numpy.arange(4).sum(), numpy.linalg.det(numpy.eye(3)))\nimport torch"
    execution = run_one(kind, program, packages=("numpy",))
    assert execution.stdout == b"6 1.0\n"
    assert b"ModuleNotFoundError: No module named 'torch'" in execution.stderr
    assert b"ModuleNotFoundError" in run_one(kind, "import numpy").stderr


@by_kind
def test_a_package_that_is_not_installed(kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"sandbox\.preload names 'no_such_package'"):
        kind(packages=("no_such_package",))


def test_random_numbers_differ_between_executions() -> None:
    async def act(sandbox: Sandbox) -> list[bytes]:
        program = b"import random, numpy; print(random.random(), numpy.random.random())"
        return [(await sandbox.run(program)).stdout for _ in range(3)]

    words = b" ".join(within(ForkServer, act, slots=1, packages=("numpy",))).split()
    assert len(set(words)) == 6


@by_kind
def test_input_that_is_never_read_and_output_that_is_not_text(kind: Kind) -> None:
    async def act(sandbox: Sandbox) -> list[Execution]:
        unread = sandbox.run(b"print('done')", stdin=bytes(8 << 20))
        read = sandbox.run(b"import sys; print(len(sys.stdin.buffer.read()))", stdin=bytes(8 << 20))
        return await asyncio.gather(unread, read, sandbox.run(rb"import os; os.write(1, b'\xff\x00\xfe')"))

    unread, read, raw = within(kind, act)
    assert unread.stdout == b"done\n" and unread.exit_code == 0
    assert read.stdout == b"8388608\n"
    assert raw.stdout == b"\xff\x00\xfe"


@by_kind
def test_sessions_keep_their_state(kind: Kind) -> None:
    program = b"import sys\ntotal = 0\nfor line in sys.stdin:\n    total += int(line)\n    print(total, flush=True)"

    async def act(sandbox: Sandbox) -> None:
        first, second = await sandbox.open(program), await sandbox.open(program)
        assert [await first.ask(b"%d" % n, seconds=30) for n in (1, 2, 3)] == [b"1", b"3", b"6"]
        assert await second.ask(b"5", seconds=30) == b"5"
        assert (await sandbox.run(b"print('beside them')")).stdout == b"beside them\n"
        execution = await first.close()
        assert execution.stdout == b"1\n3\n6\n" and execution.killed_by is None
        assert await first.close() == execution
        with pytest.raises(SessionEnded):
            await first.ask(b"1", seconds=30)
        await second.close()

    within(kind, act, slots=1)
    assert box_processes() == []


def test_a_line_that_comes_bit_by_bit_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the bytes that are looked through: a few times what was written, not its square."""
    searched = 0

    class Counting(bytearray):
        def find(self, what: Any, start: Any = 0, end: Any = None) -> int:
            nonlocal searched
            searched += len(self) - start
            return super().find(what, start, end)

    monkeypatch.setattr("environments.sandbox.box.bytearray", Counting, raising=False)
    program = b"import os, time\ninput()\nfor _ in range(200):\n    os.write(1, b'x' * 4096)\n    time.sleep(0.001)\n"
    program += b"print()\nprint('y', flush=True)\ninput()"

    async def act(sandbox: Sandbox) -> tuple[bytes, bytes]:
        session = await sandbox.open(program)
        answers = await session.ask(b"", seconds=30), await session.ask(b"", seconds=30)
        await session.close()
        return answers

    assert within(ForkServer, act) == (b"x" * 4096 * 200, b"y")
    assert 0 < searched < 3 * 4096 * 200


@by_kind
def test_sessions_end_at_their_limits(kind: Kind) -> None:
    async def act(sandbox: Sandbox) -> list[Execution]:
        asleep = await sandbox.open(b"import time\ntime.sleep(60)")
        with pytest.raises(SessionEnded, match=r"no answer within 0\.2 s"):
            await asleep.ask(b"hello", seconds=0.2)
        flood = await sandbox.open(b"import sys\nwhile True: sys.stdout.write('x' * 1000)", limits=Limits(output_bytes=10_000))
        with pytest.raises(SessionEnded, match="output"):
            await flood.ask(b"hello", seconds=30)
        over = await sandbox.open(b"print(input())")
        assert await over.ask(b"bye", seconds=30) == b"bye"
        with pytest.raises(SessionEnded):
            await over.ask(b"again", seconds=30)
        return [await session.close() for session in (asleep, flood, over)]

    asleep, flood, over = within(kind, act)
    assert (asleep.killed_by, flood.killed_by, over.killed_by, over.exit_code) == ("wall", "output", None, 0)
    assert box_processes() == []


@by_kind
def test_no_more_boxes_at_once_than_slots(kind: Kind) -> None:
    async def act(sandbox: Sandbox) -> list[Execution]:
        nap = b"import time; print(time.monotonic()); time.sleep(0.1); print(time.monotonic())"
        return await asyncio.gather(*(sandbox.run(nap) for _ in range(3)))

    spans = sorted(tuple(float(word) for word in execution.stdout.split()) for execution in within(kind, act, slots=1))
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


@by_kind
def test_cancelling_at_any_moment_leaves_nothing(kind: Kind) -> None:
    async def act(sandbox: Sandbox) -> Execution:
        async def cancelled_after(seconds: float) -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sandbox.run(b"import time; time.sleep(60)"), timeout=seconds)

        await sandbox.run(b"")
        await asyncio.gather(*(cancelled_after(0.002 * number) for number in range(40)))
        return await sandbox.run(b"print('fine')")

    assert within(kind, act, slots=4).stdout == b"fine\n"
    assert box_processes() == []


def test_measured_use() -> None:
    def use(program: str) -> Execution:
        return run_one(ForkServer, program)

    idle, busy = (
        use("pass"),
        use("x = bytearray(100 << 20)\nimport time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"),
    )
    assert idle.cpu_seconds is not None and busy.cpu_seconds is not None and busy.cpu_seconds > idle.cpu_seconds + 0.25
    assert idle.peak_memory_mb is not None and busy.peak_memory_mb is not None and busy.peak_memory_mb > idle.peak_memory_mb + 90


@as_root
@by_kind
def test_root_drops_to_a_uid_of_its_own(kind: Kind) -> None:
    async def act(sandbox: Sandbox) -> list[str]:
        session = await sandbox.open(b"print(input(), flush=True)\nimport time\ntime.sleep(60)")
        await session.ask(b"there", seconds=30)
        seen = box_processes()
        await session.close()
        return seen

    assert any("python" in process for process in within(kind, act))
    assert box_processes() == []


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"`bwrap` was not found.*apt-get install bubblewrap"):
        Bubblewrap()


def test_a_sandbox_that_does_not_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        broken = Path(folder) / "bwrap"
        broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
            run_one(Bubblewrap, "print(1)")


def run_elsewhere(*prefix: str) -> str:
    """What a fork-server says in a process that sees a changed host."""
    code = """
import asyncio
from environments.sandbox.forkserver import ForkServer
async def main():
    server = ForkServer(slots=1)
    try:
        print([f"{guard.name}: {guard.state}" for guard in await server.guards()])
    finally:
        await server.close()
try:
    asyncio.run(main())
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([*prefix, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


@as_root
def test_read_only_control_groups_are_reported_and_do_without() -> None:
    script = (
        'for m in /sys/fs/cgroup/*; do mount -o remount,bind,ro "$m" 2>/dev/null; done; mount -o remount,bind,ro /sys/fs/cgroup; exec "$@"'
    )
    said = run_elsewhere("unshare", "--mount", "sh", "-c", script, "sh")
    assert "memory of the whole box (cgroup): unavailable" in said and "resource limits: on" in said


@as_root
def test_hidden_proc_is_named() -> None:
    said = run_elsewhere("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")
    assert said.startswith("SandboxUnavailable /proc is hidden")


@as_root
def test_no_free_uid_range_is_named() -> None:
    assert run_elsewhere("unshare", "--user", "--map-root-user").startswith("SandboxUnavailable no free uid range")


@as_root
def test_forbidden_user_namespaces_are_named() -> None:
    script = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    said = run_elsewhere("unshare", "--user", "--map-user=1000", "--keep-caps", "sh", "-c", script, "sh")
    assert said.startswith("SandboxUnavailable the sandbox's jail does not start:")
    assert "unshare: No space left on device" in said and "user.max_user_namespaces" in said


@pytest.mark.parametrize("name", ["wall_seconds", "cpu_seconds", "memory_mb", "output_bytes", "processes", "disk_mb"])
def test_limits_are_above_zero(name: str) -> None:
    with pytest.raises(ValueError, match=rf"limits\.{name} is 0"):
        Limits(**{name: 0})  # type: ignore[arg-type]  # one of the fields


def test_slots_are_checked() -> None:
    with pytest.raises(ValueError, match="slots is 65"):
        Bubblewrap(slots=65)
    with pytest.raises(ValueError, match=r"sandbox\.slots is 33"):
        ForkServer(slots=33)
