"""The math grader: what equals what, false accepts and rejects of symbolic comparison, and answers that cost too much."""

import asyncio
import random
from typing import Any

import pytest

from environments.records import Episode, Message, Problem, StopReason, Task
from rewards.extract import ExtractionError, only_box
from rewards.math import OPINION, MathGrader
from rewards.math_client import MathWorker
from rewards.score import Score, ScoreStatus


def grade_all(*pairs: tuple[Any, str], in_box: bool = True) -> list[Score]:
    """Grade (reference, answer) pairs with one grader, and so with one worker."""

    async def main() -> list[Score]:
        grader = MathGrader()
        scores = [await grade_one(grader, gold, answer, in_box=in_box) for gold, answer in pairs]
        await grader.close()
        return scores

    return asyncio.run(main())


async def grade_one(grader: MathGrader, gold: Any, answer: str, *, in_box: bool = True) -> Score:
    problem = Problem(task=Task(id="t", env="math", prompt=()), reference={"answer": gold}, source="test")
    text = f"So the answer is $\\boxed{{{answer}}}$." if in_box else answer
    episode = Episode(messages=(Message(role="assistant", content=text),), stop_reason=StopReason.DONE, n_sampled_tokens=1)
    return await grader.grade(problem, episode)


async def no_worker(self: MathWorker, *arguments: Any, **more: Any) -> None:
    raise AssertionError(f"the worker was asked about {arguments} {more}")


NUMBERS_RIGHT = [
    ("5", "5."),
    ("5", " 5 "),
    ("5", "5.00"),
    ("5", "+5"),
    ("5", "x = 5"),
    ("42", "n = m = 42"),
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
    ("5", "6 = 5"),
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
    monkeypatch.setattr(MathWorker, "verdict", no_worker)
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
    ("42", "17 + 25 = 42", True),
    ("42", "17 + 26 = 42", False),
    ("1.41", r"\sqrt{2} \approx 1.41", True),
    ("1.31", r"\sqrt{2} \approx 1.31", False),
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
    "(" * 200 + "x" + "+1)" * 200,
    "{" * 200 + "x" + "+1}" * 200,
]


def test_costly_answers_never_reach_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = MathWorker.verdict

    async def watched(self: MathWorker, operation: Any, *, answer: str = "", **more: Any) -> Any:
        asked.append(answer)
        return await ask(self, operation, answer=answer, **more)

    monkeypatch.setattr(MathWorker, "verdict", watched)
    for bomb, score in zip(BOMBS, grade_all(*(("x+1", bomb) for bomb in BOMBS)), strict=True):
        assert score.status == ScoreStatus.POLICY_FAIL, (bomb, score)
        assert "costly" in score.reason
    assert set(asked) == {""}, "only the reference was checked"


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        grade_all((r"\sqrt{2}", "x"))
    assert grade_all(("7", "7.0"))[0].reward == 1.0, "numbers do not need it"


def test_model_text_is_never_evaluated(tmp_path: Any) -> None:
    mark = tmp_path / "executed"
    code = f"__import__('os').system('touch {mark}')"
    hostile = [code, f"x + {code}", rf"\text{{{code}}}", f"open('{mark}', 'w')", f"Integer({code})", f"[{code}, 1]", f"({code})!"]
    scores = grade_all(*(("x+1", answer) for answer in hostile))
    assert {score.status for score in scores} == {ScoreStatus.POLICY_FAIL}
    assert not mark.exists()


UNUSABLE = [
    None,
    "",
    "   ",
    True,
    float("nan"),
    [1, 2],
    {"a": 1},
    r"\frac{",
    "9^{9^9}",
    "1" * 2000,
    10**5000,
    "\ud800",
    r"\boxed{1} \boxed{2}",
]


@pytest.mark.parametrize("gold", UNUSABLE, ids=range(len(UNUSABLE)))
def test_an_unusable_reference_is_ungradable_whatever_was_answered(gold: Any) -> None:
    same = gold if isinstance(gold, str) else "1"
    scores = [*grade_all((gold, "x + 3"), (gold, same), (gold, "1, 2, 3")), *grade_all((gold, "no box"), in_box=False)]
    assert {(score.status, score.reward) for score in scores} == {(ScoreStatus.UNGRADABLE, None)}


