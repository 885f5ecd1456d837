"""Traces judged by their answer, what the call returns at the end, or raises: whole ones, and the return frame alone.

How exact the frames are is told beside it.
"""

from collections.abc import Sequence

from environments.code_tests.compare import same_literal
from environments.log_text import labelled
from environments.traces.records import EventKind, TraceEvent
from environments.traces.tasks import RETURN, FrameTask, return_text
from environments.traces.text import TraceTextError, parse_event
from rewards.score import Score, ScoreStatus
from rewards.trace_frames import FAIL_REWARD, PASS_REWARD, TraceFullGrader


class TraceAnswerGrader(TraceFullGrader):
    """+1 when the reply is a valid trace up to the return of the entry, and that returns the right value, -1 otherwise.

    The answer counts as in `trace_output`: values are compared as Python literals. Frames in between may be wrong. Of the parts,
    `valid`, `state` and `action` are what CWM's authors report of traces.
    """

    def _judged(self, task: FrameTask, predicted: Sequence[TraceEvent], broken: str) -> Score:
        score = super()._judged(task, predicted, broken)
        expected = _outcome(task.expected)
        found = ("", "") if broken else _outcome(predicted)
        right = not broken and found[0] == expected[0] and same_literal(found[1], expected[1])
        reason = broken or f"the trace ends with {_said(found)}" + ("" if right else f" instead of {_said(expected)}")
        log = labelled("expected answer", _said(expected)) + labelled("predicted answer", "" if broken else _said(found)) + score.log
        status = ScoreStatus.OK if right else ScoreStatus.POLICY_FAIL
        return Score(reward=PASS_REWARD if right else FAIL_REWARD, status=status, parts=score.parts, reason=reason, log=log)


class TraceReturnGrader(TraceAnswerGrader):
    """+1 when the reply is the return frame of the call with the right value, -1 otherwise: CWM's authors call it a single step.

    The value is compared as in `trace_output`; the line may be wrong.
    """

    env = RETURN

    def _predicted(self, task: FrameTask, reply: str) -> tuple[tuple[TraceEvent, ...], str]:
        try:
            return (parse_event(return_text(reply), known={}),), ""
        except TraceTextError as error:
            return (), str(error)


def _outcome(events: Sequence[TraceEvent]) -> tuple[str, str]:
    """`returns` or `raises`, and what. The last event is the return of the entry; one that an exception leaves returns None."""
    last, before = events[-1], events[-2] if len(events) > 1 else None
    if before is not None and before.kind is EventKind.EXCEPTION and before.depth == 1 and last.value == "None":
        return "raises", before.value or ""
    return "returns", last.value or ""


def _said(outcome: tuple[str, str]) -> str:
    kind, value = outcome
    return f"the exception {value[:200]!r}" if kind == "raises" else f"{value[:200]!r}"
