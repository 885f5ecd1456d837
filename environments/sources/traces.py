"""Tasks on execution traces: programs of a file, recorded in the sandbox when the source is made, or generated ones."""

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, product
from pathlib import Path

from configs.checked import bounded
from configs.schema import TaskConfig
from environments.records import Problem
from environments.sandbox.make import make_sandbox
from environments.sources.base import ProblemSource, random_stream
from environments.sources.options import read_options
from environments.sources.rows import RowMapper
from environments.sources.trace_rows import NoTask, row_seed, trace_row
from environments.traces.debugger.task import DebuggerOptions, check_actions
from environments.traces.difficulty import LEVELS, check_levels, measure
from environments.traces.generator import Generator, GeneratorOptions
from environments.traces.programs import TraceProgram, read_programs
from environments.traces.records import Recording
from environments.traces.tasks import DEBUGGER, FULL, INPUT, NEXT_FRAME, OUTPUT, TRACE_ENVS
from environments.traces.tracer import record_trace


@dataclass(frozen=True, kw_only=True)
class TraceOptions(DebuggerOptions):
    """Options of both sources."""

    levels: str = ""
    """Levels of difficulty that are wanted, separated by spaces: of a file, others are left out (default: none is); of generated programs,
    each is as frequent as the others (default: easy)."""
    max_events: int = bounded(0, low=0)
    """Longer traces are left out; 0 means none."""
    reasoning: bool = False
    """trace_output: the reply reasons first, up to one `</think>`. Otherwise it is the answer alone."""
    frames: bool = False
    """trace_input: the reply is the whole trace of the call, whose first frame shows the input. Otherwise it is the input alone."""
    partial_credit: bool = True
    """trace_next_frame, trace_full: whether what is nearly right is worth more than nothing."""


@dataclass(frozen=True, kw_only=True)
class FileOptions(TraceOptions):
    """Options of a source with a `path`."""

    form: str = "programs"
    """What its rows are: programs, humaneval, mbpp or cruxeval."""
    walks: int = bounded(1, low=1, high=1000)
    """trace_debugger: episodes of each program, each with a walk of its own."""


@dataclass(frozen=True, kw_only=True)
class GeneratedOptions(TraceOptions):
    """Options of a source without a `path`."""

    types: str = GeneratorOptions.types
    """Types of arguments and variables."""
    max_value: int = bounded(9, low=1, high=10**6)
    """Largest literal."""
    programs: str = ""
    """Tasks with the same word here, and otherwise the same options, are about the same programs (default: the task's own name)."""


def trace_source(name: str, *, config: TaskConfig, seed: int) -> ProblemSource:
    """The source of `kind: traces`. Raises ValueError for options, and rows of a file, that cannot be used."""
    envs = (*TRACE_ENVS, DEBUGGER)
    if config.env not in envs:
        raise ValueError(f"tasks.{name}.env is {config.env!r}; tasks of kind 'traces' are for {', '.join(envs)}")
    for option, owners in _OPTION_ENVS.items():
        if option in config.options and config.env not in owners:
            raise ValueError(f"tasks.{name}.options.{option} is for env={' and '.join(owners)}, and env is {config.env}: take it out")
    check_actions(config.options.get("actions", DebuggerOptions.actions), where=f"tasks.{name}.options.actions")
    return TraceFileSource(name, config=config, seed=seed) if config.path else GeneratedTraceSource(name, config=config, seed=seed)


_OPTION_ENVS = {
    **dict.fromkeys(("turns", "actions", "walks"), (DEBUGGER,)),
    "reasoning": (OUTPUT,),
    "frames": (INPUT,),
    "partial_credit": (NEXT_FRAME, FULL),
}
"""Environments that an option is for; the others are for all."""


