"""`rl debug`: commands from a terminal, a pipe or a file, one view for each."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from environments.traces.records import TraceLimits
from environments.traces.tracer import Program
from rl.debug.commands import read_command
from rl.debug.model import ModelWriter
from rl.debug.neural import NeuralDebugger
from rl.debug.real import RealProgram
from rl.debug.screen import print_view, view_json
from rl.debug.session import Session, View
from rl.log.text import visible

_PROMPT = "(rl debug) "


def debug_command(
    model: str,
    *,
    program: Program,
    script: Path | None,
    as_json: bool,
    temperature: float,
    seed: int,
    most_tokens: int,
    most_frames: int,
) -> int:
    """Run a session to its end; 0. Raises ValueError for a model or program that cannot be used, and for a wrong command of a script."""
    real = RealProgram(program, limits=TraceLimits())
    try:
        start = real.start()  # what is wrong with the program is told before a model is loaded
        writer = ModelWriter(model, temperature=temperature, seed=seed, most_tokens=most_tokens)
        session = Session(real, NeuralDebugger(writer, most_frames=most_frames), start=start)
        run_session(session, script=script, as_json=as_json)
    finally:
        real.close()
    return 0


def run_session(session: Session, *, script: Path | None, as_json: bool) -> None:
    """Take commands until they end. Raises ValueError for a wrong one, except at a terminal."""
    console, errors = Console(), Console(stderr=True)

    def show(view: View) -> None:
        if as_json:
            print(json.dumps(view_json(view)), flush=True)
        else:
            print_view(view, console=console)

    interactive = script is None and sys.stdin.isatty()
    show(session.start())
    for where, text in _typed() if interactive else _lines(script):
        try:
            command = read_command(text)
            if command is None:
                continue
            if command.name == "quit":
                return
            show(session.run(command))
        except ValueError as error:
            if not interactive:
                raise ValueError(f"{where}: {error}") from None
            errors.print(Text(visible(str(error), one_line=True), style="red"))


def _typed() -> Iterator[tuple[str, str]]:
    while True:
        try:
            yield "terminal", input(_PROMPT)
        except EOFError:
            return


def _lines(script: Path | None) -> Iterator[tuple[str, str]]:
    lines = sys.stdin if script is None else script.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        yield f"{script or 'stdin'}:{number}", line
