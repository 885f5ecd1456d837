"""Traces of the reference solutions of real data sets: are they valid, do they round-trip, and do they tell the truth?

    python benchmarks/trace_data.py DATA_FOLDER [--limit N]

Each reference of humaneval.jsonl, mbpp.jsonl and cruxeval.jsonl is called as `environments/traces/programs.py` says: with the arguments of
its first test, or, where no test has plain arguments, by all tests. The value is compared with that of a run without any tracer; every
local and every returned value of a plain built-in type with its `repr` in a second tracer of a few lines, which looks at everything at
each event; the value with CRUXEval's own output; the record of the compiled tracer, byte by byte, with that of Python alone. Prints one
JSON line; what disagrees goes to stderr.
"""

import argparse
import ast
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.machine import print_result
from environments.sandbox.base import Execution, Limits, Sandbox
from environments.sandbox.make import make_sandbox
from environments.traces.difficulty import LEVELS, measure
from environments.traces.programs import TraceProgram, read_programs
from environments.traces.records import WHOLE, Recording, TraceLimits
from environments.traces.text import parse_trace, render_trace
from environments.traces.tracer import record_trace

LIMITS = TraceLimits(events=200_000, seconds=30)
SECOND_TRACER = b"""
import ast, json, os, sys
if len(sys.argv) < 2:
    os.execve(sys.executable, [sys.executable, "-sPB", "-X", "utf8", "/tmp/main.py", "again"], {"PYTHONHASHSEED": "0"})
call = json.load(open("/work/call.json"))
def plain(value):
    if type(value) in (list, tuple):
        return all(plain(item) for item in value)
    if type(value) is dict:
        return all(plain(item) for pair in value.items() for item in pair)
    return value is None or type(value) in (int, str, float, bool)
def text(value):
    try:
        return repr(value) if plain(value) and len(repr(value)) <= 1000 else None
    except ValueError:
        return None
events = []
def follow(frame, event, arg):
    if frame.f_code.co_filename != "program.py":
        return None
    if len(events) < 200000:
        state = {n: text(v) for n, v in frame.f_locals.items()} if event in ("call", "line") else text(arg) if event == "return" else None
        events.append((event, frame.f_lineno, state))
    return follow
out = os.dup(1)
os.dup2(os.open("/dev/null", os.O_RDWR), 1)
names = {"__name__": "program"}
exec(compile(call["source"], "program.py", "exec"), names)
entry, args = names[call["entry"]], ast.literal_eval(call["args"])
sys.settrace(follow)
try:
    value = entry(*args)
    list(value) if hasattr(value, "gi_frame") else None
except BaseException:
    pass
sys.settrace(None)
data = json.dumps(events).encode()
while data:
    data = data[os.write(out, data):]
"""


class Kept:
    """A sandbox that keeps the last record."""

    def __init__(self, sandbox: Sandbox, *, native: bool) -> None:
        """`native`: whether the compiled tracer goes into the box."""
        self._sandbox, self._native = sandbox, native
        self.record = b""

    async def run(self, source: bytes, *, files: Mapping[str, bytes], limits: Limits | None = None) -> Execution:
        there = {name: content for name, content in files.items() if self._native or "box_native" not in name}
        assert self._native == any("box_native" in name for name in there), "the compiled tracer could not be built"
        execution = await self._sandbox.run(source, files=there, limits=limits)
        self.record = execution.stdout
        return execution


async def second_events(program: TraceProgram, source: str, sandbox: Sandbox) -> list[Any]:
    limits = Limits(output_bytes=256 << 20, wall_seconds=60, cpu_seconds=50, memory_mb=2048)
    call = {"source": source, "entry": program.entry, "args": program.args}
    execution = await sandbox.run(SECOND_TRACER, files={"call.json": json.dumps(call).encode()}, limits=limits)
    events: list[Any] = json.loads(execution.stdout)
    return events


def differences(recording: Recording, second: list[Any]) -> list[str]:
    """Where the second tracer saw something else."""
    events = recording.trace.events
    if recording.status in WHOLE and len(events) != len(second):
        return [f"{len(events)} events, not {len(second)}"]
    found = []
    for number, (event, (kind, line, state)) in enumerate(zip(events, second, strict=False)):
        if (event.kind, event.line_no) != (kind, line):
            found.append(f"event {number} is {event.kind} of line {event.line_no}, not {kind} of {line}")
        elif event.locals is not None:
            if list(event.locals) != list(state):
                found.append(f"event {number} shows {list(event.locals)}, not {list(state)}")
            found += [
                f"event {number}: {name} is {event.locals.get(name)}, not {text}"
                for name, text in state.items()
                if text is not None and event.locals.get(name) != text
            ]
        elif state is not None and event.value != state:
            found.append(f"event {number}: value {event.value}, not {state}")
    return found[:3]


def same(value: str | None, expected: str) -> bool:
    try:
        return bool(ast.literal_eval(value or "") == ast.literal_eval(expected))
    except (ValueError, SyntaxError):
        return value == expected


async def check(name: str, folder: Path, *, limit: int, sandbox: Sandbox) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    levels: Counter[str] = Counter()
    places = asyncio.Semaphore(2)

    async def one(row: TraceProgram) -> None:
        async with places:
            program = row.program
            compiled, python = (Kept(sandbox, native=native) for native in (True, False))
            recording = await record_trace(program, sandbox=compiled, limits=LIMITS)
            await record_trace(program, sandbox=python, limits=LIMITS)
            again = await record_trace(program, sandbox=sandbox, limits=LIMITS)
            plain = await record_trace(program, sandbox=sandbox, limits=LIMITS, trace=False)
            wrong = differences(recording, await second_events(row, recording.trace.source, sandbox))
        text = render_trace(recording.trace)
        statuses[recording.status] += 1
        levels[measure(recording.trace).level] += 1
        checks = {
            "round_trip": parse_trace(text) == recording.trace and render_trace(parse_trace(text)) == text,
            "repeats": again.trace == recording.trace,
            "value_as_plain": (recording.value, recording.stdout) == (plain.value, plain.stdout) and recording.status == plain.status,
            "locals_as_second_tracer": not wrong,
            "record_as_python": compiled.record == python.record != b"",
            **({} if row.value is None else {"value_as_data": same(recording.value, row.value)}),
        }
        counts.update({"programs": 1, "events": recording.n_events, "characters": len(text), "valid": recording.status in WHOLE})
        counts.update({key: int(held) for key, held in checks.items()})
        failed = [key for key, held in checks.items() if not held]
        if failed or recording.status not in WHOLE:
            print(f"{row.id}: {recording.status} {recording.reason[:80]} {failed} {wrong}", file=sys.stderr)

    await asyncio.gather(*map(one, islice(read_programs(folder / f"{name}.jsonl", form=name), limit)))
    return {**counts, "statuses": dict(statuses), "levels": {level: levels[level] for level in LEVELS}}


async def main(folder: Path, *, limit: int) -> None:
    sandbox = make_sandbox()
    started = time.perf_counter()
    try:
        sets = {name: await check(name, folder, limit=limit, sandbox=sandbox) for name in ("humaneval", "mbpp", "cruxeval")}
    finally:
        await sandbox.close()
    print_result(benchmark="trace_data", **sets, seconds=round(time.perf_counter() - started, 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DATA_FOLDER")
    parser.add_argument("--limit", type=int, default=10**6, metavar="N", help="programs of each set")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.folder, limit=arguments.limit))
