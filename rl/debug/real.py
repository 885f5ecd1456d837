"""The real program of a debugging session: a recording, and where in it the debugger stands."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace

from environments.sandbox.base import Sandbox
from environments.sandbox.make import make_sandbox
from environments.traces.debugger.machine import Action, ActionKind, Machine
from environments.traces.records import WHOLE, Edit, Recording, TraceEvent, TraceLimits
from environments.traces.tracer import Program, record_trace


@dataclass(frozen=True, kw_only=True, slots=True)
class RealState:
    """Where the program stands."""

    recording: Recording
    machine: Machine
    at: int
    """Number of the event."""
    edits: tuple[Edit, ...] = ()
    """What was changed on the way to here."""

    @property
    def event(self) -> TraceEvent:
        return self.machine.events[self.at]

    @property
    def end(self) -> str:
        """Why there is nothing behind the last event."""
        status = self.recording.status
        return "the program has ended" if status in WHOLE else f"the recording ends here ({status}): {self.recording.reason}"


class RealProgram:
    """Records a program in the sandbox, with edits or without, and steps through the recording."""

    def __init__(self, program: Program, *, limits: TraceLimits) -> None:
        self._program, self._limits = program, limits
        self._runner = asyncio.Runner()
        self._sandbox: Sandbox = make_sandbox()

    def close(self) -> None:
        """End the sandbox."""
        self._runner.run(self._sandbox.close())
        self._runner.close()

    def start(self) -> RealState:
        """The first event. Raises ValueError for a program that has none."""
        recording = self._record(())
        if not recording.trace.events:
            raise ValueError(f"there is nothing to debug: {recording.status}: {recording.reason}")
        return RealState(recording=recording, machine=Machine(recording.trace), at=0)

    def take(self, state: RealState, kind: ActionKind) -> RealState | None:
        """After one action; None when it leads nowhere."""
        to = state.machine.target(state.at, Action(kind=kind))
        return None if to is None else replace(state, at=to)

    def run(self, state: RealState, breakpoints: Collection[int]) -> RealState | None:
        """To the next breakpoint, or else to the last event; None when the program stands there already."""
        last = len(state.machine.events) - 1
        ahead = range(state.at + 1, last + 1)
        stop = next((index for index in ahead if any(state.machine.stops_at(index, line) for line in breakpoints)), last)
        return None if state.at == last else replace(state, at=stop)

    def edit(self, state: RealState, *, name: str, value: str) -> RealState:
        """The program, run again from its beginning, with one more local set where it stands now.

        Raises ValueError for an event that shows no such local, a value that is no literal, and a program that does not come to this
        event again.
        """
        shown = state.event.locals
        if shown is None:
            raise ValueError(f"a {state.event.kind} event shows no locals that could be edited: step to the next line first")
        if name not in shown:
            raise ValueError(f"there is no local {name!r} here; there are {', '.join(shown) or 'none'}")
        edits = (*state.edits, Edit(event=state.at, name=name, value=value))
        recording = self._record(edits)
        again = recording.trace.events
        same = (
            len(again) > state.at
            and again[: state.at] == state.machine.events[: state.at]
            and again[state.at].line_no == state.event.line_no
        )
        if not same:
            raise ValueError("the program does not come to this event again when it is run again: it does not repeat itself")
        return RealState(recording=recording, machine=Machine(recording.trace), at=state.at, edits=edits)

    def _record(self, edits: tuple[Edit, ...]) -> Recording:
        return self._runner.run(record_trace(self._program, sandbox=self._sandbox, limits=self._limits, edits=edits))
