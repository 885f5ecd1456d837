"""The math grader: what equals what, false accepts and rejects of symbolic comparison, and answers that cost too much."""

import asyncio
from typing import Any

import pytest

from environments.records import Episode, Message, Problem, StopReason, Task
from rewards.math import MathGrader, MathWorker
from rewards.score import Score, ScoreStatus


def grade_all(*pairs: tuple[Any, str], in_box: bool = True) -> list[Score]:
    """Grade (reference, answer) pairs with one grader, and so with one worker."""

    async def main() -> list[Score]:
        grader = MathGrader()
        scores = []
        for number, (gold, answer) in enumerate(pairs):
            problem = Problem(task=Task(id=f"t{number}", env="math", prompt=()), reference={"answer": gold}, source="test")
            text = f"So the answer is $\\boxed{{{answer}}}$." if in_box else answer
            episode = Episode(messages=(Message(role="assistant", content=text),), stop_reason=StopReason.DONE, n_sampled_tokens=1)
            scores.append(await grader.grade(problem, episode))
        await grader.close()
        return scores

    return asyncio.run(main())


NUMBERS_RIGHT = [
    ("5", "5."),
    ("5", " 5 "),
    ("5", "5.00"),
    ("5", "+5"),
    ("5", "x = 5"),
    ("42", "17 + 25 = 42"),
    ("12000", "12 000"),
    ("12000", "12,000"),
    ("12000", "12{,}000"),
    ("12000", r"12\,000"),
    ("1,000", "1000"),
    ("0.5", r"\frac12"),
    ("1/2", r"\frac{1}{2}"),
    ("1/2", r"\dfrac{1}{2}"),
    ("1/2", r"\tfrac 12"),
    ("1/2", ".5"),
    ("-3/4", r"-\frac{3}{4}"),
    ("-3/4", r"\frac{-3}{4}"),
    ("-3/4", "\u22123/4"),
    ("3/2", r"1\frac{1}{2}"),
    ("3/2", "1 1/2"),
    ("-3/2", r"-1\frac{1}{2}"),
    ("73", "**73**"),
    ("73", "$73$"),
    ("73", r"\(73\)"),
    ("73", r"\$73"),
    ("73", r"73\text{ apples}"),
    ("73", "73 dollars"),
    ("73", r"\boxed{73}"),
    ("5 cm", r"5\text{ centimeters}"),
    (r"5\text{ cm}^2", r"5 \mathrm{cm}^2"),
    (r"5\text{ cm}", "5"),
    (r"90^\circ", "90"),
    (r"90^\circ", "90 degrees"),
    ("50", r"50\%"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    (r"50\%", r"\frac{1}{2}"),
    ("5000000", "5 million"),
    ("120000", r"1.2 \times 10^5"),
    ("0.00012", r"1.2 \cdot 10^{-4}"),
    ("1011_2", "1011_{2}"),
    ("1011_2", "1011"),
    ("11", "11_{10}"),
    ("1A_{16}", "1a_{16}"),
    ("FF_{16}", "FF"),
    (17, "17"),
    (0.00001, "0.00001"),
    (r"\boxed{17}", "17"),
    ("9" * 200, "9" * 200 + ".0"),
]
NUMBERS_WRONG = [
    ("5", "6"),
    ("5", "-5"),
    ("5", "5 million"),
    ("5", "5 x"),
    ("5", "5x"),
    ("5", "x"),
    ("5", "B"),
    ("5", "5 or 6"),
    ("5", r"5 \text{ or } 6"),
    ("5", r"5 \text{ or more}"),
    ("5", "4, 5, 6"),
    ("5", "{4,5}"),
    ("5", r"\pm 5"),
    ("5", "5 = 6"),
    ("42", "17 + 25"),
    ("42", r"6 \times 7"),
    ("8", "2^3"),
    ("840", ""),
    ("1/3", "0.333"),
    ("1/3", "0.33333333"),
    ("1/2", "2/1"),
    ("1/2", "1/0"),
    ("50", r"5\%"),
    (r"50\%", "0.05"),
    ("5 cm", r"5 \text{ m}"),
    (r"5\text{ cm}^2", r"5\text{ cm}^3"),
    ("1011_2", "1011_3"),
    ("1011_2", "11"),
    ("1234", "1,23,4"),
    ("FF_{16}", "255"),
    ("9" * 200, "9" * 199 + "8"),
    ("1", "1" + "0" * 900),
    ("1", "1 " * 1000),
]


def test_plain_numbers_need_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_worker(self: MathWorker, gold: str, answer: str) -> None:
        raise AssertionError(f"the worker was asked about {gold} and {answer}")

    monkeypatch.setattr(MathWorker, "compare", no_worker)
    for pairs, reward in ((NUMBERS_RIGHT, 1.0), (NUMBERS_WRONG, -1.0)):
        for pair, score in zip(pairs, grade_all(*pairs), strict=True):
            assert score.reward == reward, (pair, score)
            assert score.reason and "\n" not in score.reason


WORDS = [
    (r"\text{Tuesday}", "tuesday", True),
    ("Tuesday", r"\text{Tuesday}", True),
    ("Tuesday", "Monday", False),
    ("Tuesday", "Monday or Tuesday", False),
    ("(B)", "B", True),
    ("B", r"\text{(B)}", True),
    ("B", "A", False),
    ("B", "b", False),
]


def test_words_and_choices() -> None:
    for (*pair, right), score in zip(WORDS, grade_all(*((gold, answer) for gold, answer, _ in WORDS)), strict=True):
        assert score.reward == (1.0 if right else -1.0), (pair, score)


SYMBOLIC = [
    (r"\sqrt{2}", "2^{1/2}", True),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
    (r"\sqrt{2}", "1.41421356", True),
    (r"\sqrt{2}", "1.4142", False),
    (r"\pi", "3.14", False),
    (r"3\pi", r"\pi \cdot 3", True),
    (r"3\pi", "3", False),
    (r"\frac{1}{2^{99}}", "2^{-99}", True),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", False),
    (r"\frac{x}{2^{99}}", r"\frac{x}{2^{98}}", False),
    (r"x = \frac{1}{2^{99}}", r"x = \frac{1}{2^{98}}", False),
    (r"5\sqrt{2}\text{ cm}", r"5\sqrt2\text{ m}", False),
    (r"5\sqrt{2}\text{ cm}", r"5\sqrt2", True),
    (r"x + 1011_2", r"x + 1011_3", False),
    ("x^2+1", "1+x^2", True),
    ("A_1 + 1", "1 + A_1", True),
    ("A_1", "A_2", False),
    ("x^2+1", "x^2-1", False),
    ("(1, 2)", "(1,2)", True),
    ("(1, 2)", "(2, 1)", False),
    ("1, 2", "2, 1", True),
    ("1, 2", r"1 \text{ and } 2", True),
    ("1, 2", "1, 2, 3", False),
    ("1, 2", "1, 3", False),
    (r"\{1,2\}", r"\{2,1\}", True),
    ("[1,2)", "(1,2)", False),
    (r"(-\infty, 3]", r"\left(-\infty,3\right]", True),
    ("y = 2x+3", "y=3+2x", True),
    ("y = 2x+3", "y=3+3x", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", False),
    ("2^{2005}", "2^{2005}", True),
]


def test_symbolic_answers() -> None:
    for (*pair, right), score in zip(SYMBOLIC, grade_all(*((gold, answer) for gold, answer, _ in SYMBOLIC)), strict=True):
        assert score.reward == (1.0 if right else -1.0), (pair, score)


BOMBS = [
    "9^{9^9}",
    "(10^8)!",
    "(x+1)^{10000}",
    "9^{99999999}",
    "1" * 500 + "x",
    "5!!!!!!!",
    "(" * 200 + "x" + ")" * 200,
    "{" * 300 + "x" + "}" * 300,
]


def test_costly_answers_never_reach_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_worker(self: MathWorker, gold: str, answer: str) -> None:
        raise AssertionError(f"the worker was asked about {answer}")

    monkeypatch.setattr(MathWorker, "compare", no_worker)
    for bomb, score in zip(BOMBS, grade_all(*(("x+1", bomb) for bomb in BOMBS)), strict=True):
        assert score.status == ScoreStatus.POLICY_FAIL, (bomb, score)
        assert "costly" in score.reason


def test_a_slow_comparison_is_killed_and_the_next_one_works() -> None:
    async def main() -> tuple[str, str, str]:
        worker = MathWorker(timeout_seconds=3.0)
        first = await worker.compare("x+1", "1+x")
        slow = await worker.compare("x+1", "9^{9^{9}}")
        assert not worker.running
        after = await worker.compare("x+1", "x+2")
        await worker.close()
        return first, slow, after

    assert asyncio.run(main()) == ("equal", "answer_too_slow", "different")


def test_a_worker_that_dies_is_replaced() -> None:
    async def main() -> str:
        worker = MathWorker(timeout_seconds=30.0)
        await worker.compare("x", "y")
        assert worker._process is not None
        worker._process.kill()
        verdict = await worker.compare("x+1", "1+x")
        await worker.close()
        return verdict

    assert asyncio.run(main()) == "equal"


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        grade_all((r"\sqrt{2}", "x"))


def test_model_text_is_never_evaluated(tmp_path: Any) -> None:
    mark = tmp_path / "executed"
    code = f"__import__('os').system('touch {mark}')"
    hostile = [code, f"x + {code}", rf"\text{{{code}}}", f"open('{mark}', 'w')", f"Integer({code})"]
    scores = grade_all(*(("x+1", answer) for answer in hostile))
    assert {score.status for score in scores} == {ScoreStatus.POLICY_FAIL}
    assert not mark.exists()


@pytest.mark.parametrize("gold", [None, "", "   ", True, float("nan"), [1, 2], {"a": 1}, r"\frac{", "9^{9^9}", "1" * 2000])
def test_unusable_reference_is_ungradable(gold: Any) -> None:
    (score,) = grade_all((gold, "x + 3"))
    assert (score.status, score.reward) == (ScoreStatus.UNGRADABLE, None)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (r"\boxed{1} no, \boxed{7}", 1.0),
        (r"\boxed {7}", 1.0),
        (r"\boxed{\boxed{7}}", 1.0),
        (r"\boxed{\{7\}}", -1.0),
        (r"\boxed{7} and \boxed{8}", -1.0),
        (r"\boxed{1}\boxed{2}\boxed{840}", -1.0),
        (r"\boxed{7} or rather \boxed{8", -1.0),
        (r"\boxed{7", -1.0),
        (r"\boxed{}", -1.0),
        (r"\boxed 7", -1.0),
        ("7", -1.0),
        ("", -1.0),
    ],
)
def test_the_last_closed_box_counts(response: str, reward: float) -> None:
    (score,) = grade_all(("7", response), in_box=False)
    assert score.reward == reward
