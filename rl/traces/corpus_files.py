"""The files of a trace corpus: JSON lines, and the same rows as a Hugging Face dataset.

OUT/README.md                       dataset card: `load_dataset(OUT, "trace")`
OUT/data/FORM-SPLIT-00000.parquet
OUT/jsonl/FORM-SPLIT.jsonl          what `warm_start.corpus` reads
OUT/left_out.jsonl                  id, origin and reason of each program that is not in
OUT/corpus.json                     counts, settings, versions
"""

import contextlib
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import pyarrow as pa

from environments.provenance import OWN, source_hash
from environments.sources.trace_rows import NoTask, row_seed, trace_row
from environments.traces.tasks import FULL, INPUT, NEXT_FRAME, OUTPUT, RETURN
from environments.traces.text import render_trace
from rl.export.card import card_table, dataset_card
from rl.export.parquet import ParquetSeries
from rl.log.text import visible
from rl.traces.corpus import LeftOut, Split, Traced
from rl.traces.prose import describe_trace

FORMS = {
    "trace": "`text`: the trace in CWM's format, for mid-training",
    "prose": "`text`: the trace in sentences",
    OUTPUT: "`prompt`, `completion`: which value does the call return?",
    INPUT: "`prompt`, `completion`: which arguments make it return the value?",
    NEXT_FRAME: "`prompt`, `completion`: which frame is the next?",
    FULL: "`prompt`, `completion`: all frames behind the call",
    RETURN: "`prompt`, `completion`: the return frame of the call, in one step",
}
"""What a row teaches: raw text, or a task of the environment of that name with its ideal reply."""
_STRING, _INT = pa.string(), pa.int64()
_MESSAGES = pa.list_(pa.struct([("role", _STRING), ("content", _STRING)]))
_TEXT, _CHAT = [("text", _STRING)], [("prompt", _MESSAGES), ("completion", _MESSAGES)]
_FACTS: Mapping[str, tuple[Any, str]] = {
    "id": (_STRING, "of the program, in its file or generator"),
    "origin": (_STRING, "where the program comes from"),
    "license": (_STRING, "of the program; empty where none is known"),
    "source": (_STRING, "the program"),
    "entry": (_STRING, "function that is called; null for a script"),
    "args": (_STRING, "its positional arguments, a Python literal"),
    "status": (_STRING, "`ok`, or `raised` when an exception left the entry"),
    "value": (_STRING, "repr of what the entry returned; null for a script and when it raised"),
    "level": (_STRING, "difficulty: trivial, easy, medium, hard or extreme"),
    "events": (_INT, "frames of the trace"),
    "iterations": (_INT, "of loops"),
    "calls": (_INT, "of functions of the program, without the entry's own"),
    "values": (_STRING, "the most complex kind of value: number, text, flat, nested or object"),
    "program_hash": (_STRING, "of the program without comments, docstrings and layout; decides about the split"),
    "tool": (_STRING, "version of the tracer and hash of its code, and of Python"),
}


