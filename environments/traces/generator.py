"""Random programs of a wanted difficulty, each with its recording: the same ones for the same seed, index and options, anywhere."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from configs.checked import bounded
from environments.lookup import unknown
from environments.traces.difficulty import measure
from environments.traces.generated_text import TYPES, ProgramText, Shape, Writer
from environments.traces.local import TooLong, record_own, value_own
from environments.traces.programs import TraceProgram
from environments.traces.records import Recording, TraceLimits
from environments.traces.tracer import Program

SHAPES = {
    "trivial": Shape(statements=(1, 4), block=1, nesting=1, loops=0, turns=(0, 0), helpers=0, terms=1, tuples=False),
    "easy": Shape(statements=(2, 4), block=1, nesting=1, loops=1, turns=(2, 4), helpers=0, terms=1, tuples=False),
    "medium": Shape(statements=(3, 5), block=2, nesting=2, loops=2, turns=(2, 5), helpers=1, terms=2, tuples=True),
    "hard": Shape(statements=(4, 7), block=2, nesting=3, loops=3, turns=(3, 7), helpers=2, terms=2, tuples=True),
}
"""By level: what programs are drawn from; those that turn out to be of another level are drawn again."""
_MOST_CHARS = {"trivial": 12, "easy": 30, "medium": 60, "hard": 120}
"""Of the repr of any local or value."""
_LIMITS = TraceLimits(events=2000, repr_chars=200)
_TRIES = 1000


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions:
    """What is generated."""

    level: str = "easy"
    """Difficulty, as `difficulty.py` measures it: trivial, easy, medium or hard."""
    types: str = " ".join(TYPES)
    """Types of arguments and variables, separated by spaces. A trivial program has numbers only."""
    max_value: int = bounded(9, low=1, high=10**6)
    """Largest literal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """A generated program and what it does."""

    program: TraceProgram
    recording: Recording


class Generator:
    """Makes the program of any index."""

    def __init__(self, options: GeneratorOptions, *, seed: int, where: str = "options") -> None:
        """`where` begins errors. Raises ValueError for an unknown level or type."""
        if options.level not in SHAPES:
            raise ValueError(f"{where}.level: {unknown('level', options.level, SHAPES)}")
        types = tuple(options.types.split())
        for name in types:
            if name not in TYPES:
                raise ValueError(f"{where}.types: {unknown('type', name, TYPES)}")
        if not types:
            raise ValueError(f"{where}.types is empty; it must name some of {' '.join(TYPES)}")
        self._types = ("int",) if options.level == "trivial" else types
        self._options, self._seed, self._where = options, seed, where

    def program(self, index: int) -> Generated:
        """Program number `index`. Raises ValueError when the options admit hardly any."""
        options = self._options
        rng = random.Random(f"{self._seed}/{options.level}/{' '.join(self._types)}/{options.max_value}/{index}")
        for _ in range(_TRIES):
            text = Writer(rng, shape=SHAPES[options.level], types=self._types, max_value=options.max_value).program()
            recording = self._record(text)
            if recording is not None:
                program = TraceProgram(
                    id=f"{options.level}-{index}",
                    source=text.source,
                    entry="f",
                    args=text.args,
                    value=recording.value,
                    difficulty=options.level,
                    origin=f"generated: seed {self._seed}, types {' '.join(self._types)}, max_value {options.max_value}, index {index}",
                )
                return Generated(program=program, recording=recording)
        raise ValueError(f"{self._where}: hardly any program has level {options.level!r} with types {options.types!r}; allow more types")

    def distinct(self, count: int) -> Iterator[Generated]:
        """The first `count` programs, those left out that were there before. Raises ValueError as `program`."""
        seen: set[tuple[str, str]] = set()
        index = 0
        while len(seen) < count:
            made = self.program(index)
            key = made.program.source, made.program.args
            index += 1
            if key not in seen:
                seen.add(key)
                yield made
            elif index > 20 * count + 100:
                raise ValueError(f"{self._where}: only {len(seen)} different programs were found; ask for fewer, or raise max_value")

    def _record(self, text: ProgramText) -> Recording | None:
        """What the program does; None where it is not what is wanted."""
        try:
            recording = record_own(_called(text, text.args), limits=_LIMITS)
        except TooLong:
            return None
        if measure(recording.trace).level != self._options.level or _longest(recording) > _MOST_CHARS[self._options.level]:
            return None
        asks = any(repr(value_own(_called(text, args))) != recording.value for args in text.other_args)
        return recording if asks else None


def _called(text: ProgramText, args: str) -> Program:
    return Program(source=text.source, entry="f", args=args)


def _longest(recording: Recording) -> int:
    """Characters of the longest repr in a trace."""
    return max(len(text) for event in recording.trace.events for text in (event.value or "", *(event.locals or {}).values()))
