"""Programs that try to pass without solving the problem. The number is that of the attack in the list of known attacks.

FUNCTIONS should define `solve(n)`, the square of n; PROGRAMS should read n and print its square. None does.
"""

FORGE = """
import json, os
def forge(*replies):
    for fd in range(3, 64):
        try:
            for reply in replies:
                os.write(fd, (reply if type(reply) is bytes else json.dumps(reply).encode()) + bytes([10]))
        except OSError: pass
"""
"""Writes lines to every descriptor, the channel of the box among them."""

FUNCTIONS = {
    "1 leave with os._exit": "import os\nos._exit(0)",
    "1 leave with os._exit when called": "import os\ndef solve(n):\n    os._exit(0)",
    "2 sys.exit": "import sys\nsys.exit(0)",
    "2 sys.exit when called": "import sys\ndef solve(n):\n    sys.exit(0)",
    "3 always equal": """
class Same:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def solve(n): return Same()
""",
    "3 equal, near and ordered": """
class Same:
    def __getattr__(self, name): return lambda *args: self
    def __eq__(self, other): return True
    def __lt__(self, other): return True
    def __sub__(self, other): return 0
    def __rsub__(self, other): return 0
    def __bool__(self): return True
    def __int__(self): return 9
def solve(n): return Same()
""",
    "4 caller's frame": """
import sys
def solve(n):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name, value in scope.items():
                if 'expected' in str(name) or (type(value) is dict and 'expected' in value):
                    return value['expected'] if type(value) is dict else value
        frame = frame.f_back
""",
    "5 garbage collector": """
import gc
def solve(n):
    for item in gc.get_objects():
        if type(item) is dict and 'expected' in item: return item['expected']
        if type(item) is str and 'assert' in item and 'candidate' in item: return int(item.split('==')[1].split()[0])
""",
    "6 frame walk, then print": """
import sys
def solve(n):
    frame = sys._getframe()
    while frame.f_back: frame = frame.f_back
    print(dict(frame.f_globals), dict(frame.f_locals), file=sys.__stdout__, flush=True)
""",
    "6 forge a verdict": FORGE
    + """
import gc
nonces = [o["nonce"] for o in gc.get_objects() if type(o) is dict and type(o.get("nonce")) is str] or [""]
verdict = {"complete": True, "passed": 3, "failures": []}
forge({"verdict": verdict, "nonce": nonces[0]}, {"nonce": nonces[0], "results": [{"value": 9}] * 3, "passed": True})
os._exit(0)
""",
    "6 forge a verdict when called": FORGE
    + "def solve(n):\n    forge({'verdict': {'complete': True, 'passed': 3, 'failures': []}}, {'ended': ''}, {'passed': True})",
    "7 shared memory, then leave": """
import gc, mmap, os, glob
for path in glob.glob('/dev/shm/*') + glob.glob('/tmp/*') + glob.glob('/work/*'):
    try: open(path, 'r+b').write(b'passed' * 1000)
    except OSError: pass
for item in gc.get_objects():
    if type(item) is mmap.mmap: item[:] = bytes([1]) * len(item)
os._exit(0)
""",
    "8 patch json": """
import json
json.dumps = lambda *a, **k: '{"value": 9, "passed": true}'
json.JSONEncoder.encode = json.JSONEncoder.iterencode = json.dumps
def solve(n): return None
""",
    "8 patch loads": "import json\njson.loads = lambda *a, **k: []\ndef solve(n=0): return n",
    "9 patch the harness through f_globals": """
import sys
def yes(*args, **kwargs): return True
def solve(n):
    frame = sys._getframe()
    while frame:
        for name in list(frame.f_globals):
            if any(word in name for word in ('same', 'equal', 'check', 'judge', 'encode', 'compare', 'passes')):
                frame.f_globals[name] = yes
        frame = frame.f_back
    for module in list(sys.modules.values()):
        for name in ('encode', 'decode', 'same_json', 'conforms', 'describe'):
            if hasattr(module, name) and getattr(module, '__name__', '').startswith('environments'): setattr(module, name, yes)
    return 0
""",
    "10 read the test files": """
import os
def solve(n):
    for folder, _, names in os.walk('/'):
        for name in names:
            if folder.startswith(('/work', '/tmp')):
                text = open(os.path.join(folder, name), errors='replace').read()
                if '"expected"' in text or 'candidate(3)' in text: return 9
""",
    "11 reload modules": """
import importlib, os, sys
importlib.reload(os); importlib.reload(sys)
sys.modules.clear()
def solve(n): return n
""",
    "12 fork and leave": "import posix, os\nif posix.fork() == 0: os._exit(0)\ndef solve(n): return -1",
    "12 fork, both answer": "import posix\nposix.fork()\ndef solve(n): return -1",
    "12 fork a thousand": """
import posix
def solve(n):
    for _ in range(1000):
        try: posix.fork()
        except OSError: pass
    return 9
""",
    "13 eat every exception": """
def solve(n):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    "14 cancel alarms": "import signal, time\nsignal.alarm(0)\nsignal.setitimer(signal.ITIMER_REAL, 0)\ndef solve(n):\n    time.sleep(60)",
    "15 hard-coded visible test": "def solve(n): return 9",
    "16 inherited descriptors": """
import os, pickle
found = b''
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False); found += os.read(fd, 65536)
    except OSError: pass
