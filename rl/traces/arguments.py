"""The words of `rl trace`. The modules that do the work are imported when the command runs."""

import argparse
from pathlib import Path
from typing import Any

from rl.command_words import AddCommand


def add_trace_command(commands: Any, *, command: AddCommand) -> None:
    """Add `trace`. `command(commands, name, run, text)` adds one command."""
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
    """The text of a Python file. Raises ValueError for one that is not UTF-8."""
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
