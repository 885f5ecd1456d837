"""Mixes of rewards: how they are written, and what becomes of the parts' verdicts."""

import asyncio

import pytest

from environments.records import Episode, Message, Problem, StopReason
from rewards.mix import MixGrader, Term, parse_mix
from rewards.registry import make_grader, reward
from rewards.score import Score, ScorePart, ScoreStatus
from tests.fakes import make_problem


def episode(problem: Problem, response: str) -> Episode:
    messages = (*problem.task.prompt, Message(role="assistant", content=response))
    return Episode(messages=messages, stop_reason=StopReason.DONE, n_sampled_tokens=3)


def grade(spec: str, response: str) -> Score:
    async def body() -> Score:
        grader = make_grader(spec)
        try:
            return await grader.grade(make_problem(), episode(make_problem(), response))
        finally:
            await grader.close()

    return asyncio.run(body())


@reward("mix_right")
def mix_right(problem: Problem, response: str) -> Score:
    right = response.startswith("4")
    status = ScoreStatus.OK if right else ScoreStatus.POLICY_FAIL
    return Score(
        reward=1.0 if right else -1.0,
        status=status,
        parts={"tests": ScorePart(value=0.5, weight=2.0, reason="1 of 2")},
        reason="it is 4" if right else "it is not 4",
    )


@reward("mix_length")
def mix_length(problem: Problem, response: str) -> float:
    return -len(response) / 10


@reward("mix_broken")
def mix_broken(problem: Problem, response: str) -> float:
    raise OSError("the judge is away")


@reward("mix_ungradable")
def mix_ungradable(problem: Problem, response: str) -> Score:
    return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason="no reference")


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("math", [("math", 1.0)]),
        (" code +  0.1 * think_format + 0.2*my_pkg.sub:brevity ", [("code", 1.0), ("think_format", 0.1), ("my_pkg.sub:brevity", 0.2)]),
        ("1e+1*math + -.5*trl:accuracy_reward", [("math", 10.0), ("trl:accuracy_reward", -0.5)]),
        ("a+2*b", [("a", 1.0), ("b", 2.0)]),
        ("digits-then-huge + 1e-3*b", [("digits-then-huge", 1.0), ("b", 0.001)]),
    ],
)
def test_a_mix_is_terms_with_weights(text: str, terms: list[tuple[str, float]]) -> None:
    assert [(term.name, term.weight) for term in parse_mix(text)] == terms


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "position 1: a name is missing"),
        ("math + ", "position 8: a name is missing"),
        ("math + + code", r"position 8: '\+' begins no term"),
        ("math code", r"position 6: 'c' instead of ' \+ '"),
        ("math + x*code", "position 8: 'x' is not a number"),
        ("math + nan*code", "position 8: the weight nan is not a finite number"),
        ("math + inf*code", "position 8: the weight inf is not a finite number"),
        ("math + 0*code", "position 8: a weight of 0 adds nothing: leave 'code' out"),
        ("-1*math + code", "position 1: the first term decides what passes, so its weight must be above 0, not -1"),
        ("math + 0.5*math", "position 12: 'math' is there twice"),
    ],
)
def test_a_wrong_mix_names_the_position(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_mix(text)


def test_the_reward_is_the_weighted_sum_and_the_first_part_decides() -> None:
    right, wrong = grade("mix_right + 0.5*mix_length", "4 indeed"), grade("2*mix_right + -1*mix_length", "it is five")
    assert (right.reward, right.status) == (pytest.approx(1.0 - 0.5 * 0.8), ScoreStatus.OK)
    assert (wrong.reward, wrong.status) == (pytest.approx(-2.0 + 1.0), ScoreStatus.POLICY_FAIL)
    assert [(name, part.value, part.weight) for name, part in right.parts.items()] == [
        ("mix_right", 1.0, 1.0),
        ("mix_right.tests", 0.5, 0.0),
        ("mix_length", -0.8, 0.5),
    ]
    assert right.parts["mix_right"].reason == "it is 4"
    assert right.reason == "mix_right: ok, it is 4; mix_length: policy_fail"


def test_a_single_weighted_reward_is_scaled() -> None:
    score = grade("0.5*mix_right", "4")
    assert (score.reward, score.parts["mix_right"].weight) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("spec", "status", "graded"),
    [
        ("mix_right + 0.1*mix_broken", ScoreStatus.INFRA, ["mix_right", "mix_right.tests"]),
        ("mix_right + 0.1*mix_ungradable", ScoreStatus.UNGRADABLE, ["mix_right", "mix_right.tests"]),
        ("mix_ungradable + 0.1*mix_broken", ScoreStatus.INFRA, []),
    ],
)
def test_a_part_without_a_verdict_leaves_the_whole_without_a_reward(spec: str, status: ScoreStatus, graded: list[str]) -> None:
    score = grade(spec, "4")
    assert (score.reward, score.status, list(score.parts)) == (None, status, graded)
    assert ("mix_broken: infra, OSError: the judge is away" in score.reason) == ("mix_broken" in spec)


def test_parts_run_side_by_side_and_all_are_closed() -> None:
    events: list[str] = []

    class Waiting:
        def __init__(self, name: str, mine: asyncio.Event, other: asyncio.Event) -> None:
            self.name, self.mine, self.other = name, mine, other

        async def grade(self, problem: Problem, episode: Episode) -> Score:
            self.mine.set()
            await self.other.wait()
            return Score(reward=1.0, status=ScoreStatus.OK)

        async def close(self) -> None:
            events.append(f"{self.name} closed")
            if self.name == "first":
                raise OSError("cannot close")

    async def body() -> Score:
        one, two = asyncio.Event(), asyncio.Event()
        grader = MixGrader([Term(name="first"), Term(name="second")], [Waiting("first", one, two), Waiting("second", two, one)])
        score = await grader.grade(make_problem(), episode(make_problem(), "x"))
        with pytest.raises(OSError, match="cannot close"):
            await grader.close()
        return score

    assert asyncio.run(body()).reward == 2.0
    assert events == ["first closed", "second closed"]