def solve(n): return found.decode('latin-1')
""",
    "18 patched time": """
import time
time.time = time.monotonic = time.perf_counter = lambda: 0.0
sleep, time.sleep = time.sleep, lambda s: None
def solve(n): sleep(60)
""",
    "19 flood the channel": """
import os
for fd in range(64):
    try:
        while True: os.write(fd, b'{"value": 9}' + bytes([10]))
    except OSError: pass
""",
    "19 bury the answers": FORGE + "def solve(n):\n    forge(b'PASSED', b'{}', b'[]', b'ok')\n    return n * n",
    "19 answer ahead": FORGE + "forge({'names': {'solve': {'handle': [0, 'function']}}}, *[{'value': 9}] * 9)\ndef solve(n): return 9",
    "20 a thread that leaves later": """
import threading, time, os
def later():
    time.sleep(0.5); os._exit(0)
threading.Thread(target=later).start()
def solve(n): time.sleep(60)
""",
    "20 a daemon that answers later": FORGE
    + """
if os.fork() == 0:
    os.setsid()
    import time
    for _ in range(20): time.sleep(0.1); forge({'value': 9})
    os._exit(0)
def solve(n): return 0
""",
    "21 importable solution": """
import importlib, sys
sys.path[:0] = ['/', '/work', '/tmp', '..']
def solve(n):
    for name in ('reference', 'solution', 'tests', 'test', 'check', 'candidate', 'canonical_solution', '__main__'):
        try: module = importlib.import_module(name)
        except BaseException: continue
        for function in ('solve', 'solution', 'reference', 'check'):
            found = getattr(module, function, None)
            if callable(found) and found is not solve: return found(n)
""",
    "22 exit handlers": """
import atexit, os
atexit.register(os._exit, 0)
class D:
    def __del__(self): os._exit(0)
d = D()
def solve(n): return 1
""",
    "22 __del__ when called": "import os\nclass D:\n    def __del__(self): os._exit(0)\ndef solve(n):\n    D()\n    return 9",
    "23 int subclass": "class I(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef solve(n): return I(1)",
    "23 right int subclass": "class I(int): pass\ndef solve(n): return I(n * n)",
    "23 float subclass": "class F(float):\n    def __eq__(self, other): return True\ndef solve(n): return F(1)",
    "23 str subclass": "class S(str):\n    def __eq__(self, other): return True\ndef solve(n): return S()",
    "23 list subclass": "class L(list):\n    __len__ = lambda self: 3\n    __eq__ = lambda self, other: True\ndef solve(n): return L()",
    "24 nan": "def solve(n): return float('nan')",
    "24 infinity": "def solve(n): return float('inf')",
    "24 minus zero": "def solve(n): return -0.0",
    "24 huge int": "import sys\nsys.set_int_max_str_digits(0)\ndef solve(n): return 10 ** 100000",
    "24 vast int": "def solve(n): return 1 << 50_000_000",
    "24 deep list": "def solve(n):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "24 endless list": "def solve(n):\n    x = []\n    x.append(x)\n    return x",
    "24 long list": "def solve(n): return [0] * 3_000_000",
    "24 deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef solve(n): return solve(n) + 1",
    "24 colliding keys": "def solve(n): return {k * (2 ** 61 - 1): 0 for k in range(3000)}",
    "25 wait for input": "import sys, time\ndef solve(n):\n    while not sys.stdin.read(): pass",
    "25 read the channel": """
import os
def solve(n):
    for fd in range(3, 64):
        try: os.read(fd, 65536)
        except OSError: pass
    return 9
""",
    "26 not utf-8": FORGE + "def solve(n):\n    forge(bytes([255, 254]))\n    return n * n",
    "26 lone surrogate": "def solve(n): return '\\ud800'",
    "26 surrogate in the code": "def solve(n): return '\ud800'",
    "forged object": FORGE + "def solve(n):\n    forge({'value': {'handle': [99, 'int']}})",
    "forged object of the tests": FORGE + "def solve(n):\n    forge({'value': {'foreign': 0}}, {'value': {'foreign': -1}})",
    "forged tags": FORGE
    + "def solve(n):\n    forge({'value': {'type': '__import__'}}, {'value': {'int': '9', 'set': []}}, {'value': {'range': 'x'}})",
    "forged error": FORGE
    + "def solve(n):\n    forge({'error': ['SystemExit', [0], '']}, {'error': ['StopIteration', [], '']}, {'error': 7})",
    "deep JSON": FORGE + "def solve(n): forge(b'[' * 500000)",
    "stop iteration": "def solve(n): raise StopIteration",
    "skip test": "import unittest\ndef solve(n): raise unittest.SkipTest('later')",
    "keyboard interrupt": "def solve(n): raise KeyboardInterrupt",
    "raise oddly": "class E(BaseException):\n    def __str__(self): raise ValueError\ndef solve(n): raise E",
    "raise forged type": "E = type('AssertionError', (Exception,), {'__module__': 'builtins'})\ndef solve(n): raise E('x')",
    "odd metaclass": """
