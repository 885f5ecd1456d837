"""Programs whose traces are hard to get right, and programs that turn on the tracer's own functions."""

ODD = {
    "generators go on in the order of assignment": """
def gen(n):
    if n:
        late = [n]
    early = n
    late = {"k": early}
    got = yield late
    del early
    early = got, got
    yield early
    return n
def f():
    g = gen(1)
    next(g)
    h = gen(0)
    next(h)
    a = g.send("x")
    b = h.send(None)
    return list(g), list(h), a, b
""",
    "cells": """
def f():
    n, seen = 0, []
    def add(k):
        nonlocal n
        n += k
        seen.append(n)
    def drop():
        nonlocal n
        del n
    add(1)
    add(2)
    drop()
    n = "back"
    return n, seen
""",
    "locals() that is kept": """
import sys
def f():
    a = 1
    d = locals()
    b = [2]
    c = dict(d)
    d["e"] = 5
    a = d["a"]
    return sorted(c), a
""",
    "names among the locals that are none": """
import sys
class Key:
    def __hash__(self): return hash("b")
    def __eq__(self, other): raise SystemExit(9)
def gen():
    yield 1
    b = 2
    yield b
def f():
    g = gen()
    next(g)
    g.gi_frame.f_locals["zz"] = [1]
    g.gi_frame.f_locals[5] = 1
    next(g)
    sys._getframe().f_locals["x"] = 3
    x = 4
    y = [x]
    sys._getframe().f_locals["y"] = 7
    z = y
    del sys._getframe().f_locals["z"]
    return 1
""",
    "a mapping that is no dict": """
class Mapping(dict):
    def get(self, *words): raise SystemExit(9)
class Meta(type):
    @classmethod
    def __prepare__(cls, *words): return Mapping()
class A(metaclass=Meta):
    a = [1]
    a.append(2)
def g():
    v = [1]
    v.append(2)
def f():
    exec(g.__code__, {}, Mapping())
    exec("x = 1")
    class B:
        y = [A.a]
        y.append(3)
        def m(self): return __class__
    return B().m() is B
""",
    "values of every size": """
def f():
    for big in (2**31 - 1, 2**31, -2**31, -2**31 - 1, 2**63, 2**64 - 1, 2**64, -2**64, 2**70, 60, 62, True, None, 1.5, -0.0, 1j):
        one, many = big, [big, (big,), {big: big}]
        many.append(one)
    for text in ("", "\\xe9", "\\u20ac" * 40, "\\U0001f600", "\\ud800", *("x" * n for n in (1, 99, 100, 1000, 1001)), "<", b"<", b"\\xff"):
        one, many = text, [text, {text: text}]
        many.append(one)
        one = text
    nan = float("nan")
    nan = nan
    nans = [nan]
    deep = []
    for _ in range(300):
        deep = [deep]
    loop = []
    loop.append(loop)
    wide = list(range(1999))
    wide.append(1)
    wide.append(2)
    long = ["x" * 20000]
    long.append("y" * 20000)
    small = [[0] * 1500] * 2
    small.append(1)
    huge = []
    for _ in range(40):
        huge = [huge, huge]
    after = [[0] * 1500] * 2
    after.append(1)
    return -nan
""",
    "values that only look plain": """
import enum, collections, array, datetime, io
class N(int): pass
class S(str): pass
class L(list): pass
class D(dict):
    def __len__(self): raise SystemExit(9)
class Slots:
    __slots__ = ("a", "__dict__")
class Plain: pass
class Color(enum.IntEnum):
    RED = 1
def f():
    p = Plain()
    p.x = 1
    p.__dict__ = D(x=2)
    p.__dict__ = {"x": 3, "not a name": 4, 5: 6}
    q = Slots()
    q.a, q.b = 1, [2]
    for value in (
        *(N(1), S("a"), L([1]), D(a=1), Color.RED, {1}, frozenset((2,)), bytearray(b"x"), array.array("i", [1]), memoryview(b"x")),
        *(collections.OrderedDict(a=1), collections.deque([1]), range(3), ..., len, f, f.__code__, Plain, datetime.date(1, 1, 1)),
    ):
        box = [value]
        box.append(1)
        pair = {1: value}
        p.x = value
        one = value
    box = [b"x"]
    box[0] = bytearray(b"x")
    box[0] = b"x"
    p.self = p
    Plain.y = property(lambda self: 1 / 0)
    p.x = 1
    return 1
""",
    "instances whose classes change": """
class A:
    def __init__(self): self.x = [1]
class B: pass
def f():
    a = A()
    a.x.append(2)
    a.__class__ = B
    a.y = 1
    A.__qualname__ = "C"
    b = A()
    del b.x
    b.__dict__["z"] = (1, "z")
    c = [a, b]
    c.pop()
    return 1
""",
    "an exception without a line": """
def g():
    try:
        raise ExceptionGroup("g", [ValueError(1), KeyError("k")])
    except* ValueError as group:
        raise
def f():
    try:
        g()
    except ExceptionGroup as error:
        return len(error.exceptions)
""",
    "code objects that were made": """
def g(a, b):
    c = [a]
    c.append(b)
    return c
def f():
    code = g.__code__
    for made in (
        code.replace(co_firstlineno=100000), code.replace(co_varnames=("a", "a", "a")),
        code.replace(co_varnames=("x y", "<|frame_sep|>", "3")), code.replace(co_flags=code.co_flags & ~2),
    ):
        g.__code__ = made
        try:
            g(1, 2)
        except Exception as error:
            kind = type(error)
    return 1
""",
    "opcodes are traced": """
import sys
def f():
    sys._getframe().f_trace_opcodes = True
    a = [1]
    a += [2]
    return a
""",
    "many locals": "def f():\n" + "".join(f"    a{n} = [{n}]\n" for n in range(300)) + "    a7.append(1)\n    return a7\n",
    "coroutines": """
import asyncio
async def work(n):
    seen = []
    async with asyncio.Lock() as lock:
        async for k in count(n):
            seen.append(k)
            await asyncio.sleep(0)
    return seen
async def count(n):
    for k in range(n):
        yield k
async def f():
    return await asyncio.gather(work(2), work(3))
""",
}
"""Each defines f; compiled or not, the record is the same."""

