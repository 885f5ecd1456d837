"""Small Python programs as trees: made at random, written as Python, run by an interpreter of a few lines.

The expected output of a generated program comes from the tree, so no program text is ever evaluated.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from configs.checked import bounded

VARIABLES = "abcdefghjklm"
"""Names in order of use; `i` is the loop counter."""
Operand = int | str
"""A literal, or the name of a variable."""
Values = dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Assign:
    """`target=left` or `target=left operator right`."""

    target: str
    left: Operand
    operator: str = ""
    right: Operand = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """`if left comparison right:` with one assignment on either side."""

    left: str
    comparison: str
    right: int
    then: Assign
    otherwise: Assign


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """`for i in range(count):` around one assignment."""

    count: int
    body: Assign


@dataclass(frozen=True, kw_only=True, slots=True)
class Print:
    """`print(name)`."""

    name: str


Statement = Assign | Branch | Loop | Print


def apply(operator: str, left: int, right: int) -> int:
    """The result of one of the operators + - *."""
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def render(program: Sequence[Statement]) -> str:
    """The program as Python text, without spaces where Python needs none."""
    return "\n".join(_text(statement) for statement in program)


def run(program: Sequence[Statement]) -> str:
    """What the program prints, its lines joined by newlines, without a final one."""
    values: Values = {}
    printed = []
    for statement in program:
        if isinstance(statement, Print):
            printed.append(str(values[statement.name]))
        else:
            execute(statement, values)
    return "\n".join(printed)


def execute(statement: Assign | Branch | Loop, values: Values) -> None:
    """Apply one statement to the variables."""
    if isinstance(statement, Assign):
        left = _value(statement.left, values)
        values[statement.target] = apply(statement.operator, left, _value(statement.right, values)) if statement.operator else left
    elif isinstance(statement, Branch):
        left = values[statement.left]
        holds = left > statement.right if statement.comparison == ">" else left < statement.right
        execute(statement.then if holds else statement.otherwise, values)
    else:
        for _ in range(statement.count):
            execute(statement.body, values)


@dataclass(frozen=True, kw_only=True)
class ProgramShape:
    """What a generated program may contain; the options of the `output` kind of task."""

    lines: int = bounded(2, low=1, high=12)
    """Statements before the first print."""
    max_value: int = bounded(9, low=1, high=10**9)
    """Largest literal."""
    operators: str = "+-"
    prints: int = bounded(1, low=1, high=4)
    """Variables printed, at most as many as there are."""
    branches: bool = False
    loops: bool = False
    negative: bool = True
    """Whether variables may fall below zero."""
    max_result: int = bounded(0, low=0)
    """Largest absolute value of a variable; 0 means no bound."""


def generate(rng: random.Random, *, shape: ProgramShape) -> tuple[Statement, ...]:
    """A random program. Each statement uses the variable assigned last, so that the first printed value needs them all."""
    last = VARIABLES[0]
    start = rng.randint(0, shape.max_value)
    program: list[Statement] = [Assign(target=last, left=start)]
    values: Values = {last: start}
    while len(program) < shape.lines:
        statement, last, values = _next_statement(rng, shape=shape, last=last, values=values)
        program.append(statement)
    others = [name for name in values if name != last]
    rng.shuffle(others)
    return (*program, *(Print(name=name) for name in [last, *others][: shape.prints]))


def _next_statement(rng: random.Random, *, shape: ProgramShape, last: str, values: Values) -> tuple[Statement, str, Values]:
    """A statement that keeps the variables within bounds, the variable it assigns, and the variables after it."""
    fresh = VARIABLES[len(values)]
    for _ in range(50):
        target = fresh if rng.random() < 0.7 else rng.choice(sorted(values))
        kinds = ["assign", *(["branch"] if shape.branches else []), *(["loop"] if shape.loops else [])]
        kind = rng.choice(kinds)
        statement: Assign | Branch | Loop
        if kind == "branch":
            threshold = rng.randint(0, shape.max_value)
            then, otherwise = (_assignment(rng, shape=shape, target=target, last=last, values=values) for _ in range(2))
            statement = Branch(left=last, comparison=rng.choice("><"), right=threshold, then=then, otherwise=otherwise)
        elif kind == "loop":
            target = last
            statement = Loop(count=rng.randint(2, 3), body=_assignment(rng, shape=shape, target=last, last=last, values=values))
        else:
            statement = _assignment(rng, shape=shape, target=target, last=last, values=values)
        after = dict(values)
        execute(statement, after)
        if (shape.negative or after[target] >= 0) and (not shape.max_result or abs(after[target]) <= shape.max_result):
            return statement, target, after
    plain = Assign(target=fresh, left=rng.randint(0, shape.max_value))  # always within bounds
    return plain, fresh, values | {fresh: int(plain.left)}


def _assignment(rng: random.Random, *, shape: ProgramShape, target: str, last: str, values: Values) -> Assign:
    others = sorted(values.keys() - {last})  # not `last` itself: `a-a` would make the lines before it irrelevant
    right: Operand = rng.choice(others) if others and rng.random() < 0.3 else rng.randint(1, shape.max_value)
    return Assign(target=target, left=last, operator=rng.choice(shape.operators), right=right)


def _value(operand: Operand, values: Values) -> int:
    return values[operand] if isinstance(operand, str) else operand


def _text(statement: Statement) -> str:
    if isinstance(statement, Assign):
        tail = f"{statement.operator}{statement.right}" if statement.operator else ""
        return f"{statement.target}={statement.left}{tail}"
    if isinstance(statement, Branch):
        condition = f"{statement.left}{statement.comparison}{statement.right}"
        return f"if {condition}:\n {_text(statement.then)}\nelse:\n {_text(statement.otherwise)}"
    if isinstance(statement, Loop):
        return f"for i in range({statement.count}):\n {_text(statement.body)}"
    return f"print({statement.name})"
