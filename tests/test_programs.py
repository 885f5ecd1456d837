"""The program generator: its expected outputs are the truth, its problems reproducible, its options checked."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from configs.schema import TaskConfig
from environments.sources.programs import KINDS, ProgramSource
from environments.sources.straight_line import VARIABLES
from rewards.extract import only_box, only_fenced_block

SHAPES: list[dict[str, Any]] = [
    {},
    {"lines": 4, "max_value": 19, "operators": "+-*", "prints": 2},
    {"lines": 5, "branches": True, "negative": False},
    {"lines": 6, "loops": True, "operators": "*", "max_result": 500},
    {"lines": 12, "loops": True, "branches": True, "prints": 4, "operators": "+-*", "max_result": 10**6},
]
FUNCTIONS: list[dict[str, Any]] = [{}, {"steps": 4}, {"steps": 3, "arguments": 3}, {"steps": 2, "arguments": 2, "words": True, "tests": 20}]

FIRST_QUESTIONS = {"addition": "8+6=", "output": "a=8\na=a+1\nb=a+3\nprint(b)", "function": "f(x)=(x-5)*8"}


def source(kind: str, *, seed: int = 1, name: str = "s", prompt: str = "{question}", env: str = "", **options: Any) -> ProgramSource:
    config = TaskConfig(kind="programs", env=env or KINDS[kind][0], prompt=prompt, options={"kind": kind, **options})
    return ProgramSource(name, config=config, seed=seed)


def python(program: str) -> str:
    """Really run generated text (our own) in an isolated interpreter."""
    return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout


def question(source: ProgramSource, index: int) -> str:
    return source.problem(index).task.prompt[-1].content


def test_expected_output_is_what_python_prints() -> None:
    for options in SHAPES:
        programs = source("output", **options)
        problems = [programs.problem(index) for index in range(8)]
        for problem in problems:
            assert python(problem.task.prompt[-1].content) == problem.reference["answer"] + "\n"


def test_many_expected_outputs_are_what_python_prints() -> None:
    """One interpreter for hundreds of programs: each runs in a namespace of its own."""
    problems = [source("output", **options).problem(index) for options in SHAPES for index in range(100)]
    driver = (
        "import contextlib, io, json, sys\n"
        "def output(text):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        exec(text, {})\n"
        "    return out.getvalue()\n"
        "print(json.dumps([output(text) for text in json.load(sys.stdin)]))\n"
    )
    texts = json.dumps([problem.task.prompt[-1].content for problem in problems])
    printed = subprocess.run(
        [sys.executable, "-I", "-c", driver], input=texts, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert json.loads(printed) == [problem.reference["answer"] + "\n" for problem in problems]


@pytest.mark.parametrize("options", SHAPES)
def test_programs_have_the_shape_asked_for(options: dict[str, Any]) -> None:
    shape: dict[str, Any] = {"lines": 2, "max_value": 9, "operators": "+-", "prints": 1, "branches": False, "loops": False} | options
    programs = source("output", **options)
    problems = [programs.problem(index) for index in range(100)]
    texts = [problem.task.prompt[-1].content for problem in problems]
    assert ("if " in "".join(texts)) == shape["branches"]
    assert ("for " in "".join(texts)) == shape["loops"]
    for problem, text in zip(problems, texts, strict=True):
        statements = [line for line in text.split("\n") if line[0] != " " and not line.startswith(("else", "print"))]
        assert len(statements) == shape["lines"]
        assert text.count("print(") == len(problem.reference["answer"].split("\n")) <= shape["prints"]
        assert all(int(literal) <= shape["max_value"] for literal in re.findall(r"\d+", text))
        assert set(re.findall(r"[+*-]", text)) <= set(shape["operators"])
        assert not re.search(r"\bi=", text), "the loop counter is never assigned"
        assert not re.search(r"\b([a-z])[-+*]\1\b", text), "nothing cancels itself"
        results = [int(line) for line in problem.reference["answer"].split("\n")]
        if "max_result" in options:
            assert all(abs(result) <= options["max_result"] for result in results)
        if options.get("negative") is False:
            assert min(results) >= 0


def test_there_are_enough_variable_names() -> None:
    assert len(set(VARIABLES)) == len(VARIABLES) >= 12
    assert "i" not in VARIABLES
    source("output", lines=12).problem(0)


def test_each_function_solution_passes_its_own_tests() -> None:
    checks = []
    for options in FUNCTIONS:
        functions = source("function", **options)
        for index in range(25):
            problem = functions.problem(index)
            block = only_fenced_block(problem.reference["solution"])
            assert block.language == "python"
            tests = problem.reference["tests"]
            assert len(tests) == options.get("tests", 5)
            assert len({tuple(test["args"]) for test in tests}) == len(tests)
            checks += [block.text, *(f"assert f(*{test['args']}) == {test['expected']}" for test in tests)]
            assert problem.task.payload == {"entry_point": "f"} and problem.reference["entry_point"] == "f"
    assert python("\n".join(checks) + "\nprint('passed')") == "passed\n"


def test_function_questions_say_what_the_solution_does() -> None:
    formulas = source("function", steps=3, arguments=2)
    for index in range(50):
        problem = formulas.problem(index)
        signature, formula = problem.task.prompt[-1].content.split("=")
        assert f"def {signature}:\n    return {formula}\n" in problem.reference["solution"]
        assert "y" in formula
    words = source("function", steps=2, operators="+", words=True, max_value=2)
    assert re.fullmatch(r"Write a function f\(x\) that returns x plus [12], plus [12]\.", question(words, 0))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("addition", {"max_operand": 19}),
        ("addition", {"terms": 4}),
        ("arithmetic", {"operators": "+-*", "terms": 4}),
        ("arithmetic", {"negative": False, "min_operand": 3}),
    ],
)
def test_arithmetic_answers_are_right(kind: str, options: dict[str, Any]) -> None:
    made = source(kind, **options)
    problems = [made.problem(index) for index in range(100)]
    questions = [problem.task.prompt[-1].content for problem in problems]
    assert all(text.endswith("=") for text in questions)
    answers = python("\n".join(f"print({text[:-1]})" for text in questions)).split()
    assert [problem.reference["answer"] for problem in problems] == answers
    assert [only_box(problem.reference["solution"]) for problem in problems] == answers
    operands = [int(operand) for text in questions for operand in re.findall(r"\d+", text)]
    assert options.get("min_operand", 0) == min(operands) and max(operands) == options.get("max_operand", 9)
    assert {len(re.findall(r"\d+", text)) for text in questions} == {options.get("terms", 2)}
    assert set("".join(re.findall(r"[+*-]", "".join(questions)))) == set("+" if kind == "addition" else options.get("operators", "+-"))
    if options.get("negative") is False:
        assert all(int(answer) >= 0 for answer in answers)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_problem_is_a_pure_function_of_seed_name_and_index(kind: str) -> None:
    first, again = source(kind), source(kind)
    forwards = [first.problem(index) for index in range(20)]
    backwards = [again.problem(index) for index in reversed(range(20))]
    assert forwards == backwards[::-1]
    for other in (source(kind, seed=2), source(kind, name="t")):
        assert [question(other, index) for index in range(20)] != [question(first, index) for index in range(20)]
    assert first.problem(2**31 - 1).task.id == f"{kind}-{2**31 - 1}"


def test_problems_are_the_same_on_every_machine() -> None:
    """A change of the generator changes every recorded run: it should be noticed."""
    assert question(source("addition", max_operand=19), 0) == FIRST_QUESTIONS["addition"]
    assert question(source("output", lines=3), 0) == FIRST_QUESTIONS["output"]
    assert question(source("function", steps=2), 0) == FIRST_QUESTIONS["function"]


def test_the_prompt_template_surrounds_the_question() -> None:
    made = source("addition", prompt="Compute {question} Answer in {{box}}.")
    assert re.fullmatch(r"Compute \d\+\d= Answer in \{box\}\.", question(made, 3))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("adition", {}, r"options\.kind: unknown kind 'adition'; did you mean 'addition'"),
        (None, {}, "unknown kind 'None'; known: addition, arithmetic, function, output"),
        ("addition", {"max_operant": 9}, r"tasks\.s\.options: unknown option 'max_operant'; did you mean 'max_operand'"),
        ("addition", {"operators": "+"}, "unknown option 'operators'"),
        ("addition", {"terms": 1}, r"options\.terms is 1; it must be >= 2 and <= 20"),
        ("addition", {"terms": True}, r"options\.terms is True; it must be of type int"),
        ("addition", {"max_operand": "9"}, "max_operand is '9'; it must be of type int"),
        ("addition", {"min_operand": 5, "max_operand": 4}, "min_operand is 5, above max_operand 4"),
        ("arithmetic", {"operators": "+/"}, r"operators is '\+/'; it must be made of the characters"),
        ("arithmetic", {"operators": ""}, "operators is ''"),
        ("output", {"lines": 13}, r"options\.lines is 13"),
        ("output", {"max_result": 5}, "max_result is 5, below max_value 9"),
        ("function", {"arguments": 3, "steps": 1}, "takes at least 2 steps"),
    ],
)
def test_bad_options_are_named(kind: str | None, options: dict[str, Any], message: str) -> None:
    config = TaskConfig(kind="programs", env="custom", options={"kind": kind, **options})
    with pytest.raises(ValueError, match=message):
        ProgramSource("s", config=config, seed=0)


def test_a_kind_goes_to_the_environment_that_grades_it() -> None:
    with pytest.raises(ValueError, match=r"tasks\.s\.env is 'code', but problems of kind 'output' are graded by 'code_output'"):
        source("output", env="code")
    assert source("output", env="my_own").problem(0).task.env == "my_own"


def test_options_that_admit_no_problem_are_an_error() -> None:
    impossible = source("arithmetic", operators="-", terms=20, negative=False)
    with pytest.raises(ValueError, match="set negative: true"):
        impossible.problem(0)
