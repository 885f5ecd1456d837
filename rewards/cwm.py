"""CWM's whole reward: every part must be right, then the length decides. The rewards `cwm_math` and `cwm_code`."""

from collections.abc import Mapping
from dataclasses import replace

from environments.records import Episode, Problem
from rewards.code import CodeGrader
from rewards.format import FAIL_REWARD, FormatCheck, LengthGrader, box_problem, code_problem, format_part, think_problem
from rewards.math import MathGrader
from rewards.score import Grader, Score, ScorePart, ScoreStatus


class CwmGrader:
    """-1 unless the answer and all formats are right, else the value of the length schedule; `parts` says which failed."""

    needs_n_tokens = True

    def __init__(self, answer: Grader, *, formats: Mapping[str, FormatCheck], length: LengthGrader) -> None:
        self._answer = answer
        self._formats = dict(formats)
        self._length = length

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        """`infra` or `ungradable` when the answer's score is."""
        score = await self._answer.grade(problem, episode)
        parts = {name: format_part(check(episode.response)) for name, check in self._formats.items()}
        failed = [name for name, part in parts.items() if part.value < 0]
        length = self._length.part(episode)
        if score.reward is None:
            return replace(score, parts={**parts, "length": length, **score.parts})
        parts["answer"] = ScorePart(value=score.reward, reason=score.reason)
        if score.status is not ScoreStatus.OK:
            failed.append("answer")
        parts["length"] = length
        told = failed or (["length"] if length.reason else ["answer"])
        return Score(
            reward=FAIL_REWARD if failed else length.value,
            status=ScoreStatus.POLICY_FAIL if failed or length.value <= FAIL_REWARD else ScoreStatus.OK,
            parts={**parts, **score.parts},
            reason="; ".join(f"{name}: {parts[name].reason}" for name in told),
            log=score.log,
        )

    async def close(self) -> None:
        await self._answer.close()


def cwm_math() -> CwmGrader:
    """The reward `cwm_math`."""
    return CwmGrader(MathGrader(), formats={"think_format": think_problem, "box_format": box_problem}, length=LengthGrader())


def cwm_code() -> CwmGrader:
    """The reward `cwm_code`. Raises SandboxUnavailable."""
    return CwmGrader(CodeGrader(), formats={"think_format": think_problem, "code_format": code_problem}, length=LengthGrader())
