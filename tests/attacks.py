"""Hostile programs that take more than their share, and what the executions of hostile programs must look like.

Placeholders such as HOSTFILE stand for things of the host (see `sandbox_host.py`). A program that gets what it must not have prints
GOT. The number of cases is stated in docs/sandbox.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from environments.sandbox.base import Execution, Limits

SECRET = "swordfish-of-the-host"
TIGHT = Limits(wall_seconds=1.5, cpu_seconds=1, memory_mb=128, processes=8, disk_mb=4)
PATIENT = replace(TIGHT, wall_seconds=30.0)
"""For programs that come to their own end, however busy the machine is."""
CALL = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    print("GOT" if result >= 0 else errno.errorcode[ctypes.get_errno()])
"""
READ = """
def read(path):
    try:
        print("GOT", path, open(path, "rb").read(4096))
    except OSError as error:
        print("refused", path, type(error).__name__)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """One hostile program."""

    program: str
    killed_by: frozenset[str | None] = frozenset({None})
    """Allowed verdicts."""
    prints: str | None = None
    """What stdout must hold; GOT must never be there."""
    at_most: int | None = None
    """Largest integer that stdout may be."""

    @property
    def limits(self) -> Limits:
        return TIGHT if "wall" in self.killed_by else PATIENT


def stopped(program: str, *by: str | None) -> Attack:
    return Attack(program=program, killed_by=frozenset(by))


def denied(program: str) -> Attack:
    """Whatever it prints, GOT is not in it; it comes to its own end, which it marks."""
    return Attack(program=program + "\nprint('end')", prints="end")


def counted(program: str, limit: int) -> Attack:
    return Attack(program=program, at_most=limit)


SPIN = """\
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
"""
KILLED = ("wall", "cpu", "memory", "kernel")

RESOURCES: dict[str, Attack] = {
    # processes
    "fork bomb": stopped(
        """\
import os
while True:
    try: os.fork()
    except OSError: pass""",
        *KILLED,
    ),
    "fork bomb that ends": counted(
        """\
import os, time
n = 0
try:
    while True:
        if os.fork() == 0: time.sleep(60)
        n += 1
except OSError: print(n, flush=True)
os._exit(0)""",
        8,
    ),
    "thread bomb": counted(
        """\
import threading, time, os
n = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        n += 1
except RuntimeError: print(n, flush=True)
os._exit(0)""",
        8,
    ),
    "fork bomb through posix": counted(
        """\
import os, posix, time
del os.fork
n = 0
try:
    while True:
        if posix.fork() == 0: time.sleep(60)
        n += 1
except OSError: print(n, flush=True)
os._exit(0)""",
        8,
    ),
    "daemon with setsid": Attack(
        program="""\
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3): os.close(fd)
        time.sleep(60)
    os._exit(0)
print('end')""",
        prints="end",
    ),
    "zombies": Attack(
        program="""\
import os
for _ in range(5):
    if os.fork() == 0: os._exit(0)
print('end')""",
        prints="end",
    ),
    "kill everything": denied("""\
import os, signal
try: os.kill(-1, 9)
except OSError: pass"""),
    "kill pid 1": denied("""\
import os
for s in (9, 15, 19):
    try: os.kill(1, s)
    except OSError: pass"""),
    "kill other pids": denied("""\
import os
for pid in range(1, 5000):
    if pid not in (1, os.getpid()):
        try:
            os.kill(pid, 9)
            print('GOT', pid)
        except OSError: pass"""),
    # memory
    "memory bomb": counted(
        """\
a = []
try:
    while True: a.append(bytearray(1 << 20))
except MemoryError:
    n = len(a)
    del a
    print(n)""",
        128,
    ),
    "memory bomb of children": stopped(
        """\
import os, time
for _ in range(6):
    if os.fork() == 0:
        a = []
        while True:
            try: a.append(bytearray(1 << 20))
            except MemoryError: time.sleep(60)
os.wait()
print('a child ended')""",
        *KILLED,
        None,
    ),
    "memory by mmap": denied("""\
import mmap
try:
    m = mmap.mmap(-1, 1 << 30)
    print('GOT')
except (OSError, MemoryError): pass"""),
    "memory file": denied("""\
import os
try:
    os.memfd_create('x')
    print('GOT')
except OSError: pass"""),
    "/dev/shm": denied("""\
try:
    open('/dev/shm/x', 'wb')
    print('GOT')
except OSError: pass"""),
    "System V shared memory": denied(CALL + "call(29, 0, 1 << 30, 0o1600)"),
    "message queues": denied(CALL + "call(68, 0, 0o1600); call(240, b'q', 0o102, 0o600, None)"),
    "deep recursion in C": Attack(
        program="""\
