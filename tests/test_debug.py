"""`rl debug`: a model and the real interpreter take the same steps, whatever the model writes."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from environments.traces.debugger.machine import Action, ActionKind, Machine
from environments.traces.records import EventKind, TraceLimits
from environments.traces.text import END, EVENT_TOKENS, parse_trace, render_event
from environments.traces.tracer import Program
from rl.cli import main
from rl.debug.command import run_session
from rl.debug.commands import NAMES, Command, read_command
from rl.debug.neural import ContextFull, FrameWriter, NeuralDebugger
from rl.debug.real import RealProgram
from rl.debug.screen import print_view, view_json
from rl.debug.session import Session, View
from tests.ring import make_tiny_model
from tests.test_trace_debugger import PROGRAM

pytestmark = pytest.mark.timeout(180)

COUNT = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"


class Oracle:
    """Writes the frames that the real program has."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def write(self, prompt: str, *, starts: tuple[str, ...]) -> str:
        forced = next((token for token in EVENT_TOKENS.values() if prompt.endswith(token)), "")
        at = 0
        for frame in parse_trace(prompt.removesuffix(forced)).events[1:]:
            at = self._next(at, returns=self.machine.events[at + 1] != frame)
            assert self.machine.events[at] == frame
        if at == len(self.machine.events) - 1:
            return END
        event = self.machine.events[self._next(at, returns=forced == EVENT_TOKENS[EventKind.RETURN])]
        text = render_event(event, known={})
        assert text.startswith(forced) and text.removeprefix(forced).startswith(starts)
        return text.removeprefix(forced)

    def _next(self, at: int, *, returns: bool) -> int:
        to = self.machine.target(at, Action(kind=ActionKind.STEP_RETURN if returns else ActionKind.STEP_INTO))
        assert to is not None
        return to


class Fixed:
    """Writes the same text again and again."""

    def __init__(self, text: str) -> None:
        self.text = text

    def write(self, prompt: str, *, starts: tuple[str, ...]) -> str:
        if not self.text:
            raise ContextFull("the trace has 9 tokens; the model's context is 8")
        return self.text


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, RealProgram]]:
    sources = {"PROGRAM": (PROGRAM, "[1]"), "COUNT": (COUNT, "[3]")}
    found = {
        name: RealProgram(Program(source=source, entry="f", args=args), limits=TraceLimits()) for name, (source, args) in sources.items()
    }
    yield found
    for program in found.values():
        program.close()


def play(program: RealProgram, writer: FrameWriter | None, commands: str, *, most_frames: int = 100) -> list[View]:
    """The views of some commands, separated by commas. Without a writer, the model is right as long as nothing is edited."""
    start = program.start()
    session = Session(program, NeuralDebugger(writer or Oracle(start.machine), most_frames=most_frames), start=start)
    views = [session.start()]
    for text in commands.split(","):
        command = read_command(text)
        assert command is not None
        views.append(session.run(command))
    for view in views:  # everything can be shown
        json.dumps(view_json(view), allow_nan=False)
        console = Console(width=100, record=True, file=io.StringIO())
        print_view(view, console=console)
        assert "\x1b" not in console.export_text() and "\u202e" not in console.export_text()
    return views


def lines(views: list[View]) -> list[int | None]:
    return [view.real.line_no if view.real else None for view in views]


def test_a_right_model_is_equal_at_every_step(programs: dict[str, RealProgram]) -> None:
    commands = "into,over,over,into,into,over,out,over,back,b 15,c,into,out,over,back,back,sync,b 15,c,into"
    views = play(programs["PROGRAM"], None, commands)
    moved = [view for view in views if view.real is not None]
    assert all(view.match is None or view.match.exact for view in moved) and len(moved) == len(views) - 3
    assert lines(views[:13]) == [10, 11, 12, 13, 12, 7, 8, 8, 13, 8, None, 15, 1]
    assert (views[-2].real_note, views[-2].model_note) == ("", "")
    assert (views[-1].real, views[-1].real_note, views[-1].model_note) == (None, "the program has ended", "the trace has ended")