_HEAD = """
import copy, gc, sys, threading
class A:
    def __init__(self): self.x = 1
def quiet(call, *words):
    try:
        return call(*words)
    except BaseException:
        return None
def g():
    return [1]
"""
ABUSES = {
    "calls them": """
def f():
    frame, tracer = sys._getframe(), sys.gettrace()
    for call in (tracer, frame.f_trace):
        for words in ((), (1, 2, 3), (frame,), (frame, 1, 2), (frame, "call", None), (frame, "line", None), (frame, "exception", 1),
                      (frame, "exception", (1, 2, 3)), (frame, "opcode", None), (g, "line", None)):
            quiet(call, *words)
            a = [words]
            a.append(1)
    quiet(frame.f_trace, frame, "return", a)
    return g()
""",
    "makes others": """
def f():
    for one in (sys.gettrace(), sys._getframe().f_trace):
        for call in (type(one), type(one).__call__, copy.copy, copy.deepcopy, vars, object.__reduce_ex__, object.__sizeof__):
            quiet(call, one)
            quiet(call)
        quiet(object.__new__, type(one))
        quiet(type, "B", (type(one),), {})
        quiet(setattr, one, "x", 1)
        quiet(setattr, one, "__class__", A)
        quiet(setattr, type(one), "x", 1)
    make = sys.modules["environments.traces.box_native"].make_tracer
    quiet(make)
    quiet(make, *[[]] * 17)
    quiet(make, [], *[g] * 9, "", g, 1, 1, 1, 1, 1)
    for sizes in ((1, 1, 1, 1, 1), (0, 0, 0, 0, 0), (-1, -1, -1, -1, -1), (2**40, 1, 1, 2**62, 2**62)):
        other = quiet(make, [], g, g, None, lambda code: (True, ("a",), (7,), ((-1, 2, (9,)),)), *[g] * 5, "program.py", g, *sizes)
        quiet(other, sys._getframe(), "call", None)
    for table in (0, (), (1, (), (), ()), (1, ("a",), (), ((0, 0, (0, "a")),)), (1, (1, 2), (), ((0, 2, (0, 1)), (5,)))):
        made = eval("lambda a: a", {}).__code__.replace(co_filename="program.py")
        other = quiet(make, [], g, g, None, lambda code: table, *[lambda *words: words] * 5, "program.py", g, 9, 9, 9, 9, 99)
        quiet(other, quiet(lambda: sys._getframe()), "call", None)
    return 1
""",
    "finalizers": """
class Loop:
    def __init__(self, frame, held):
        self.me, self.frame, self.held = self, frame, held
    def __del__(self):
        self.held.clear()
        self.frame.f_locals.clear()
        self.frame.f_trace = None
        self.held += [A(), [1]]
def f():
    gc.set_threshold(1)
    held, a = [[1], A()], {}
    for k in range(200):
        Loop(sys._getframe(), held)
        a[k] = A()
        held.append(str(k) * 9)
        b = [held, a, k]
        g()
    return 1
""",
    "other threads": """
def f():
    stop, a = [], [1, [2], {3: 4}]
    def work():
        while not stop:
            a.append([1] * 50)
            a[1], a[2] = a[2], a[1]
            del a[3:]
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for k in range(100):
        b = a
        a[0] = k
        c = A()
        c.x = b
    stop.append(1)
    for thread in threads:
        thread.join()
    return 1
""",
    "what the garbage collector knows": """
def f():
    a = A()
    a.x = [a]
    for one in gc.get_objects():
        if type(one) is dict and A in one.keys():
            one[A] = 5
        if type(one) is list and len(one) > 20 and type(one[-1]) in (int, str, bytes):
            one.extend(("a", "b", 1))
    for one in (sys.gettrace(), sys._getframe().f_trace):
        for other in gc.get_referents(one) + gc.get_referrers(one):
            if type(other) in (dict, list):
                other.clear()
    b = A()
    return [b, a]
""",
    "lets go of its function while it runs": """
def f():
    frame = sys._getframe()
    def drop(phase, info):
        if frame.f_trace is not None:
            quiet(frame.f_trace, frame, "return", [1])
            frame.f_trace = None
            held.clear()
    held, a = [[A()]], A()
    gc.callbacks.append(drop)
    gc.set_threshold(1)
    a.x = 2
    a.x = held
    a.x = 3
    return g()
""",
}
"""Each defines f; whatever its trace says, the process must not crash."""
ABUSES = {name: _HEAD + source for name, source in ABUSES.items()}