BOXES = [
    (r"\boxed {7}", 1.0, ""),
    (r"\boxed{\boxed{7}}", 1.0, ""),
    (r"\boxed{ \boxed{7} }", 1.0, ""),
    (r"<think>\boxed{1}? No: \boxed{2}</think>So \boxed{7}", 1.0, ""),
    (r"<think>\boxed{7}</think>So \boxed{8}", -1.0, "8 is wrong"),
    (r"<think>\boxed{7}</think>So it is.", -1.0, "no \\boxed{}"),
    (r"\boxed{1} no, \boxed{7}", -1.0, "2 boxes instead of exactly one"),
    (r"\boxed{7} and again \boxed{7}", -1.0, "2 boxes instead of exactly one"),
    (r"\boxed{1}\boxed{2}\boxed{840}", -1.0, "3 boxes instead of exactly one"),
    (r"\boxed{\boxed{7}\boxed{8}}", -1.0, "a box inside a box"),
    (r"\boxed{\boxed{7} or 8}", -1.0, "a box inside a box"),
    (r"\boxed{\boxed{7}+{0}}", -1.0, "a box inside a box"),
    (r"\boxed{\boxed{\boxed{7}}}", -1.0, "a box inside a box"),
    (r"\boxed{\boxed 7}", -1.0, "a box inside a box"),
    (r"\boxed{7} or rather \boxed{8", -1.0, "not closed"),
    (r"\boxed{7", -1.0, "not closed"),
    (r"\boxed{\{7\}", -1.0, "not closed"),
    (r"\boxed{}", -1.0, "the box is empty"),
    (r"\boxed 7", -1.0, "without braces"),
    (r"\boxed7", -1.0, "without braces"),
    (r"\boxed{7} or \boxed 8", -1.0, "2 boxes instead of exactly one"),
    (r"\boxed 8, no, \boxed{7}", -1.0, "2 boxes instead of exactly one"),
    ("\\boxed\n{7}", 1.0, ""),
    ("\\boxed \r\n\t {7}", 1.0, ""),
    ("\\boxed\n{8} \\boxed{7}", -1.0, "2 boxes instead of exactly one"),
    ("\\boxed{\\boxed\n{7}}", 1.0, ""),
    (r"\fbox{7}", -1.0, "\\fbox{} instead of \\boxed{}"),
    (r"\boxed{7} \fbox{8}", -1.0, "2 boxes instead of exactly one"),
    (r"\boxed{\fbox{7}}", -1.0, "a box inside a box"),
    (r"\boxed{7} \boxedtheorem{8} \fboxrule", 1.0, ""),
    ("7", -1.0, "no \\boxed{}"),
    ("", -1.0, "no \\boxed{}"),
]


@pytest.mark.parametrize(("response", "reward", "reason"), BOXES)
def test_exactly_one_closed_box_counts(response: str, reward: float, reason: str) -> None:
    (score,) = grade_all(("7", response), in_box=False)
    assert score.reward == reward and reason in score.reason


TEN_MB = 10_000_000
HUGE = [
    "\\boxed{",
    "\\boxed{1}",
    "\\boxed",
    "\\boxed{7}" + " ",
    "{",
    "\\",
    "}",
    "\0",
    "\ud800",
    "\\boxed{" * 999 + "}" * 999,
    "</think>",
    "7",
]


