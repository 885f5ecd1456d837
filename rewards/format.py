r"""CWM's format rewards and its length schedule, each +1 to -1.

`think_format`: exactly one `</think>`. `box_format` and `code_format`: exactly one `\boxed{}`, or fenced block, behind it.
`length`: by the number of sampled tokens. They say nothing about the answer: a mix or `rewards/cwm.py` joins them with a grader
that does. Of an episode of several turns the last reply counts, and the tokens of all.
"""

from collections.abc import Callable

from environments.records import Episode, Problem
from environments.reply import THINK_END, final_part
from rewards.extract import ExtractionError, only_box, only_fenced_block
from rewards.score import Score, ScorePart, ScoreStatus

PASS_REWARD, FAIL_REWARD = 1.0, -1.0
FormatCheck = Callable[[str], str]
"""Takes the whole response and says what is wrong with it; empty when nothing is."""


def think_problem(response: str) -> str:
    """Why the reasoning is not closed exactly once."""
    count = response.count(THINK_END)
    return "" if count == 1 else f"{count} {THINK_END} instead of exactly one"


def box_problem(response: str) -> str:
    """Why there is not exactly one box behind the reasoning."""
    return _missing(only_box, response)


def code_problem(response: str) -> str:
    """Why there is not exactly one fenced block behind the reasoning."""
    return _missing(only_fenced_block, response)


def think_format(problem: Problem, response: str) -> Score:
    """The reward `think_format`."""
    return _score("think_format", think_problem(response))


def box_format(problem: Problem, response: str) -> Score:
    """The reward `box_format`."""
    return _score("box_format", box_problem(response))


def code_format(problem: Problem, response: str) -> Score:
    """The reward `code_format`."""
    return _score("code_format", code_problem(response))


class LengthGrader:
    """1 up to `soft_max` sampled tokens, from there linearly down to -1 at `hard_max`, and -1 beyond: the reward `length`."""

    needs_n_tokens = True
    """It cannot grade a response whose number of tokens is not known."""

    def __init__(self, *, soft_max: int = 8192, hard_max: int = 65536, growth_steps: int = 10_000) -> None:
        """The defaults are CWM's. `soft_max` grows linearly to `hard_max` over the first `growth_steps` policy versions, that is
        training steps; 0 means that it stays. Raises ValueError for limits that are out of order.
        """
        if not 0 < soft_max <= hard_max:
            raise ValueError(f"length: soft_max is {soft_max} and hard_max {hard_max}; it must be 0 < soft_max <= hard_max")
        if growth_steps < 0:
            raise ValueError(f"length: growth_steps is {growth_steps}; it must be >= 0")
        self._soft_max, self._hard_max, self._growth_steps = soft_max, hard_max, growth_steps

    def soft_max_at(self, policy_version: int) -> int:
        """The soft limit in tokens for episodes that were started with this policy version."""
        grown = min(1.0, policy_version / self._growth_steps) if self._growth_steps else 0.0
        return round(self._soft_max + (self._hard_max - self._soft_max) * grown)

    def part(self, episode: Episode) -> ScorePart:
        """The value for an episode, and why it is not 1."""
        tokens, soft_max = episode.n_sampled_tokens, self.soft_max_at(episode.policy_version)
        if tokens <= soft_max:
            return ScorePart(value=PASS_REWARD)
        if tokens >= self._hard_max:
            return ScorePart(value=FAIL_REWARD, reason=f"{tokens} tokens, the hard limit is {self._hard_max}")
        value = PASS_REWARD + (FAIL_REWARD - PASS_REWARD) * (tokens - soft_max) / (self._hard_max - soft_max)
        return ScorePart(value=value, reason=f"{tokens} tokens, above the soft limit of {soft_max}")

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        """Passed below the hard limit."""
        part = self.part(episode)
        status = ScoreStatus.OK if part.value > FAIL_REWARD else ScoreStatus.POLICY_FAIL
        return Score(reward=part.value, status=status, parts={"length": part}, reason=part.reason)

    async def close(self) -> None:
        """Nothing to release."""


def format_part(problem: str) -> ScorePart:
    """+1 when nothing is wrong, else -1 and why."""
    return ScorePart(value=FAIL_REWARD if problem else PASS_REWARD, reason=problem)


def _missing(find: Callable[[str], object], response: str) -> str:
    try:
        find(final_part(response))
    except ExtractionError as error:
        return str(error)
    return ""


def _score(name: str, problem: str) -> Score:
    part = format_part(problem)
    status = ScoreStatus.POLICY_FAIL if problem else ScoreStatus.OK
    return Score(reward=part.value, status=status, parts={name: part}, reason=problem)
