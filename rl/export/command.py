"""`rl export`: checks everything first, writes beside the target, and puts it in its place only when it is whole."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from environments.lookup import unknown
from rl.durable import check_new, drafted
from rl.export.source import Source
from rl.log.query import RunLog
from rl.log.runs import find_run
from rl.log.text import visible

Export = Callable[[Source, Path], dict[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One format."""

    module: str
    """Its `export(source, out)` writes `out` and counts what it holds."""
    what: str
    library: str = ""
    """Package that the `export` extra brings; empty when none is needed."""
    spans_only: bool = False


FORMATS = {
    "scout": Format(module="rl.export.scout", what="Inspect Scout transcripts"),
    "atif": Format(module="rl.export.atif", what="ATIF v1.7 trajectories"),
    "hf": Format(module="rl.export.hf", what="a Hugging Face dataset"),
    "otel": Format(module="rl.export.otel", what="OpenTelemetry GenAI traces"),
    "perfetto": Format(module="rl.export.perfetto", what="a Perfetto timeline", library="perfetto", spans_only=True),
}


def export_command(run: str, *, to: str, out: Path, where: str | None, as_json: bool) -> int:
    """Write the rollouts of a run as `to` and say what was taken and what was not.

    Raises ValueError for an unknown run or format, a refused condition, one that selects nothing, a library that is not installed, and
    a target that exists. Nothing is left behind then.
    """
    if to not in FORMATS:
        raise unknown("export format", to, FORMATS)
    root = find_run(run)
    export = _load(to)
    check_new(out)
    with RunLog(root) as log:
        source = Source(log, root=root, where=where)
        if not FORMATS[to].spans_only and not source.selected:
            raise ValueError(_nothing(source, run=run, where=where))
        with drafted(out) as draft:
            records = export(source, draft)
            if records.get("spans") == 0:
                raise ValueError(f"the log of {run} has no spans {'yet' if where is None else 'of the rollouts that --where selects'}")
        problems = log.problems
    _report(source, to=to, out=out, records=records, as_json=as_json)
    for problem in problems:
        print(f"left out: {visible(problem, one_line=True)}", file=sys.stderr)
    if source.lost:
        print(f"left out: {source.lost} rollouts whose rows are in the files above", file=sys.stderr)
    return 0


def _load(to: str) -> Export:
    chosen = FORMATS[to]
    try:
        export: Export = importlib.import_module(chosen.module).export
    except ModuleNotFoundError as error:
        if not chosen.library or (error.name or "").partition(".")[0] != chosen.library:
            raise
        raise ValueError(f"--to {to} needs the package {chosen.library}: pip install 'codeworld-rl[export]'") from error
    return export


def _nothing(source: Source, *, run: str, where: str | None) -> str:
    if where is None or not source.in_log:
        return f"the log of {run} has no rollouts yet"
    return f"--where {where!r} selects none of the {source.in_log} rollouts of {run}"


def _report(source: Source, *, to: str, out: Path, records: dict[str, int], as_json: bool) -> None:
    taken = source.selected if FORMATS[to].spans_only else source.exported
    if as_json:
        counts = {
            "format": to,
            "out": str(out),
            "rollouts": {"in_log": source.in_log, "taken": taken.total(), "lost": source.lost, "by_status": dict(sorted(taken.items()))},
            "without_tokens": source.without_tokens,
            "shortened_messages": source.shortened,
            "records": records,
        }
        print(json.dumps(counts))
        return
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(taken.items()))
    held = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in records.items())
    print(f"{out}: {FORMATS[to].what}, {held}")
    print(f"rollouts: {taken.total()} of the {source.in_log} in the log ({statuses or 'none'})")
    if source.without_tokens:
        print(f"without tokens, because the log has none of them: {source.without_tokens} rollouts")
    if source.shortened:
        print(f"shortened, because the log has lost the blob of the whole text: {source.shortened} messages")