@pytest.mark.parametrize("piece", HUGE, ids=lambda piece: repr(piece)[:20])
def test_huge_responses_are_answered(piece: str) -> None:
    """A quadratic scan would not end within the test's time limit."""
    text = piece * (TEN_MB // len(piece))
    scores = grade_all(("7", text), (r"\sqrt{2}", "\\boxed{" + text + "}"), in_box=False)
    assert {score.reward for score in scores} == {-1.0}
    assert all(len(score.reason) < 500 and score.reason.isprintable() for score in scores)


def test_extraction_of_a_box_is_linear() -> None:
    n = 300_000
    assert only_box("\\boxedx" * n + "\\boxed" + "\n" * n + "{7}") == "7"
    for hostile in ("\\boxed" * n + "{7}", "\\boxed\n" * n, "\\boxed{" * n, "{" * n, "\\" * n, "\\boxed{1}" * n):
        with pytest.raises(ExtractionError):
            only_box(hostile)


@pytest.mark.parametrize("odd", ["\0", "\ud800", "\x1b[2J", "\u202e", "\uffff", "\U0001f600", "\r\n", "\x85"])
def test_odd_characters_are_only_wrong(odd: str) -> None:
    answers = [odd, f"7{odd}8", f"{odd}{odd}7 x", f"x+{odd}", rf"\text{{{odd}}}", rf"\frac{{{odd}}}{{2}}", f"1, {odd}"]
    scores = grade_all(*((gold, answer) for answer in answers for gold in ("78", "x+1")))
    assert {score.status for score in scores} == {ScoreStatus.POLICY_FAIL}
    for score in scores:
        score.reason.encode()


PIECES = (
    *"7 ()[]{}=,;:%$^_!x.&-+/*`<",
    *("or", "and", "cm", "10", "e5", "1,000", "million", "{}", "^{}", "_{}", "\0", "\ud800", "\u2212", "9" * 50, "\\\\"),
    *(r"\{", r"\}", r"\$", r"\frac", r"\text{", r"\boxed{", r"\pm", r"\sqrt", r"\left", r"\right", r"\overline{3}", r"\times", r"\in"),
    *(r"\circ", r"\mathbf{v}", r"\text{ to }", r"\begin{pmatrix}"),
)


def test_random_answers_are_only_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error would be an infrastructure failure, and spare the policy its reward."""
    monkeypatch.setattr(MathWorker, "verdict", no_worker)
    monkeypatch.setattr("rewards.math._SAMPLED", 1 << 33)
    draw = random.Random(0)
    answers = ["".join(draw.choices(PIECES, k=draw.choice((3, 10, 30)))) for _ in range(5000)]
    answers += [(piece * 1000)[:999] for piece in PIECES if piece.count("{") == piece.count("}")]
    answers += [
        opening * 240 + "1" + closing * 240 for opening, closing in (("(1,", ")"), ("{", "}"), (r"\{", r"\}"), ("[", "]"), ("", "=1"))
    ]
    boxes = [f"\\boxed{{{answer}}}" for answer in answers]
    for response, score in zip(boxes, grade_all(*(("12345", box) for box in boxes), in_box=False), strict=True):
        assert score.status is ScoreStatus.POLICY_FAIL, (response, score)


def test_symbolic_verdicts_carry_a_second_opinion() -> None:
    rows = [("x+1", "1+x", 1.0, 1.0), ("x+1", "x+2", -1.0, 1.0), ("x+1", "1, 2", -1.0, 1.0)]
    vetoed = [(r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", -1.0, -1.0), ("3R^2", "3r^2", -1.0, -1.0), ("x, x, y", "x, y, y", -1.0, -1.0)]
    scores = grade_all(*((gold, answer) for gold, answer, *_ in rows + vetoed))
    assert [(score.reward, score.parts[OPINION].value if score.parts else None) for score in scores] == [
        (reward, agrees) for _, _, reward, agrees in rows + vetoed
    ]
    assert all(part.weight == 0 and part.reason.startswith("math-verify: ") for score in scores for part in score.parts.values())


def test_a_sample_of_exact_verdicts_gets_a_second_opinion_once_the_worker_is_warm() -> None:
    async def main() -> tuple[list[Score], list[Score]]:
        grader = MathGrader()
        cold = [await grade_one(grader, str(n), f"{n}.0") for n in range(200)]
        assert cold[0].reward == 1.0 and grader._warming is not None, "the first of the sample starts the worker behind the scenes"
        await grader._warming
        warm = [await grade_one(grader, str(n), f"{n}.0") for n in range(200)]
        again = [await grade_one(grader, str(n), f"{n}.0") for n in range(200)]
        assert [bool(score.parts) for score in warm] == [bool(score.parts) for score in again], "which ones is no accident"
        # 2^3 is no answer to 8 by our policy, and is one to math-verify
        differing = [await grade_one(grader, str(2**n), f"2^{{{n}}}") for n in range(2, 60)]
        await grader.close()
        return warm, [score for score in differing if score.parts]

    warm, differing = asyncio.run(main())
    sampled = [score for score in warm if score.parts]
    assert 5 <= len(sampled) <= 25
    assert {score.parts[OPINION].value for score in sampled} == {1.0}
    assert differing and {(score.reward, score.parts[OPINION].value) for score in differing} == {(-1.0, -1.0)}