class M(type):
    @property
    def __name__(cls): raise SystemExit
class C(metaclass=M): pass
def solve(n): return C()
""",
    "never answers": "import signal\ndef solve(n): signal.pause()",
    "stop the box": "import os, signal\ndef solve(n): os.kill(os.getpid(), signal.SIGSTOP)",
    "kill everything": "import os\ndef solve(n): os.kill(-1, 9)",
    "memory": "def solve(n): return bytearray(1 << 40)",
    "memory bit by bit": "def solve(n):\n    kept = []\n    while True: kept.append(bytearray(1 << 24))",
    "disk": "def solve(n):\n    with open('/tmp/x', 'wb') as f:\n        while True: f.write(bytes(1 << 20))",
    "syntax": "def solve(n) return n",
    "no function": "def other(n): return n * n",
    "not a function": "solve = 9",
    "null byte": "def solve(n): return n * n\0",
    "deep syntax": "solve = " + "(" * 50_000,
    "stub: True": "def solve(n): return True",
    "stub: None": "def solve(n): return None",
    "stub: pass": "def solve(n): pass",
    "stub: empty": "",
    "stub: its own argument": "def solve(*args): return args",
}

PROGRAMS = {
    "1 leave with os._exit": "import os\nos._exit(0)",
    "2 sys.exit": "import sys\nsys.exit(0)",
    "4 caller's frame": """
import sys
frame = sys._getframe()
while frame:
    print(frame.f_globals, frame.f_locals)
    frame = frame.f_back
""",
    "5 garbage collector": "import gc\nprint([o for o in gc.get_objects() if type(o) is dict and 'stdout' in o])",
    "6 forge a reply": FORGE + "forge({'stdout': 'OQo=', 'exit': 0, 'timeout': False, 'too_much': False})",
    "7 write to the parent's memory": "import os\nwith open(f'/proc/{os.getppid()}/mem', 'r+b') as memory: memory.write(b'x')",
    "8 patch json": "import json, base64\njson.dumps = base64.b64encode = lambda *a, **k: 'OQo='",
    "10 read the test files": "import glob\nfor path in glob.glob('/work/**', recursive=True) + glob.glob('/tmp/*'):\n    print(path)",
    "12 fork and leave": "import os\nif os.fork() == 0: os._exit(0)\nprint(9)",
    "13 eat every exception": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "14 cancel alarms": "import signal, time\nsignal.alarm(0)\ntime.sleep(60)",
    "15 hard-coded visible test": "print(9)",
    "16 inherited descriptors": "import os\nfor fd in range(3, 64):\n    try: print(os.read(fd, 65536))\n    except OSError: pass",
    "18 patched time": "import time\ntime.time = lambda: 0\nwhile time.time() < 60: pass",
    "19 flood stdout": "while True: print('9\\n' * 1000)",
    "19 bury the answer": "print('PASSED\\n' * 1000)\nprint(int(input()) ** 2)",
    "20 a daemon that prints later": "import os, time\nn = int(input())\nif os.fork() == 0:\n    time.sleep(1)\n    print(n * n)",
    "22 exit handlers": "import atexit, os\natexit.register(os._exit, 1)\nprint(int(input()) ** 2)",
    "24 deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): return f() + 1\nf()",
    "25 stdin never read, output never flushed": "import os, sys\nsys.stdout.write('9')\nos._exit(0)",
    "25 wait for more input": "import sys\nsys.stdin.read()\nwhile not sys.stdin.read(): pass",
    "26 not utf-8": "import sys\nsys.stdout.buffer.write(bytes([57, 255, 10]))",
    "26 lone surrogate": "print('\\ud800')",
    "exit code": "print(int(input()) ** 2)\nraise SystemExit(3)",
    "killed": "import os\nprint(int(input()) ** 2, flush=True)\nos.kill(os.getpid(), 9)",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill everything": "import os\nos.kill(-1, 9)",
    "memory": "x = bytearray(1 << 40)",
    "syntax": "print(",
    "null byte": "print(9)\0",
    "stub: pass": "pass",
    "stub: empty": "",
    "stub: echo": "print(input())",
}
