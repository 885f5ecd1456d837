"""The project's own procedural problems, small enough for a model of a million parameters with characters as tokens.

| kind | question | reference | environment |
|---|---|---|---|
| addition | `7+12=` | answer `19` | math |
| arithmetic | `7-3*2=` | answer `1` | math |
| output | a Python program | answer: what it prints | code_output |
| function | `f(x)=x*3+2` | tests of the function, entry point `f` | code |

Every problem carries `reference['solution']`: the ideal reply, for a supervised warm start. A problem is a pure function
of (seed, source name, index).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from configs.checked import bounded
from configs.schema import TaskConfig
from environments.lookup import unknown
from environments.records import Json, Problem
from environments.sources.base import random_stream
from environments.sources.options import read_options
from environments.sources.rows import RowMapper
from environments.sources.straight_line import ProgramShape, apply, generate, render, run

OPERATOR_WORDS = {"+": "plus", "-": "minus", "*": "times"}
LARGEST = 10**9
Row = dict[str, Json]


@dataclass(frozen=True, kw_only=True)
class AdditionOptions:
    """Options of kind `addition`."""

    min_operand: int = bounded(0, low=0, high=LARGEST)
    max_operand: int = bounded(9, low=1, high=LARGEST)
    terms: int = bounded(2, low=2, high=20)


@dataclass(frozen=True, kw_only=True)
class ArithmeticOptions(AdditionOptions):
    """Options of kind `arithmetic`; multiplication binds tighter, as in Python."""

    operators: str = "+-"
    negative: bool = True
    """Whether results may be below zero."""


@dataclass(frozen=True, kw_only=True)
class FunctionOptions:
    """Options of kind `function`."""

    steps: int = bounded(1, low=1, high=8)
    """Operations applied one after the other."""
    max_value: int = bounded(9, low=2, high=LARGEST)
    """Largest literal."""
    operators: str = "+-*"
    arguments: int = bounded(1, low=1, high=3)
    """Arguments of the function, each used once at least; the first step uses the first."""
    tests: int = bounded(5, low=1, high=20)
    """Hidden tests."""
    words: bool = False
    """Ask in a sentence, `Write a function f(x) that returns x times 3, plus 2.`, instead of by formula."""


class ProgramSource:
    """An unbounded source of one kind of generated problems."""

    size: int | None = None

    def __init__(self, name: str, *, config: TaskConfig, seed: int) -> None:
        """Raises ValueError for an unknown kind or option, or an environment that cannot grade the kind."""
        where = f"tasks.{name}.options"
        options = dict(config.options)
        kind = options.pop("kind", None)
        if kind not in KINDS:
            raise ValueError(f"{where}.kind: {unknown('kind', str(kind), KINDS)}")
        env, build = KINDS[kind]
        if config.env != env and config.env in {known for known, _ in KINDS.values()}:
            raise ValueError(f"tasks.{name}.env is {config.env!r}, but problems of kind {kind!r} are graded by {env!r}")
        self._name = name
        self._kind = kind
        self._make = build(options, where)
        self._salt = int(random_stream("programs", seed, name, kind).integers(2**62))
        self._mapper = RowMapper.of(name, config=config, generated=True)

    def problem(self, index: int) -> Problem:
        """The problem at `index`; raises ValueError when the options admit hardly any problem."""
        row = {"id": f"{self._kind}-{index}"} | self._make(random.Random(f"{self._salt}/{index}"))
        return self._mapper.problem(row, where=f"tasks.{self._name} problem {index}", default_id="")


def _make_arithmetic(rng: random.Random, *, options: ArithmeticOptions, where: str) -> Row:
    for _ in range(1000):
        operands = [rng.randint(options.min_operand, options.max_operand) for _ in range(options.terms)]
        operators = [rng.choice(options.operators) for _ in operands[1:]]
        answer = _evaluate(operands, operators)
        if options.negative or answer >= 0:
            question = str(operands[0]) + "".join(f"{operator}{operand}" for operator, operand in zip(operators, operands[1:], strict=True))
            return {"question": f"{question}=", "answer": str(answer), "solution": f"\\boxed{{{answer}}}"}
    raise ValueError(f"{where}: hardly any result is 0 or more; set negative: true, add an operator or lower terms")


def _evaluate(operands: list[int], operators: list[str]) -> int:
    """Value of the chain with Python's precedence: a product is folded into the last summand."""
    summands = [operands[0]]
    for operator, operand in zip(operators, operands[1:], strict=True):
        if operator == "*":
            summands[-1] *= operand
        else:
            summands.append(operand if operator == "+" else -operand)
    return sum(summands)


