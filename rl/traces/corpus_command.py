"""`rl trace-corpus`: reads and checks what it is given, traces it, and puts the whole corpus in its place at the end."""

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from environments.lookup import unknown
from environments.sandbox.make import make_sandbox
from environments.traces.generator import Generated, Generator, GeneratorOptions
from environments.traces.programs import FORMS as ROW_FORMS
from environments.traces.programs import TraceProgram, read_programs
from rl.durable import check_new, drafted
from rl.log.text import visible
from rl.traces.corpus import Corpus, CorpusSettings
from rl.traces.corpus_files import FORMS, CorpusFiles


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """Programs in a file."""

    path: Path
    form: str

    def programs(self) -> Iterator[TraceProgram]:
        return read_programs(self.path, form=self.form, field="FILE")

    def about(self) -> dict[str, Any]:
        """What it was, without where it lay."""
        return {"file": self.path.name, "form": self.form, "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Generated:
    """Programs of the generator."""

    level: str
    count: int
    seed: int

    def programs(self) -> Iterator[Generated]:
        return Generator(GeneratorOptions(level=self.level), seed=self.seed, where="--generate").distinct(self.count)

    def about(self) -> dict[str, Any]:
        return asdict(self)


def corpus_command(
    files: Sequence[str],
    *,
    generate: Sequence[str],
    seed: int,
    out: Path,
    forms: Sequence[str],
    settings: CorpusSettings,
    as_json: bool,
) -> int:
    """Write the corpus `out` and say what is in it and what is not.

    Raises ValueError for wrong arguments and for a row that is no program, before anything is traced; nothing is left behind then.
    """
    chosen = tuple(dict.fromkeys(forms or ("trace",)))
    for form in chosen:
        if form not in FORMS:
            raise ValueError(f"--form: {unknown('form of a corpus', form, FORMS)}")
    check_new(out)
    sources: list[_File | _Generated] = [*(_file(word) for word in files), *(_generated(word, seed=seed) for word in generate)]
    if not sources:
        raise ValueError("nothing to trace: name a file of programs, or give --generate, for example --generate easy:500")
    for source in sources:
        for _ in source.programs() if isinstance(source, _File) else ():
            pass  # a broken row is told before hours of tracing
    with drafted(out) as draft:
        counts = asyncio.run(_write(draft, sources, forms=chosen, settings=settings))
        if not counts["rows"]["train"] + counts["rows"]["heldout"]:
            raise ValueError(f"no program of {counts['read']} is in: {_reasons(counts['left_out'])}")
    print(json.dumps({"out": str(out), **counts}) if as_json else _told(counts, out=out))
    return 0


async def _write(draft: Path, sources: Sequence[_File | _Generated], *, forms: Sequence[str], settings: CorpusSettings) -> dict[str, Any]:
    sandbox = make_sandbox()
    try:
        with CorpusFiles(draft, forms=forms) as writer:
            corpus = Corpus(settings, sandbox=sandbox, left_out=writer.leave)
            programs = (program for source in sources for program in source.programs())
            async for traced in corpus.take(programs, say=_say):
                writer.add(traced)
            return writer.finish(
                read=corpus.read, left_out=corpus.left_out, settings=asdict(settings), sources=[source.about() for source in sources]
            )
    finally:
        await sandbox.close()


def _file(word: str) -> _File:
    form, colon, path = word.partition(":")
    if not colon or form not in ROW_FORMS:
        form, path = "programs", word
    if not Path(path).is_file():
        hint = "" if not colon else f"; forms are {', '.join(ROW_FORMS)}"
        raise ValueError(f"there is no file {path}{hint}")
    return _File(path=Path(path), form=form)


def _generated(word: str, *, seed: int) -> _Generated:
    level, colon, count = word.partition(":")
    if not colon or not count.isdecimal() or int(count) < 1:
        raise ValueError(f"--generate is {word!r}; write a level of difficulty and a number of programs, such as easy:500")
    Generator(GeneratorOptions(level=level), seed=seed, where="--generate")  # an unknown level is told now
    return _Generated(level=level, count=int(count), seed=seed)


def _told(counts: dict[str, Any], *, out: Path) -> str:
    rows, levels = counts["rows"], ", ".join(f"{n} {level}" for level, n in counts["levels"].items())
    forms = ", ".join(f"{n} {form}" for form, n in counts["rows_by_form"].items())
    return "\n".join(
        [
            f"{out}: {rows['train']} programs to train on, {rows['heldout']} held out, of {counts['read']} read",
            f"left out: {_reasons(counts['left_out']) or 'none'}",
            f"rows: {forms}; of {counts['events']} events; programs: {levels}",
        ]
    )


def _reasons(left_out: dict[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in left_out.items())


def _say(message: str) -> None:
    print(visible(message), file=sys.stderr)