class CorpusFiles:
    """Writes a corpus into a folder. Closes with the block it manages."""

    def __init__(self, folder: Path, *, forms: Sequence[str]) -> None:
        self._folder, self._forms = folder, tuple(forms)
        self._lines: dict[tuple[str, Split], TextIO] = {}
        self._series: dict[tuple[str, Split], ParquetSeries] = {}
        self._stack = contextlib.ExitStack()
        (folder / "jsonl").mkdir(parents=True)
        (folder / "data").mkdir()
        self._left_out = self._stack.enter_context((folder / "left_out.jsonl").open("w", encoding="utf-8"))
        self._tool = tool_version()
        self.rows: dict[Split, int] = {"train": 0, "heldout": 0}
        self.levels: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.events = 0
        self.by_form: Counter[str] = Counter()
        """Rows."""

    def add(self, traced: Traced) -> None:
        """One program, in every form."""
        facts = self._facts(traced)
        for form in self._forms:
            learned = _learned(form, traced)
            if learned is not None:
                self._write(form, traced.split, {**facts, **learned})
        self.rows[traced.split] += 1
        self.levels[traced.difficulty.level] += 1
        self.licenses[traced.program.license or "none is known"] += 1
        self.events += traced.recording.n_events

    def leave(self, found: LeftOut) -> None:
        """One program that is not in."""
        row = {"id": found.program.id, "origin": found.program.origin, "reason": found.reason, "detail": found.detail}
        self._left_out.write(json.dumps(row) + "\n")

    def finish(
        self, *, read: int, left_out: Mapping[str, int], settings: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Write the card and the counts, and return the counts. `read`: programs of all sources."""
        counts: dict[str, Any] = {
            "read": read,
            "rows": self.rows,
            "left_out": dict(sorted(left_out.items())),
            "events": self.events,
            "rows_by_form": dict(self.by_form),
            "levels": dict(sorted(self.levels.items())),
            "licenses": dict(sorted(self.licenses.items())),
            "sources": list(sources),
            "settings": settings,
            "tool": self._tool,
        }
        (self._folder / "corpus.json").write_text(json.dumps(counts, indent=1) + "\n")
        (self._folder / "README.md").write_text(self._card(counts["left_out"]))
        return counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _facts(self, traced: Traced) -> dict[str, Any]:
        program, difficulty = traced.program, traced.difficulty
        return {
            "id": program.id,
            "origin": program.origin,
            "license": program.license,
            "source": traced.recording.trace.source,
            "entry": program.entry,
            "args": program.args,
            "status": str(traced.recording.status),
            "value": traced.recording.value,
            "level": difficulty.level,
            "events": difficulty.events,
            "iterations": difficulty.iterations,
            "calls": difficulty.calls,
            "values": difficulty.values.name.lower(),
            "program_hash": traced.program_hash,
            "tool": self._tool,
        }

    def _write(self, form: str, split: Split, row: dict[str, Any]) -> None:
        key = form, split
        if key not in self._lines:
            schema = pa.schema([*((name, kind) for name, (kind, _) in _FACTS.items()), *(_TEXT if "text" in row else _CHAT)])
            path = self._folder / "jsonl" / f"{form}-{split}.jsonl"
            self._lines[key] = self._stack.enter_context(path.open("w", encoding="utf-8"))
            self._series[key] = self._stack.enter_context(ParquetSeries(self._folder / "data", f"{form}-{split}-", schema))
        line = json.dumps(row)
        self._lines[key].write(line + "\n")
        self._series[key].add(row, size=len(line))
        self.by_form[form] += 1

    def _card(self, reasons: Mapping[str, int]) -> str:
        forms = card_table(("configuration", "what is learned", "rows"), ((form, FORMS[form], n) for form, n in self.by_form.items()))
        columns = card_table(("column", "meaning"), ((name, meaning) for name, (_, meaning) in _FACTS.items()))
        licenses = card_table(("licence", "programs"), ((_cell(license), n) for license, n in sorted(self.licenses.items())))
        text = (
            "# Execution traces of Python programs\n\n"
            f"Written by `rl trace-corpus` of {self._tool}. {self.rows['train']} programs to train on, {self.rows['heldout']} held out; "
            "the same program is never on both sides. Programs and their texts are data: nothing in them is an instruction.\n\n"
            f"{forms}\n{columns}\n{licenses}\n{card_table(('left out', 'programs'), reasons.items())}"
        )
        splits = {form: [split for split in self.rows if (form, split) in self._lines] for form in self.by_form}
        configs: dict[str, dict[str, str]] = {form: {split: f"data/{form}-{split}-*.parquet" for split in splits[form]} for form in splits}
        return dataset_card(text, configs=configs, tags=["code", "execution-traces", OWN])


def _learned(form: str, traced: Traced) -> dict[str, Any] | None:
    """The columns that are learned; None when the program makes no such task."""
    program, recording = traced.program, traced.recording
    if form == "trace":
        return {"text": render_trace(recording.trace)}
    if form == "prose":
        return {"text": describe_trace(recording.trace)}
    try:
        row = trace_row(form, program, recording, seed=row_seed(traced.program_hash, program.args))
    except NoTask:
        return None
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["solution"]}],
    }


def _cell(text: str) -> str:
    """Text of a row of data in a table of the card."""
    return visible(text, one_line=True).replace("|", "\\|").replace("<", "&lt;")


def tool_version() -> str:
    """The tracer's version, a hash of its code, and Python's version."""
    return f"{OWN} {version(OWN)} {source_hash('environments.traces.tracer')}, Python {platform.python_version()}"
