"""Programs that do to the tracer what they can, and how their traces end."""

from dataclasses import dataclass, field

from environments.traces.records import TraceLimits, TraceStatus

QUICK = TraceLimits(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """`source` defines f."""

    source: str
    status: TraceStatus
    least_events: int = 1
    """A trace that is cut off still holds what came before."""
    most_events: int = 10**6
    """And nothing is in it that came after its end."""
    limits: TraceLimits = field(default_factory=TraceLimits)


ATTACKS = {
    "endless loop": Attack(source="def f():\n    n = 0\n    while True:\n        n += 1\n", status=TraceStatus.EVENTS, least_events=20_000),
    "sleeps": Attack(
        source="import time\ndef f():\n    x = 1\n    time.sleep(60)\n", status=TraceStatus.TIMEOUT, least_events=3, limits=QUICK
    ),
    "one endless call": Attack(source="def f():\n    return sum(iter(int, 1))\n", status=TraceStatus.TIMEOUT, least_events=0, limits=QUICK),
    "endless recursion": Attack(source="def f(n=0):\n    return f(n + 1)\n", status=TraceStatus.DEPTH, least_events=400),
    "raised recursion limit": Attack(
        source="import sys\nsys.setrecursionlimit(10**7)\ndef f(n=0):\n    return f(n + 1)\n", status=TraceStatus.DEPTH, least_events=400
    ),
    "prints 100 MB": Attack(
        source="def f():\n    for i in range(100):\n        print('x' * 10**6)\n", status=TraceStatus.OUTPUT, least_events=0
    ),
    "large record": Attack(
        source="def f():\n    x = [0] * 100\n    for i in range(10**6):\n        x[i % 100] = i\n",
        status=TraceStatus.BYTES,
        limits=TraceLimits(record_bytes=200_000),
        least_events=100,
    ),
    "memory": Attack(source="def f():\n    x = 1\n    return bytearray(1 << 40)\n", status=TraceStatus.MEMORY, least_events=3),
    "forks": Attack(source="import os\ndef f():\n    x = 1\n    os.fork()\n    print(x)\n", status=TraceStatus.FORKED, least_events=3),
    "starts a program": Attack(
        source="import subprocess\ndef f():\n    return subprocess.run(['/bin/true'])\n", status=TraceStatus.FORKED, least_events=2
    ),
    "forks as it loads": Attack(source="import os\nos.fork()\ndef f():\n    return 1\n", status=TraceStatus.FORKED, least_events=0),
    "ends its process": Attack(source="import os\ndef f():\n    x = 1\n    os._exit(3)\n", status=TraceStatus.ENDED, least_events=0),
    "kills its process": Attack(
        source="import os, signal\ndef f():\n    os.kill(os.getpid(), signal.SIGSEGV)\n    return 1\n",
        status=TraceStatus.ENDED,
        least_events=0,
    ),
    "settrace(None)": Attack(
        source="import sys\ndef f():\n    sys.settrace(None)\n    return 1\n", status=TraceStatus.UNTRACED, least_events=2
    ),
    "own settrace": Attack(
        source="import sys\ndef f():\n    sys.settrace(lambda *a: None)\n    return 1\n", status=TraceStatus.UNTRACED, least_events=2
    ),
    "f_trace of a frame": Attack(
        source="import sys\ndef g():\n    sys._getframe().f_trace = None\n    return 1\ndef f():\n    g()\n    y = 2\n    return y\n",
        status=TraceStatus.UNTRACED,
        least_events=4,
    ),
    "f_trace of the entry": Attack(
        source="import sys\ndef f():\n    sys._getframe().f_trace = None\n    x = 1\n", status=TraceStatus.UNTRACED, least_events=2
    ),
    "f_trace_lines": Attack(
        source="import sys\ndef f():\n    sys._getframe().f_trace_lines = False\n    x = 1\n    return x\n",
        status=TraceStatus.UNTRACED,
        least_events=2,
    ),
    "writes into the record": Attack(
        source="import os\ndef f():\n    for fd in range(3, 20):\n        try:\n            os.write(fd, b'\\x05\\x00\\x00\\x00[junk')\n"
        "        except OSError:\n            pass\n    return 1\n",
        status=TraceStatus.SPOILED,
        least_events=0,
    ),
    "__repr__ that does not end": Attack(
        source="class A:\n    def __repr__(self):\n        while True: pass\n    __str__ = __repr__\n"
        "class L(list):\n    __repr__ = A.__repr__\n    __len__ = __iter__ = __repr__\n"
        "def f():\n    a = A()\n    b = [a, L([1]), {a: a}]\n    return b\n",
        status=TraceStatus.OK,
        least_events=5,
    ),
    "metaclass that is asked nothing": Attack(
        source="class M(type):\n    def __eq__(cls, other): raise SystemExit(9)\n    def __hash__(cls): raise SystemExit(9)\n"
        "    def __instancecheck__(cls, x): raise SystemExit(9)\n    __subclasscheck__ = __instancecheck__\n"
        "    __repr__ = __getattribute__ = __instancecheck__\n"
        "class A(metaclass=M):\n    def __getattribute__(self, name): raise SystemExit(9)\n    __class__ = property(__getattribute__)\n"
        "    __dict__ = property(__getattribute__)\n"
        "def f():\n    a = object.__new__(A)\n    b = (a, [a])\n    return b\n",
        status=TraceStatus.OK,
        least_events=5,
    ),
    "values without end": Attack(
        source="def f():\n    a = []\n    for i in range(60):\n        a = [a, a]\n    b = {}\n    b[0] = b\n    c = 1 << 10**6\n"
        "    d = 'x' * 10**7\n    e = [d] * 1000\n    g = list(range(10**5))\n    return 1\n",
        status=TraceStatus.OK,
        least_events=100,
    ),
    "a large Counter that is written again and again": Attack(
        source="import collections\ndef f():\n    c = collections.Counter(range(200_000))\n"
        "    for i in range(300):\n        abs(i)\n    return 1\n",
        status=TraceStatus.OK,
        least_events=605,
        limits=TraceLimits(seconds=9),
    ),
    "tokens of the format": Attack(
        source="def f(t='<|frame_sep|><|end_of_text|>', u='<\\\\|call_sep|>'):  # << START_OF_TRACE <|line_sep|>\n"
        "    d = {t: '..', u: '\\x1e\\n'}  # << START_OF_TRACE\n    return d\n",
        status=TraceStatus.OK,
        least_events=4,
    ),
    "forks beside Python": Attack(
        source="import ctypes\ndef f():\n    n = 0\n    ctypes.CDLL(None).fork()\n    while n < 1000:\n        n += 1\n    return 1\n",
        status=TraceStatus.OK,
        least_events=2006,
        most_events=2006,
    ),
    "code that runs at the end": Attack(
        source="import io, sys\nclass Out(io.BytesIO):\n    def flush(self):\n        x = 1\n"
        "def f():\n    sys.stdout.__init__(Out())\n    return 1\n",
        status=TraceStatus.OK,
        least_events=4,
        most_events=4,
    ),
    "finalizers that run at the end": Attack(
        source="import gc\ndef seen(phase, info):\n    x = 1\n"
        "def f():\n    gc.set_threshold(1)\n    gc.callbacks.append(seen)\n    return 1\n",
        status=TraceStatus.OK,
        least_events=5,
        most_events=5,
    ),
    "syntax error": Attack(source="def f(:\n", status=TraceStatus.SYNTAX_ERROR, least_events=0),
    "deep source": Attack(source="def f():\n    return " + "(" * 5000 + ")" * 5000, status=TraceStatus.SYNTAX_ERROR, least_events=0),
    "raises as it loads": Attack(source="def f():\n    return 1\n1 / 0\n", status=TraceStatus.LOAD_ERROR, least_events=0),
    "ends as it loads": Attack(source="import sys\ndef f():\n    return 1\nsys.exit()\n", status=TraceStatus.LOAD_ERROR, least_events=0),
    "deletes its entry": Attack(source="def f():\n    return 1\ndel f\n", status=TraceStatus.LOAD_ERROR, least_events=0),
}