import sys
sys.setrecursionlimit(10**9)
def f(): return f()
f()""",
        killed_by=frozenset({None, "memory", "kernel", "cpu", "wall"}),
    ),
    # time
    "spin": stopped(SPIN, "cpu", "wall", "kernel"),
    "sleep": stopped(
        """\
import time
time.sleep(60)""",
        "wall",
    ),
    "stop itself": stopped(
        """\
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
import time
time.sleep(60)""",
        "wall",
    ),
    "alarm cleared": stopped(
        """\
import signal, time
signal.alarm(0)
signal.setitimer(signal.ITIMER_REAL, 0)
time.sleep(60)""",
        "wall",
    ),
    "exceptions eaten": stopped(
        """\
while True:
    try:
        while True: pass
    except BaseException: pass""",
        "cpu",
        "wall",
        "kernel",
    ),
    "raised limits": denied("""\
import resource
for name in ('CPU', 'AS', 'NPROC', 'FSIZE', 'NOFILE', 'CORE'):
    number = getattr(resource, 'RLIMIT_' + name)
    try:
        resource.setrlimit(number, (resource.RLIM_INFINITY,) * 2)
        print('GOT', name)
    except (ValueError, OSError): pass"""),
    "raised priority": denied("""\
import os
try:
    os.nice(-5)
    print('GOT')
except OSError: pass"""),
    # disk and output
    "disk fill": counted(
        """\
n = 0
try:
    for i in range(9):
        with open(f'/work/{i}', 'wb', buffering=0) as f:
            for _ in range(3): n += f.write(bytes(1 << 20))
except OSError: pass
print(n >> 20)""",
        4,
    ),
    "disk fill of /tmp": counted(
        """\
n = 0
try:
    for i in range(9):
        with open(f'/tmp/{i}', 'wb', buffering=0) as f:
            for _ in range(3): n += f.write(bytes(1 << 20))
except OSError: pass
print(n >> 20)""",
        4,
    ),
    "200k inodes": Attack(
        program="""\
import os
n = 0
try:
    while n < 200_000:
        os.close(os.open(f'/work/{n}', os.O_CREAT | os.O_WRONLY))
        n += 1
except OSError: pass
print(n)""",
        killed_by=frozenset({None, "cpu", "wall", "kernel"}),
        at_most=8192,
    ),
    "writes outside": denied("""\
import os
for path in ('/x', '/usr/x', '/usr/bin/python3', '/etc/x', '/dev/x', '/bin/sh', os.__file__):
    try:
        open(path, 'ab')
        print('GOT', path)
    except OSError: pass"""),
    "50 MB of stdout": stopped(
        """\
import os
for _ in range(50): os.write(1, bytes(1 << 20))""",
        "output",
    ),
    "50 MB of stderr": stopped(
        """\
import os
for _ in range(50): os.write(2, bytes(1 << 20))""",
        "output",
    ),
    "output of children": stopped(
        """\
import os
for _ in range(3): os.fork()
while True: os.write(1, b'x' * 65536)""",
        "output",
    ),
    "core dump": denied("""\
import os
if os.fork() == 0: os.abort()
os.wait()
print([n for n in os.listdir('.') if 'core' in n and print('GOT')])"""),
}
BYTES: dict[str, bytes] = {
    "NUL bytes": b"print('GOT')\x00",
    "no UTF-8": b"# \xff\xfe\nprint('GOT')",
    "a codec bomb": b"# coding: no_such_codec\nprint('GOT')",
    "10 MB of brackets": b"(" * 10_000_000,
}


def faults(attack: Attack, execution: Execution) -> Iterator[str]:
    stdout = execution.stdout.decode(errors="replace")
    if execution.killed_by not in attack.killed_by:
        yield f"killed by {execution.killed_by}, exit code {execution.exit_code}, {stdout[-300:]!r} {execution.stderr[-500:]!r}"
    if "GOT" in stdout or SECRET in stdout or SECRET.encode() in execution.stderr:
        yield f"it got something: {stdout[-500:]!r}"
    if attack.prints is not None and attack.prints not in stdout:
        yield f"printed {stdout[-300:]!r}, {execution.stderr[-500:]!r}"
    if attack.at_most is not None and execution.killed_by is None and not (0 < int(stdout) <= attack.at_most):
        yield f"got {stdout.strip()} of at most {attack.at_most}"
    if len(execution.stdout) + len(execution.stderr) > TIGHT.output_bytes:
        yield "output beyond its cap"
