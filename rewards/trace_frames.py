"""Graders of predicted frames: the one that comes next (`trace_next_frame`), or all up to the end (`trace_full`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from environments.log_text import labelled
from environments.records import Episode, Problem
from environments.reply import final_part
from environments.traces.compare import ComponentMatch, compare_events
from environments.traces.records import TraceEvent
from environments.traces.tasks import FULL, NEXT_FRAME, FrameTask, ends_entry, frames_text, read_frame_task
from environments.traces.text import FRAME, TraceTextError, parse_event, parse_frames, render_event
from rewards.score import Score, ScorePart, ScoreStatus
from rewards.trace_values import ungradable

PASS_REWARD, FAIL_REWARD = 1.0, -1.0


class _FrameGrader(ABC):
    """+1 when every frame is right, otherwise -1, or between -1 and +1 by the components that are right (`partial_credit`)."""

    env: ClassVar[str]

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        try:
            task = read_frame_task(self.env, problem.reference)
        except ValueError as error:
            return ungradable(problem, str(error))
        predicted, broken = self._predicted(task, final_part(episode.response))
        return self._judged(task, predicted, broken)

    def _judged(self, task: FrameTask, predicted: Sequence[TraceEvent], broken: str) -> Score:
        return _score(task, predicted, broken=broken)

    @abstractmethod
    def _predicted(self, task: FrameTask, reply: str) -> tuple[tuple[TraceEvent, ...], str]:
        """The frames of a reply, up to what is none, and what is wrong with that."""

    async def close(self) -> None:  # noqa: B027  # whole as it is
        """Nothing to release."""


class TraceNextFrameGrader(_FrameGrader):
    """The reply is exactly one frame."""

    env = NEXT_FRAME

    def _predicted(self, task: FrameTask, reply: str) -> tuple[tuple[TraceEvent, ...], str]:
        try:
            return (parse_event(frames_text(reply), known=task.known),), ""
        except TraceTextError as error:
            return (), str(error)


class TraceFullGrader(_FrameGrader):
    """The reply is all frames up to the return of the entry. A frame is compared with the one at its place."""

    env = FULL

    def _predicted(self, task: FrameTask, reply: str) -> tuple[tuple[TraceEvent, ...], str]:
        text, broken = frames_text(reply), ""
        try:
            events, _ = parse_frames(task.shown + text, source=task.code)
        except TraceTextError as error:
            broken = str(error)
            whole, separator, _ = (task.shown + text)[: error.position].rpartition(FRAME)
            events, _ = parse_frames(whole + separator, source=task.code)
        n_shown = task.shown.count(FRAME)
        if not broken and not ends_entry(events):
            broken = "the frames do not go to the return of the entry"
        return events[n_shown:], broken


def _score(task: FrameTask, predicted: Sequence[TraceEvent], *, broken: str) -> Score:
    expected = task.expected
    matches = [compare_events(*pair) for pair in zip(expected, predicted, strict=False)]
    # what is no frame counts as one that is wrong
    n_frames = max(len(expected), len(predicted) + bool(broken))
    share = sum(match.reward for match in matches) / n_frames
    exact = not broken and len(predicted) == len(expected) and all(match.exact for match in matches)
    missing = [compare_events(event, None) for event in expected[len(matches) :]]
    parts = {
        "exact": ScorePart(value=float(exact), weight=0.0),
        "valid": ScorePart(value=float(not broken), weight=0.0, reason=broken),
        "frames": ScorePart(value=sum(match.exact for match in matches) / n_frames, weight=0.0),
        **_components([*matches, *missing], expected),
    }
    log = labelled("expected", _text(expected)) + labelled("predicted", _text(predicted)) + labelled("no frame", broken)
    if exact:
        return Score(reward=PASS_REWARD, status=ScoreStatus.OK, parts=parts, reason="every frame is right", log=log)
    reward = FAIL_REWARD + (PASS_REWARD - FAIL_REWARD) * share if task.partial_credit else FAIL_REWARD
    reason = broken or _difference(expected, predicted, matches)
    return Score(reward=reward, status=ScoreStatus.POLICY_FAIL, parts=parts, reason=reason, log=log)


def _components(matches: Sequence[ComponentMatch], expected: Sequence[TraceEvent]) -> dict[str, ScorePart]:
    """The share of the expected frames that has a component right, of those that have the component; of locals, of the names.

    As CWM's authors report it: `action` is event and line, `state` all locals or the value, exactly.
    """
    names = ("event", "line", "locals", "value", "action", "state")
    states: dict[str, list[float]] = {name: [] for name in names}
    for match, event in zip(matches, expected, strict=True):
        states["event"].append(float(match.event))
        states["line"].append(float(match.line))
        states["locals" if event.locals is not None else "value"].append(match.state)
        states["action"].append(float(match.event and match.line))
        states["state"].append(float(match.state == 1.0))
    return {name: ScorePart(value=sum(found) / len(found), weight=0.0) for name, found in states.items() if found}


def _difference(expected: Sequence[TraceEvent], predicted: Sequence[TraceEvent], matches: Sequence[ComponentMatch]) -> str:
    checks: tuple[tuple[str, Callable[[ComponentMatch], bool]], ...] = (
        ("event", lambda match: match.event),
        ("line", lambda match: match.line),
        ("state", lambda match: match.state == 1.0),
    )
    for number, match in enumerate(matches):
        wrong = [name for name, right in checks if not right(match)]
        if wrong:
            return f"frame {number + 1} of {len(expected)} has the wrong {' and '.join(wrong)}"
    return f"{len(predicted)} frames instead of {len(expected)}"


def _text(events: Sequence[TraceEvent]) -> str:
    """The frames of a log, one a line; every local is written out."""
    return "\n".join(render_event(event, known={}).replace("\n", "") for event in events[:200])
