"""A debugging session: the model and the real program take the same steps, each from where it stands."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from environments.traces.compare import ComponentMatch, compare_events
from environments.traces.debugger.machine import ActionKind
from environments.traces.entry import source_lines
from environments.traces.records import TraceEvent
from rl.debug.commands import HELP, Command
from rl.debug.neural import ENDED, ModelStep, ModelTrace, NeuralDebugger, Prediction
from rl.debug.real import RealProgram, RealState


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What there is to show after a command."""

    command: str
    real: TraceEvent | None = None
    """Where the program stands; None when there is nothing new."""
    real_note: str = ""
    model: TraceEvent | None = None
    """Where the model says that it stands; None when there is nothing new, or it wrote no frame."""
    model_note: str = ""
    predictions: tuple[Prediction, ...] = ()
    """Every frame that the model wrote for this command."""
    match: ComponentMatch | None = None
    """What of the model's event is right; None where there is nothing to compare."""
    message: str = ""
    breakpoints: tuple[int, ...] = ()


_STEPS = {"step into": ActionKind.STEP_INTO, "step over": ActionKind.STEP_OVER, "step out": ActionKind.STEP_RETURN}


class Session:
    """Takes commands. A command that fails changes nothing."""

    def __init__(self, program: RealProgram, neural: NeuralDebugger, *, start: RealState) -> None:
        self._program, self._neural, self._real = program, neural, start
        trace = start.recording.trace
        self._model = ModelTrace(source=trace.source, entry_line=trace.entry_line, frames=trace.events[:1])
        self._before: list[tuple[RealState, ModelTrace]] = []
        self._breakpoints: tuple[int, ...] = ()

    def start(self) -> View:
        """The first event, which the model is given: it holds the arguments."""
        return View(command="start", real=self._real.event, model=self._model.frames[0], model_note="given to the model")

    def run(self, command: Command) -> View:
        """Take one command. Raises ValueError for one that cannot be taken."""
        if kind := _STEPS.get(command.name):
            steps: dict[ActionKind, Callable[[ModelTrace], ModelStep]] = {
                ActionKind.STEP_INTO: self._neural.step_into,
                ActionKind.STEP_OVER: self._neural.step_over,
                ActionKind.STEP_RETURN: self._neural.step_out,
            }
            return self._move(command, self._program.take(self._real, kind), steps[kind](self._model))
        if command.name == "continue":
            return self._move(command, self._program.run(self._real, self._breakpoints), self._run_model())
        if command.name == "breakpoint":
            return self._breakpoint(command)
        if command.name == "edit":
            return self._edit(command)
        if command.name == "back":
            if not self._before:
                raise ValueError("there is nothing to undo: this is the first event")
            self._real, self._model = self._before.pop()
            return self._standing(command)
        if command.name == "sync":
            self._before.append((self._real, self._model))
            self._model = replace(self._model, frames=self._real.machine.events[: self._real.at + 1])
            return self._standing(command, note="given to the model")
        return View(command=str(command), message=HELP)

    def _run_model(self) -> ModelStep:
        if not self._breakpoints:
            return self._neural.run_to_end(self._model)
        lines = source_lines(self._model.source)
        return self._neural.run_to_line(self._model, {lines[number - 1] for number in self._breakpoints})

    def _move(self, command: Command, real: RealState | None, step: ModelStep) -> View:
        if real is None and step.problem == ENDED:
            return View(command=str(command), real_note=self._real.end, model_note=step.problem)
        end = self._real.end if real is None else ""
        self._before.append((self._real, self._model))
        self._real, self._model = real or self._real, step.trace
        return View(
            command=str(command),
            real=None if real is None else real.event,
            real_note=end,
            model=step.event,
            model_note=step.problem,
            predictions=step.predictions,
            match=None if real is None else compare_events(real.event, step.event),
            breakpoints=self._breakpoints,
        )

    def _standing(self, command: Command, *, note: str = "") -> View:
        """Where both stand."""
        real, model = self._real.event, self._model.frames[-1]
        match = compare_events(real, model)
        return View(command=str(command), real=real, model=model, model_note=note, match=match, breakpoints=self._breakpoints)

    def _breakpoint(self, command: Command) -> View:
        n_lines = len(source_lines(self._model.source))
        if command.line_no > n_lines:
            raise ValueError(f"breakpoint {command.line_no}: the program has {n_lines} lines")
        self._breakpoints = tuple(sorted({*self._breakpoints} ^ {command.line_no}))
        told = ", ".join(map(str, self._breakpoints)) or "none"
        return View(command=str(command), message=f"breakpoints: {told}", breakpoints=self._breakpoints)

    def _edit(self, command: Command) -> View:
        real = self._program.edit(self._real, name=command.local, value=command.value)
        shown, last = (real.event.locals or {})[command.local], self._model.frames[-1]
        self._before.append((self._real, self._model))
        self._real, note = real, ""
        if last.locals is None:
            note = f"not edited: the model stands at a {last.kind} event, which shows no locals"
        else:
            edited = replace(last, locals={**last.locals, command.local: shown})
            self._model = replace(self._model, frames=(*self._model.frames[:-1], edited))
        return self._standing(command, note=note)