def _make_output(rng: random.Random, *, shape: ProgramShape) -> Row:
    program = generate(rng, shape=shape)
    answer = run(program)
    return {"question": render(program), "answer": answer, "solution": f"```\n{answer}\n```"}


def _make_function(rng: random.Random, *, options: FunctionOptions) -> Row:
    names = "xyz"[: options.arguments]
    steps = _function_steps(rng, options=options, names=names)
    formula, sentence = _function_texts(steps)
    signature = f"f({','.join(names)})"
    # every argument takes another value in each test, so that no test repeats another
    columns = [rng.sample(range(-20, 21), options.tests) for _ in names]
    tests = [{"args": list(args), "expected": _call(steps, names=names, args=list(args))} for args in zip(*columns, strict=True)]
    return {
        "question": f"Write a function {signature} that returns {sentence}." if options.words else f"{signature}={formula}",
        "entry_point": "f",
        "tests": tests,
        "solution": f"```python\ndef {signature}:\n    return {formula}\n```",
    }


def _function_steps(rng: random.Random, *, options: FunctionOptions, names: str) -> list[tuple[str, int | str]]:
    """Operator and operand of each step; the function starts from its first argument."""
    operands: list[int | str] = list(names[1:])
    operands += [0] * (options.steps - len(operands))  # 0 stands for a literal to draw
    rng.shuffle(operands)
    steps: list[tuple[str, int | str]] = []
    for operand in operands:
        operator = rng.choice(options.operators)
        steps.append((operator, operand or rng.randint(2 if operator == "*" else 1, options.max_value)))
    return steps


def _function_texts(steps: list[tuple[str, int | str]]) -> tuple[str, str]:
    """The function's value as a Python expression and in words."""
    formula, words, is_sum = "x", "x", False
    for operator, operand in steps:
        if operator == "*" and is_sum:
            formula = f"({formula})"
        formula += f"{operator}{operand}"
        words += f"{',' if words != 'x' else ''} {OPERATOR_WORDS[operator]} {operand}"
        is_sum = operator != "*"
    return formula, words


def _call(steps: list[tuple[str, int | str]], *, names: str, args: list[int]) -> int:
    values = dict(zip(names, args, strict=True))
    result = values["x"]
    for operator, operand in steps:
        result = apply(operator, result, values[operand] if isinstance(operand, str) else operand)
    return result


def _check_operators(operators: str, *, where: str) -> None:
    if not operators or set(operators) - set(OPERATOR_WORDS):
        raise ValueError(f"{where}.operators is {operators!r}; it must be made of the characters {''.join(OPERATOR_WORDS)}")


def _addition(options: Row, where: str) -> Callable[[random.Random], Row]:
    read = read_options(AdditionOptions, options, where=where)
    return _arithmetic({"min_operand": read.min_operand, "max_operand": read.max_operand, "terms": read.terms, "operators": "+"}, where)


def _arithmetic(options: Row, where: str) -> Callable[[random.Random], Row]:
    read = read_options(ArithmeticOptions, options, where=where)
    _check_operators(read.operators, where=where)
    if read.min_operand > read.max_operand:
        raise ValueError(f"{where}.min_operand is {read.min_operand}, above max_operand {read.max_operand}")
    return partial(_make_arithmetic, options=read, where=where)


def _output(options: Row, where: str) -> Callable[[random.Random], Row]:
    shape = read_options(ProgramShape, options, where=where)
    _check_operators(shape.operators, where=where)
    if shape.max_result and shape.max_value > shape.max_result:
        raise ValueError(f"{where}.max_result is {shape.max_result}, below max_value {shape.max_value}; raise it, or set 0 for no bound")
    return partial(_make_output, shape=shape)


def _function(options: Row, where: str) -> Callable[[random.Random], Row]:
    read = read_options(FunctionOptions, options, where=where)
    _check_operators(read.operators, where=where)
    if read.arguments - 1 > read.steps:
        raise ValueError(f"{where}.arguments is {read.arguments}, which takes at least {read.arguments - 1} steps; steps is {read.steps}")
    return partial(_make_function, options=read)


KINDS: dict[str, tuple[str, Callable[[Row, str], Callable[[random.Random], Row]]]] = {
    "addition": ("math", _addition),
    "arithmetic": ("math", _arithmetic),
    "output": ("code_output", _output),
    "function": ("code", _function),
}
"""By kind: the environment that grades it, and how its options become a maker of rows."""