def test_steps_leave_out_what_calls_do(programs: dict[str, RealProgram]) -> None:
    over, out, end = (play(programs["PROGRAM"], None, words)[-1] for words in ("into,over", "into,into,into,out", "into,into,continue"))
    assert [prediction.event and prediction.event.kind for prediction in over.predictions] == ["call", "return", "call", "return", "line"]
    assert [prediction.event and prediction.event.value for prediction in out.predictions] == ["1"]
    assert [prediction.event and prediction.event.value for prediction in end.predictions] == ["1", "0"], "every open call, by force"
    assert over.match and over.match.exact and out.match and out.match.exact and end.match and end.match.exact


def test_an_edit_reaches_both(programs: dict[str, RealProgram]) -> None:
    frame = '<|action_sep|>    return total\n<|arg_sep|>"13"<|frame_sep|>'
    views = play(programs["COUNT"], Fixed(frame), "sync,b 4,c,sync,edit total 10,c,back,b 4,continue,back,back,b 4,c")
    edited, ended, undone = views[5], views[9], views[11]
    assert edited.real and edited.real.locals == {"n": "3", "total": "10", "i": "0"} == (edited.model and edited.model.locals)
    assert edited.match and edited.match.exact
    assert ended.real and ended.real.value == "13" and ended.match and ended.match.exact
    assert undone.real and undone.real.locals == {"n": "3", "total": "0", "i": "0"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("edit m 1", "there is no local 'm' here; there are n"),
        ("edit n f()", "value 'f\\(\\)' is no Python literal"),
        ("c,edit n 1", "a return event shows no locals"),
        ("back", "nothing to undo"),
        ("b 6", "the program has 5 lines"),
    ],
)
def test_what_cannot_be_done_is_said(words: str, reason: str, programs: dict[str, RealProgram]) -> None:
    with pytest.raises(ValueError, match=reason):
        play(programs["COUNT"], None, words)


HOSTILE = "\x1b[2J\u202e\x00[bold]<|line_sep|>"
GOOD = '<|line_sep|>{"n": ".."}<|action_sep|>    total = 0\n<|frame_sep|>'


@pytest.mark.parametrize(
    ("text", "command", "note"),
    [
        (HOSTILE, "into", "no frame: character 0"),
        (GOOD.replace("..", "\\u001b[2J"), "into", ""),
        (GOOD.replace('".."', "1"), "into", "1 is no string"),
        (GOOD.replace('"n"', '"m"'), "into", "local 'm' is '..'"),
        (GOOD.replace("<|frame_sep|>", ""), "into", "<|frame_sep|> should stand here"),
        ("<|call_sep|>{}<|action_sep|>def f(n):\n<|frame_sep|>", "over", "<|action_sep|> should stand here"),
        (GOOD, "out", "<|action_sep|>"),
        (END, "into", "the model ends the trace inside of 1 calls"),
        ("", "into", "the trace has 9 tokens; the model's context is 8"),
    ],
)
def test_whatever_a_model_writes_is_shown_and_changes_nothing(text: str, command: str, note: str, programs: dict[str, RealProgram]) -> None:
    views = play(programs["COUNT"], Fixed(text), f"{command},back")
    moved = views[1]
    assert moved.real is not None and note in moved.model_note and moved.match is not None and not moved.match.exact
    assert (moved.model is None) == bool(note)
    assert views[2].model == views[0].model


def test_a_model_that_never_arrives_is_stopped(programs: dict[str, RealProgram]) -> None:
    *_, view = play(programs["COUNT"], Fixed(GOOD), "b 5,c", most_frames=7)
    assert view.model is None and len(view.predictions) == 7 and view.model_note == "the step is not done after 7 frames"
    assert view.real and view.real.line_no == 5


