"""Hostile code against the code graders: none passes, none harms the gradings beside and after it."""

import pytest

from rewards.score import Score, ScoreStatus
from tests.code_grading import ASSERTS, CALLS, STDIO, fenced, grade_pairs
from tests.hostile_code import FUNCTIONS, PROGRAMS

HONEST_FUNCTION = "def solve(n):\n    return n * n"
HONEST_PROGRAM = "print(int(input()) ** 2)"


def grade_between_honest(reference: dict[str, object], hostile: dict[str, str], *, env: str, honest: str) -> dict[str, Score]:
    """Scores by name; every fourth grading is an honest one and must pass. Comments make each its own run."""
    pairs, names = [], []
    for number, (name, code) in enumerate(hostile.items()):
        pairs.append((reference, fenced(code)))
        names.append(name)
        if number % 4 == 3 or number == len(hostile) - 1:
            pairs.append((reference, fenced(f"# {number}\n{honest}")))
            names.append("")
    scores = grade_pairs(pairs, env=env)
    for name, score in zip(names, scores, strict=True):
        if not name:
            assert (score.status, score.reward) == (ScoreStatus.OK, 1.0), score
    return {name: score for name, score in zip(names, scores, strict=True) if name}


@pytest.fixture(scope="module")
def scores_of_calls() -> dict[str, Score]:
    return grade_between_honest(CALLS, FUNCTIONS, env="code", honest=HONEST_FUNCTION)


@pytest.fixture(scope="module")
def scores_of_asserts() -> dict[str, Score]:
    return grade_between_honest(ASSERTS, FUNCTIONS, env="code", honest=HONEST_FUNCTION)


@pytest.fixture(scope="module")
def scores_of_programs() -> dict[str, Score]:
    return grade_between_honest(STDIO, PROGRAMS, env="code_stdio", honest=HONEST_PROGRAM)


def check_failed(score: Score) -> None:
    assert (score.status, score.reward) == (ScoreStatus.POLICY_FAIL, -1.0), score
    assert score.reason and "\n" not in score.reason
    score.reason.encode()  # can be written to a log


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hostile_function_fails_calls(name: str, scores_of_calls: dict[str, Score]) -> None:
    check_failed(scores_of_calls[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hostile_function_fails_asserts(name: str, scores_of_asserts: dict[str, Score]) -> None:
    check_failed(scores_of_asserts[name])


@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_program_fails(name: str, scores_of_programs: dict[str, Score]) -> None:
    check_failed(scores_of_programs[name])


def test_every_numbered_attack_is_there() -> None:
    """17, an empty test list, is refused when it is read: see test_code_rows.py."""
    numbers = {int(word) for name in FUNCTIONS if (word := name.split()[0]).isdigit()}
    assert numbers == set(range(1, 27)) - {17}
