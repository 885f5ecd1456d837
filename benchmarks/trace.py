"""The tracer's cost a traced event, and the speed of writing and parsing trace texts.

    python benchmarks/trace.py [--rounds 9] [--scale 1]

Each workload runs plainly, under a bare `sys.settrace` that only counts events, and under the tracer, compiled and in Python alone, with
its record written to /dev/null; the sides take turns, and the medians over rounds of their processor time are compared. The workloads
are ordinary short programs: numbers, lists, dicts, strings, calls, recursion, objects. Prints one JSON line.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import print_result
from environments.traces.box_events import FILE, make_tracer
from environments.traces.box_record import Channel
from environments.traces.box_values import Shown
from environments.traces.native import native_library
from environments.traces.read import read_record
from environments.traces.records import Trace, TraceLimits
from environments.traces.text import parse_trace, render_trace

SOURCE = """
def numbers(n):
    total = 0
    for i in range(n):
        x = i * 3
        if x % 2:
            total += x
        else:
            total -= i
    return total


def lists(n):
    found = []
    for i in range(n):
        if i % 3 == 0:
            found.append(i % 7)
        if len(found) > 10:
            found = found[5:]
    return sorted(found)


def counts(n):
    words = ["red", "green", "blue", "red"]
    seen = {}
    for i in range(n):
        word = words[i % 4]
        seen[word] = seen.get(word, 0) + 1
    return seen


def text(n):
    out = ""
    for i in range(n):
        letter = chr(97 + i % 26)
        if letter in "aeiou":
            letter = letter.upper()
        out = (out + letter)[-20:]
    return out


def fib(n):
    if n < 2:
        return n
    return fib(n - 1) + fib(n - 2)


def recursion(n):
    total = 0
    while total < n:
        total += fib(8)
    return total


class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)
        if len(self.items) > 8:
            self.items.pop(0)
        return len(self.items)


def objects(n):
    stack = Stack()
    size = 0
    for i in range(n):
        size = stack.push(i)
    return size
"""
WORKLOADS = {"numbers": 3000, "lists": 3000, "counts": 3000, "text": 3000, "recursion": 800, "objects": 1500}
"""Function of SOURCE: its argument."""
SHOWN = Shown(chars=1000, buffers=False)


def seconds(call: Callable[[int], Any], size: int, tracer: Any) -> float:
    sys.settrace(tracer)
    started = time.process_time()
    call(size)
    took = time.process_time() - started
    sys.settrace(None)
    return took


def make_counter() -> tuple[Any, list[int]]:
    """The cheapest tracer that does anything."""
    count = [0]

    def on_event(frame: Any, event: str, arg: Any) -> Any:
        count[0] += 1
        return on_event

    return on_event, count


def load_native() -> Any:
    """The compiled module, in this process."""
    spec = importlib.util.spec_from_file_location("box_native", native_library())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(name: str, size: int, *, rounds: int, native: Any) -> dict[str, float]:
    """Medians of one workload, in nanoseconds an event, and the ratios to the bare tracer."""
    namespace: dict[str, Any] = {}
    exec(compile(SOURCE, FILE, "exec"), namespace)
    call = namespace[name]
    null = os.open("/dev/null", os.O_WRONLY)
    counter, count = make_counter()
    times: dict[str, list[float]] = {"plain": [], "bare": [], "tracer": [], "python": []}
    for _ in range(rounds):
        count[0] = 0
        tracer, python = (
            make_tracer(Channel(null, events=10**9, record_bytes=10**12), depth_limit=200, shown=SHOWN, included=None, native=kind)
            for kind in (native, None)
        )
        for side, function in (("plain", None), ("bare", counter), ("tracer", tracer), ("python", python)):
            times[side].append(seconds(call, size, function))
    os.close(null)
    medians = {side: statistics.median(took) for side, took in times.items()}
    return {
        "events": count[0],
        **{f"{side}_ns": took / count[0] * 1e9 for side, took in medians.items()},
        "times_bare": medians["tracer"] / medians["bare"],
        "times_plain": medians["tracer"] / medians["plain"],
        "python_times_bare": medians["python"] / medians["bare"],
    }


def record(name: str, size: int, folder: Path) -> tuple[bytes, Trace]:
    """One workload's record, and its trace."""
    namespace: dict[str, Any] = {}
    exec(compile(SOURCE, FILE, "exec"), namespace)
    path = folder / name
    writing = os.open(path, os.O_WRONLY | os.O_CREAT)
    channel = Channel(writing, events=10**9, record_bytes=10**12)
    sys.settrace(make_tracer(channel, depth_limit=200, shown=SHOWN, included=None))
    namespace[name](size)
    sys.settrace(None)
    channel.flush()
    os.close(writing)
    data = path.read_bytes()
    found = read_record(data, lines=SOURCE.split("\n"), first_line=1, limits=TraceLimits(events=10**6))
    return data, Trace(source=SOURCE, entry_line=2, events=found.events, complete=True)


def frame_rates(*, rounds: int) -> dict[str, float]:
    """Frames a second of reading records, of writing texts and of parsing them, over all workloads."""
    with tempfile.TemporaryDirectory() as folder:
        found = [record(name, 60, Path(folder)) for name in WORKLOADS]
    traces = [trace for _, trace in found]
    frames = sum(len(trace.events) for trace in traces)
    texts = [render_trace(trace) for trace in traces]
    assert [parse_trace(text) for text in texts] == traces
    lines = SOURCE.split("\n")
    sides: dict[str, Callable[[], object]] = {
        "frames_per_s_read": lambda: [read_record(data, lines=lines, first_line=1, limits=TraceLimits()) for data, _ in found],
        "frames_per_s_written": lambda: [render_trace(trace) for trace in traces],
        "frames_per_s_parsed": lambda: [parse_trace(text) for text in texts],
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.process_time()
            side()
            times[name].append(time.process_time() - started)
    return {name: frames / statistics.median(took) for name, took in times.items()}


def main(*, rounds: int, scale: float) -> None:
    native = load_native()
    found = {name: compare(name, int(size * scale), rounds=rounds, native=native) for name, size in WORKLOADS.items()}
    print_result(
        benchmark="trace",
        events_per_s=round(statistics.median(1e9 / figures["tracer_ns"] for figures in found.values())),
        times_bare=round(statistics.median(figures["times_bare"] for figures in found.values()), 2),
        python_times_bare=round(statistics.median(figures["python_times_bare"] for figures in found.values()), 2),
        times_plain=round(statistics.median(figures["times_plain"] for figures in found.values()), 1),
        workloads={name: {key: round(value, 2) for key, value in figures.items()} for name, figures in found.items()},
        rounds=rounds,
        **{name: round(value) for name, value in frame_rates(rounds=rounds).items()},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    main(rounds=arguments.rounds, scale=arguments.scale)