def test_words_of_commands() -> None:
    assert {word for words in NAMES.values() for word in words}.isdisjoint(NAMES)
    assert read_command("  # step into") is None and read_command(" ") is None
    assert read_command("break 3") == read_command("b 3") == Command(name="breakpoint", line_no=3)
    assert read_command("edit x = [1, 2]") == read_command("e x [1, 2]") == Command(name="edit", local="x", value="[1, 2]")
    assert str(read_command("n")) == "step over" and str(read_command("edit x  'a b'")) == "edit x 'a b'"
    for text, reason in (
        ("stpe", "did you mean"),
        ("b x", "give the number of a line"),
        ("edit x", "a name and a"),
        ("q 1", "takes nothing"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_command(text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin", [io.StringIO, Terminal])
def test_commands_come_from_a_pipe_or_a_terminal(
    stdin: type[io.StringIO], programs: dict[str, RealProgram], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = programs["COUNT"].start()
    session = Session(programs["COUNT"], NeuralDebugger(Oracle(start.machine), most_frames=9), start=start)
    monkeypatch.setattr("sys.stdin", stdin("into\nfly\nover\n"))
    if stdin is Terminal:  # there a mistake is told, and the session goes on to the end of the input
        run_session(session, script=None, as_json=True)
    else:
        with pytest.raises(ValueError, match="stdin:2: unknown command 'fly'"):
            run_session(session, script=None, as_json=True)
    shown = capsys.readouterr()
    commands = [json.loads(line)["command"] for line in shown.out.replace("(rl debug) ", "").splitlines() if line]
    assert commands == ["start", "step into", *(["step over"] if stdin is Terminal else [])]
    assert ("unknown command 'fly'" in shown.err) == (stdin is Terminal)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("debug")
    make_tiny_model(folder / "model")
    (folder / "f.py").write_text(COUNT)
    (folder / "commands").write_text("# a script\nstep into\n\nover\nbreakpoint 4\nc\nedit total 10\nout\nhelp\nquit\nnonsense")
    return folder


def debug(folder: Path, *words: str) -> list[str]:
    return ["debug", str(folder / "model"), str(folder / "f.py"), "--entry", "f", "--args", "[3]", "--max-tokens", "70", *words]


def test_a_real_model_is_driven_from_a_script(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(debug(folder, "--script", str(folder / "commands"), "--json")) == 0
    first = capsys.readouterr().out
    views: list[dict[str, Any]] = [json.loads(line) for line in first.splitlines()]
    assert [view["command"] for view in views] == [
        "start",
        "step into",
        "step over",
        "breakpoint 4",
        "continue",
        "edit total 10",
        "step out",
        "help",
    ]
    assert [view["real"].get("line_no") for view in views] == [1, 2, 3, None, 4, 4, 5, None]
    assert views[-2]["real"]["value"] == "13" and views[-2]["match"]["exact"] is False
    for view in (views[1], views[2], views[4], views[6]):  # it was never trained
        assert view["model"]["event"] is None and view["model"]["note"].startswith("no frame") and view["model"]["written"]
    assert main(debug(folder, "--script", str(folder / "commands"), "--json")) == 0
    assert capsys.readouterr().out == first
    assert main(debug(folder, "--script", str(folder / "commands"))) == 0
    shown = capsys.readouterr().out
    assert "!=  event" in shown and "it wrote:" in shown and "\x1b" not in shown


def test_wrong_input_is_told_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong").write_text("into\nfly\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    for words, reason in (
        (debug(folder, "--script", str(tmp_path / "wrong")), "wrong:2: unknown command 'fly'"),
        (["debug", str(folder / "none"), str(folder / "f.py")], "no such folder"),
        (["debug", str(folder / "model"), str(tmp_path / "broken.py")], "there is nothing to debug: syntax_error"),
        (debug(folder, "--max-frames", "0"), "--max-frames is 0; it must be at least 1"),
        (debug(folder, "--temperature", "-1"), "--temperature is -1.0"),
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1 and error.startswith("rl debug: ")
