"""The words of `rl trace` and `rl trace-corpus`. The modules that do the work are imported when the command runs."""

import argparse
from pathlib import Path
from typing import Any

from rl.command_words import AddCommand


def add_trace_commands(commands: Any, *, command: AddCommand) -> None:
    """Add `trace` and `trace-corpus`. `command(commands, name, run, text)` adds one command."""
    _add_trace(commands, command=command)
    _add_trace_corpus(commands, command=command)


def _add_trace(commands: Any, *, command: AddCommand) -> None:
    trace = command(commands, "trace", _trace, "run a Python program in the sandbox and print what each line did, in CWM's trace format")
    trace.add_argument("file", type=Path, metavar="FILE", help="Python source")
    trace.add_argument("--entry", metavar="NAME", help="function to call (default: run FILE as a script)")
    trace.add_argument("--args", default="[]", metavar="LIST", help="positional arguments as a Python literal, such as \"[1, 'a']\"")
    trace.add_argument("--table", action="store_true", help="print a table for people instead of the trace text")
    trace.add_argument("--prose", action="store_true", help="print it in sentences")
    trace.add_argument("--step-into", action="append", metavar="PATTERN", help="follow only functions of FILE like this, such as 'Stack.*'")
    trace.add_argument("--step-over", action="append", default=[], metavar="PATTERN", help="do not follow functions of FILE like this")
    trace.add_argument("--events", type=int, metavar="N", help="most events")
    trace.add_argument("--depth", type=int, metavar="N", help="most calls in one another")
    trace.add_argument("--seconds", type=float, metavar="S", help="most seconds")


def _add_trace_corpus(commands: Any, *, command: AddCommand) -> None:
    corpus = command(
        commands, "trace-corpus", _trace_corpus, "trace programs into a corpus to train on: JSON lines and a Hugging Face dataset"
    )
    corpus.add_argument(
        "files", nargs="*", metavar="[FORM:]FILE", help="JSON lines of programs, or of a data set: humaneval:FILE, mbpp:FILE, cruxeval:FILE"
    )
    corpus.add_argument("--generate", action="append", default=[], metavar="LEVEL:N", help="N generated programs, such as easy:500")
    corpus.add_argument("--seed", type=int, default=0, metavar="N", help="of the generated programs (default: 0)")
    corpus.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to write; it must not exist")
    corpus.add_argument(
        "--form", action="append", default=[], metavar="FORM",
        help="what rows teach, may be repeated: trace, prose, or an environment of trace predictions such as trace_output (default: trace)",
    )  # fmt: skip
    corpus.add_argument("--level", action="append", default=[], metavar="LEVEL", help="take only programs of this level; may be repeated")
    corpus.add_argument("--heldout", type=float, metavar="SHARE", help="share of the programs to hold out (default: 0.05)")
    corpus.add_argument("--similarity", type=float, metavar="S", help="from which similarity on a trace is a copy (default: 0.8)")
    corpus.add_argument("--events", type=int, metavar="N", help="most events; longer traces are left out")
    corpus.add_argument("--seconds", type=float, metavar="S", help="most seconds of a program; slower ones are left out")


def _trace_corpus(args: argparse.Namespace) -> int:
    from environments.traces.records import TraceLimits
    from rl.traces.corpus import CorpusSettings
    from rl.traces.corpus_command import corpus_command

    limits = {name: getattr(args, name) for name in ("events", "seconds") if getattr(args, name) is not None}
    given = {name: getattr(args, name) for name in ("heldout", "similarity") if getattr(args, name) is not None}
    settings = CorpusSettings(levels=tuple(args.level), limits=TraceLimits(**limits), **given)
    return corpus_command(
        args.files, generate=args.generate, seed=args.seed, out=args.out, forms=args.form, settings=settings, as_json=args.as_json
    )


def _trace(args: argparse.Namespace) -> int:
    from environments.traces.records import StepFilter, TraceLimits
    from environments.traces.tracer import Program
    from rl.traces.show import Form, trace_command

    known: tuple[tuple[Form, bool], ...] = (("table", args.table), ("prose", args.prose), ("json", args.as_json))
    forms = [form for form, given in known if given]
    if len(forms) > 1:
        raise ValueError(f"--{forms[0]} and --{forms[1]} are given; choose one")
    limits = {name: getattr(args, name) for name in ("events", "depth", "seconds") if getattr(args, name) is not None}
    return trace_command(
        Program(source=read_source(args.file), entry=args.entry, args=args.args),
        limits=TraceLimits(**limits),
        step=StepFilter(include=tuple(args.step_into or ("*",)), exclude=tuple(args.step_over)),
        form=forms[0] if forms else "text",
    )


def read_source(file: Path) -> str:
    """The text of a Python file, without a byte order mark. Raises ValueError for one that is not UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
