"""Grader of predicted output: the response's only fenced block must equal the true output, as text or as a Python value."""

from environments.code_tests.compare import same_literal
from environments.fenced import ExtractionError, code_block
from environments.log_text import labelled
from environments.records import Episode, Problem
from rewards.score import Score, ScoreStatus

PASS_REWARD, FAIL_REWARD = 1.0, -1.0


class CodeOutputGrader:
    """+1 for the exact output, -1 otherwise. Whitespace at line ends and blank lines at the end do not count.

    With `compare: value` in the reference (CRUXEval), both are read as Python literals where they are such, and must be equal
    values of equal types.
    """

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        answer = problem.reference.get("answer")
        if not isinstance(answer, str) or not answer.strip():
            return Score(
                reward=None,
                status=ScoreStatus.UNGRADABLE,
                reason=f"problem {problem.task.id}: reference.answer is {answer!r}; it must be the program's output as text",
            )
        try:
            predicted = code_block(episode.response, languages=())
        except ExtractionError as error:
            return Score(reward=FAIL_REWARD, status=ScoreStatus.POLICY_FAIL, reason=str(error))
        log = labelled("predicted", predicted) + labelled("expected", answer)
        if problem.reference.get("compare") == "value" and same_literal(predicted, answer):
            return Score(reward=PASS_REWARD, status=ScoreStatus.OK, reason="the value is right", log=log)
        wanted, got = _lines(answer), _lines(predicted)
        if wanted == got:
            return Score(reward=PASS_REWARD, status=ScoreStatus.OK, reason="the output is right", log=log)
        return Score(reward=FAIL_REWARD, status=ScoreStatus.POLICY_FAIL, reason=_difference(wanted, got), log=log)

    async def close(self) -> None:
        """Nothing to release."""


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _difference(wanted: list[str], got: list[str]) -> str:
    for number, (left, right) in enumerate(zip(wanted, got, strict=False), start=1):
        if left != right:
            return f"line {number} is {right[:60]!r} instead of {left[:60]!r}"
    return f"{len(got)} lines instead of {len(wanted)}"