class GeneratedTraceSource:
    """An unbounded source: problem `index` is a pure function of (seed, source name or `programs`, index)."""

    size: int | None = None

    def __init__(self, name: str, *, config: TaskConfig, seed: int) -> None:
        where = f"tasks.{name}.options"
        self._options = read_options(GeneratedOptions, config.options, where=where)
        self._name, self._env = name, config.env
        self._seed = int(random_stream("traces", seed, self._options.programs or name).integers(2**62))
        levels = check_levels(self._options.levels.split(), where=f"{where}.levels") or (GeneratorOptions.level,)
        self._generators = [
            Generator(
                GeneratorOptions(level=level, types=self._options.types, max_value=self._options.max_value), seed=self._seed, where=where
            )
            for level in levels
        ]
        self._mapper = RowMapper.of(name, config=config, generated=True)

    def problem(self, index: int) -> Problem:
        """The problem at `index`. Raises ValueError when the options admit hardly any program."""
        number, which = divmod(index, len(self._generators))
        options = self._options
        for attempt in range(_TRIES):
            made = self._generators[which].program(number + attempt * _STRIDE)
            if options.max_events and made.recording.n_events > options.max_events:
                continue
            row = trace_row(
                self._env,
                made.program,
                made.recording,
                reasoning=options.reasoning,
                frames=options.frames,
                partial_credit=options.partial_credit,
                debugger=options,
                seed=row_seed(self._seed, index),
            )
            return self._mapper.problem(row | {"id": f"{made.program.difficulty}-{index}"}, where=f"tasks.{self._name}", default_id="")
        raise ValueError(f"tasks.{self._name}.options.max_events is {options.max_events}: hardly any program has so few; raise it")


_TRIES, _STRIDE = 200, 2**32
"""A program with too many events is replaced by the one a stride, which is beyond all indices, further on."""


class TraceFileSource:
    """The programs of one file that make a task, in file order."""

    def __init__(self, name: str, *, config: TaskConfig, seed: int) -> None:
        assert config.path, "trace_source looks"
        where = f"tasks.{name}.options"
        self._options = read_options(FileOptions, config.options, where=where)
        self._levels = check_levels(self._options.levels.split(), where=f"{where}.levels") or LEVELS
        self._env = config.env
        mapper = RowMapper.of(name, config=config, generated=True)
        path = Path(config.path).expanduser()
        programs = tuple(islice(read_programs(path, form=self._options.form, field=f"tasks.{name}.path"), config.limit or None))
        self.left_out: Counter[str] = Counter()
        """Programs that make no task, by the reason."""
        self._problems: list[Problem] = []
        try:
            recordings = _recordings(programs)
        except ValueError as error:
            raise ValueError(f"tasks.{name}.path: {error}") from None
        walks = range(self._options.walks if config.env == DEBUGGER else 1)
        for (program, recording), walk in product(zip(programs, recordings, strict=True), walks):
            key = f"{program.id}/{walk}" if walk else program.id
            try:
                row = self._row(program, recording, seed=row_seed(seed, name, key))
            except NoTask as reason:
                self.left_out[str(reason)] += walk == 0
            else:
                self._problems.append(mapper.problem(row | {"id": key}, where=f"{config.path}: program {program.id}", default_id=key))
        if not self._problems:
            told = "; ".join(f"{count} x {why}" for why, count in self.left_out.most_common(3)) or "it has no rows"
            raise ValueError(f"tasks.{name}.path: no program of {config.path} makes a task of {config.env}: {told}")

    @property
    def size(self) -> int:
        """Number of programs that make a task."""
        return len(self._problems)

    def problem(self, index: int) -> Problem:
        """The problem at `index`, counted from 0."""
        return self._problems[index]

    def _row(self, program: TraceProgram, recording: Recording, *, seed: int) -> dict[str, object]:
        options = self._options
        level = measure(recording.trace).level
        if level not in self._levels:
            raise NoTask(f"its level is {level}")
        if options.max_events and recording.n_events > options.max_events:
            raise NoTask(f"it has more than {options.max_events} events")
        graded = replace(program, difficulty=level)
        return trace_row(
            self._env,
            graded,
            recording,
            reasoning=options.reasoning,
            frames=options.frames,
            partial_credit=options.partial_credit,
            debugger=options,
            seed=seed,
        )


@lru_cache(maxsize=1)
def _recordings(programs: tuple[TraceProgram, ...]) -> list[Recording]:
    """Kept until they are forgotten or others are asked for: several sources of a configuration read the same file."""
    return asyncio.run(_record_all(programs))


def forget_recordings() -> None:
    """Free what is kept for the next source: all sources are made."""
    _recordings.cache_clear()


async def _record_all(programs: Sequence[TraceProgram]) -> list[Recording]:
    """Recordings in the order of `programs`. Raises ValueError that names a program without its entry, SandboxUnavailable."""
    sandbox = make_sandbox()
    places = asyncio.Semaphore(os.cpu_count() or 1)

    async def record(program: TraceProgram) -> Recording:
        async with places:
            try:
                return await record_trace(program.program, sandbox=sandbox)
            except ValueError as error:
                raise ValueError(f"program {program.id}: {error}") from None

    try:
        return await asyncio.gather(*map(record, programs))
    finally:
        await sandbox.close()
