"""Grader of the debugger: each answer against the event that the action leads to, component by component.

It records the program again and makes the same walk as the environment. An answer to an action that leads from the return of a call
back to that call is right as well when the call, made with the predicted input, returns the same.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from environments.log_text import labelled
from environments.records import Episode, Message, Problem
from environments.reply import final_part
from environments.sandbox.base import Sandbox
from environments.sandbox.make import make_sandbox
from environments.traces.compare import EVENT_WEIGHT, LINE_WEIGHT, STATE_WEIGHT, ComponentMatch, compare_events
from environments.traces.debugger.inputs import gives_output
from environments.traces.debugger.machine import Machine
from environments.traces.debugger.task import LIMITS, DebuggerTask, known_values, turn_text, walk_digest
from environments.traces.debugger.walk import Step
from environments.traces.recordings import Recordings
from environments.traces.tasks import frames_text
from environments.traces.text import TraceTextError, parse_event, render_event
from rewards.score import Score, ScorePart, ScoreStatus
from rewards.trace_values import ungradable

PASS_REWARD, FAIL_REWARD = 1.0, -1.0


class TraceDebuggerGrader:
    """+1 when all answers are exactly right; otherwise from -1 to +1, by the mean of their partial rewards over all turns of the walk.

    A turn that has no answer counts as wrong.
    """

    def __init__(self, *, sandbox: Sandbox | None = None) -> None:
        """`sandbox`: one of its own by default, closed with the grader. Raises SandboxUnavailable when there is none here."""
        self._sandbox = sandbox or make_sandbox()
        self._owns_sandbox = sandbox is None
        self._recordings = Recordings(self._sandbox, limits=LIMITS)

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        try:
            asked = DebuggerTask.of(problem.task)
            machine, steps = asked.walk(await self._recordings.of(asked.program))
        except ValueError as error:
            return ungradable(problem, str(error))
        said = _exchanges(episode.messages)
        shown = bool(said) and all(text.endswith(turn_text(machine, step)) for (text, _), step in zip(said, steps, strict=False))
        if not shown or episode.outcome.get("walk", own := walk_digest(machine, steps)) != own:
            return ungradable(problem, "the episode shows other states than the trace of its program: the program does not repeat itself")
        answers = [answer for _, answer in said[: len(steps)]]
        matches = [await self._match(machine, step, answer) for step, answer in zip(steps, answers, strict=False)]
        matches += [compare_events(machine.events[step.to], None) for step in steps[len(answers) :]]
        return _score(machine, steps, matches, answers)

    async def close(self) -> None:
        """End what runs."""
        await self._recordings.close()
        if self._owns_sandbox:
            await self._sandbox.close()

    async def _match(self, machine: Machine, step: Step, answer: str) -> ComponentMatch:
        true = machine.events[step.to]
        try:
            predicted = parse_event(frames_text(final_part(answer)), known=known_values(machine, step))
        except TraceTextError:
            return compare_events(true, None)
        match = compare_events(true, predicted)
        if match.exact or not machine.is_inverse_of_call(step.at, step.to):
            return match
        other_input = await gives_output(machine, step.to, predicted, sandbox=self._sandbox)
        return compare_events(true, true) if other_input else match


def _exchanges(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """What was shown, and the answer to it."""
    return [(before.content, message.content) for before, message in pairwise(messages) if message.role == "assistant"]


def _score(machine: Machine, steps: Sequence[Step], matches: Sequence[ComponentMatch], answers: Sequence[str]) -> Score:
    right = sum(match.exact for match in matches)
    parts = {
        "exact": ScorePart(value=right / len(matches), weight=0.0, reason=f"{right} of {len(matches)} answers are exactly right"),
        "event": ScorePart(value=fmean(match.event for match in matches), weight=EVENT_WEIGHT),
        "line": ScorePart(value=fmean(match.line for match in matches), weight=LINE_WEIGHT),
    }
    for name, values in (
        ("locals", [match.locals for match in matches if match.locals is not None]),
        ("value", [float(match.value) for match in matches if match.value is not None]),
    ):
        if values:
            parts[name] = ScorePart(value=fmean(values), weight=STATE_WEIGHT * len(values) / len(matches))
    passed = right == len(matches)
    share = fmean(match.reward for match in matches)
    return Score(
        reward=PASS_REWARD if passed else FAIL_REWARD + (PASS_REWARD - FAIL_REWARD) * share,
        status=ScoreStatus.OK if passed else ScoreStatus.POLICY_FAIL,
        parts=parts,
        reason="all answers are right" if passed else _first_wrong(steps, matches, answers),
        log="".join(_turn_log(machine, *turn) for turn in zip(steps, (*answers, *[""] * len(steps)), strict=False)),
    )


def _first_wrong(steps: Sequence[Step], matches: Sequence[ComponentMatch], answers: Sequence[str]) -> str:
    number, step, match = next((n, s, m) for n, (s, m) in enumerate(zip(steps, matches, strict=True), start=1) if not m.exact)
    right = f"{sum(match.exact for match in matches)} of {len(matches)} answers are right"
    if number > len(answers):
        return f"{right}; turn {number} was not answered"
    if match.reward == 0.0:
        return f"{right}; turn {number} ({step.action}) has nothing right, or is no frame"
    wrong = [
        name
        for name, share in (("event", match.event), ("line", match.line), ("locals", match.locals), ("value", match.value))
        if share is not None and share < 1
    ]
    return f"{right}; turn {number} ({step.action}) is wrong in {', '.join(wrong)}"


def _turn_log(machine: Machine, step: Step, answer: str) -> str:
    true = render_event(machine.events[step.to], known={})
    return labelled("action", str(step.action)) + labelled("expected", true) + labelled("answer", answer)
