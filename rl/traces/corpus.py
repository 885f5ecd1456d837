"""Trace corpora: programs are traced, left out where they teach nothing new or cannot be traced whole, and split.

    programs ─► equal ones out ─► traced, several at a time, in their order ─► unfit and alike ones out ─► split by program ─► Traced

Everything depends on the programs and the settings alone: order, choice and split are the same each time. Of several that are alike the
first stays.
"""

import ast
import asyncio
import hashlib
import os
import warnings
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from environments.code_tests.compare import same_literal
from environments.sandbox.base import Sandbox, SandboxError
from environments.traces.difficulty import Difficulty, check_levels, measure
from environments.traces.generator import Generated
from environments.traces.programs import MAIN, TraceProgram
from environments.traces.records import WHOLE, Recording, TraceLimits
from environments.traces.text import render_events
from environments.traces.tracer import record_trace
from rl.traces.alike import KeptTraces

Split = Literal["train", "heldout"]
RETRIES = 2
"""How often a program whose tracing failed by the sandbox is traced again."""
_HASH_DIGITS = 16
_SAY_EVERY = 200
_WITH_DOCSTRING = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusSettings:
    """What is in and what is out."""

    heldout: float = 0.05
    """Share of the programs to hold out; by the hash of each, so that the share is only met on average."""
    similarity: float = 0.8
    """From which Jaccard similarity on a trace counts as a copy of one before (`alike.py`)."""
    levels: tuple[str, ...] = ()
    """Levels of difficulty to take; empty for all."""
    limits: TraceLimits = field(default_factory=TraceLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.heldout <= 1:
            raise ValueError(f"--heldout is {self.heldout}; it must be a share from 0 to 1, such as 0.05")
        if not 0 < self.similarity <= 1:
            raise ValueError(f"--similarity is {self.similarity}; it must be above 0 and at most 1, where only equal traces are left out")
        check_levels(self.levels, where="--level")


@dataclass(frozen=True, kw_only=True, slots=True)
class Traced:
    """A program that is in."""

    program: TraceProgram
    recording: Recording
    difficulty: Difficulty
    program_hash: str
    """Of the program without comments, docstrings and layout."""
    split: Split


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A program that is not."""

    program: TraceProgram
    reason: str
    """`duplicate`, `near_duplicate`, `refused`, `sandbox`, `empty`, `value`, `level`, or the status of a trace that is not whole."""
    detail: str = ""
    """One line for people."""


class Corpus:
    """Takes programs one after the other."""

    def __init__(self, settings: CorpusSettings, *, sandbox: Sandbox, left_out: Callable[[LeftOut], None]) -> None:
        """`left_out` is told of every program that is not in."""
        self._settings, self._sandbox, self._tell = settings, sandbox, left_out
        self._kept = KeptTraces(similarity=settings.similarity)
        self._seen: set[tuple[str, str | None, str]] = set()
        self.read = 0
        """Programs so far."""
        self.left_out: Counter[str] = Counter()

    async def take(self, programs: Iterable[TraceProgram | Generated], *, say: Callable[[str], None]) -> AsyncIterator[Traced]:
        """Those that are in, in their order. Generated ones bring their recording; the others are traced in the sandbox.

        Raises what reading `programs` raises.
        """
        running: deque[tuple[TraceProgram, str, asyncio.Task[Recording | LeftOut]]] = deque()
        at_once = 2 * (os.cpu_count() or 1)

        async def first() -> Traced | None:
            program, digest, task = running[0]
            found = self._chosen(program, await task, digest=digest)
            running.popleft()
            return found

        try:
            for item in programs:
                program = item.program if isinstance(item, Generated) else item
                digest = hash_of(program.source)
                self.read += 1
                if self.read % _SAY_EVERY == 0:
                    say(f"{self.read} programs read, {self.left_out.total()} left out so far")
                if not self._is_new(program):
                    self._leave(LeftOut(program=program, reason="duplicate"))
                    continue
                running.append((program, digest, asyncio.create_task(self._recorded(item))))
                if len(running) >= at_once and (found := await first()):
                    yield found
            while running:
                if found := await first():
                    yield found
        finally:
            for _, _, task in running:
                task.cancel()
            await asyncio.gather(*(task for _, _, task in running), return_exceptions=True)

    def _is_new(self, program: TraceProgram) -> bool:
        key = hash_of(program.source, leave_out=""), program.entry, _normal(program.args, leave_out="")
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    async def _recorded(self, item: TraceProgram | Generated) -> Recording | LeftOut:
        if isinstance(item, Generated):
            return item.recording
        why = ""
        for _ in range(RETRIES + 1):
            try:
                return await record_trace(item.program, sandbox=self._sandbox, limits=self._settings.limits)
            except ValueError as error:
                return LeftOut(program=item, reason="refused", detail=str(error))
            except SandboxError as error:
                why = str(error)
        return LeftOut(program=item, reason="sandbox", detail=why)

    def _chosen(self, program: TraceProgram, recording: Recording | LeftOut, *, digest: str) -> Traced | None:
        found = recording if isinstance(recording, LeftOut) else self._judged(program, recording, digest=digest)
        if isinstance(found, LeftOut):
            self._leave(found)
            return None
        return found

    def _judged(self, program: TraceProgram, recording: Recording, *, digest: str) -> Traced | LeftOut:
        if recording.status not in WHOLE:
            return LeftOut(program=program, reason=recording.status, detail=recording.reason)
        if not recording.trace.events:
            return LeftOut(program=program, reason="empty", detail=recording.reason)
        if program.value is not None and (recording.value is None or not same_literal(recording.value, program.value)):
            return LeftOut(program=program, reason="value", detail=f"the trace ends with {recording.value}, the data has {program.value}")
        difficulty = measure(recording.trace)
        if self._settings.levels and difficulty.level not in self._settings.levels:
            return LeftOut(program=program, reason="level", detail=difficulty.level)
        if not self._kept.add(list(render_events(recording.trace.events))):
            return LeftOut(program=program, reason="near_duplicate")
        return Traced(
            program=program,
            recording=recording,
            difficulty=difficulty,
            program_hash=digest,
            split="heldout" if int(digest, 16) / 16**_HASH_DIGITS < self._settings.heldout else "train",
        )

    def _leave(self, found: LeftOut) -> None:
        self.left_out[found.reason] += 1
        self._tell(found)


def hash_of(source: str, *, leave_out: str = MAIN) -> str:
    """16 hexadecimal digits over a program without comments, docstrings and layout; over its text where it is no Python.

    A top-level function of the name `leave_out` does not count: `programs.py` adds one to call others, whose program it stays.
    """
    return hashlib.sha256(_normal(source, leave_out=leave_out).encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]


def _normal(source: str, *, leave_out: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes: the program's own business
            tree = ast.parse(source)
            for node in ast.walk(tree):
                if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
            kept = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == leave_out)]
            return ast.unparse(ast.Module(body=kept or tree.body, type_ignores=[]))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
