"""Writes a git repository of tiny modules, from which `rl swe mutate` makes tasks that a small model can solve.

    python examples/short_functions.py data/short-functions --modules 300 --seed 0

Each module is one function whose docstring says in words what it returns, with a test of its own. With one operator or number of it
changed, the docstring tells the fix. The same arguments give the same repository, to its commit.
"""

import argparse
import os
import random
import subprocess
from pathlib import Path

WORDS = {"+": "plus", "-": "minus", "*": "times"}
"""As problems of kind `function` put a formula into words."""
LARGEST, MOST_MODULES = 9, 3000
PROJECT = '[tool.pytest.ini_options]\npythonpath = ["."]\ntestpaths = ["tests"]\n'
Step = tuple[str, int | str]


def write_repository(folder: Path, *, modules: int, seed: int) -> None:
    """Raises ValueError for a folder that is there already, and for too many modules."""
    if not 1 <= modules <= MOST_MODULES:
        raise ValueError(f"--modules is {modules}; it must be from 1 to {MOST_MODULES}, as there are not many more different functions")
    if folder.exists():
        raise ValueError(f"{folder} is already there: remove it, or choose another folder")
    rng = random.Random(seed)
    (folder / "tests").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    seen: set[tuple[Step, ...]] = set()
    while len(seen) < modules:
        steps = make_steps(rng)
        if steps in seen:
            continue
        name = f"m{len(seen)}"
        seen.add(steps)
        (folder / f"{name}.py").write_text(module_text(steps))
        (folder / "tests" / f"test_{name}.py").write_text(test_text(steps, name=name, rng=rng))
    commit(folder)


def make_steps(rng: random.Random) -> tuple[Step, ...]:
    """One to three operations on `x`: with `y` once in most functions, else with numbers."""
    operands: list[int | str] = [rng.randint(2, LARGEST) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.7:
        operands.insert(rng.randrange(len(operands) + 1), "y")
    return tuple((rng.choice("+-*"), operand) for operand in operands)


def module_text(steps: tuple[Step, ...]) -> str:
    """The function, `x plus y, times 3` in its docstring and `(x+y)*3` in its code."""
    formula, words, is_sum = "x", "x", False
    for operator, operand in steps:
        formula = f"({formula})" if operator == "*" and is_sum else formula
        formula += f"{operator}{operand}"
        words += f"{',' if words != 'x' else ''} {WORDS[operator]} {operand}"
        is_sum = operator != "*"
    return f'def f({arguments(steps)}):\n    """{words}."""\n    return {formula}\n'


def test_text(steps: tuple[Step, ...], *, name: str, rng: random.Random) -> str:
    """Two calls, with numbers for which hardly two formulas agree."""
    count = len(arguments(steps).split(","))
    calls = [rng.sample(range(3, 20), count) for _ in range(2)]
    lines = [f"    assert f({','.join(map(str, values))}) == {value_of(steps, values)}\n" for values in calls]
    return f"from {name} import f\n\n\ndef test_f():\n{''.join(lines)}"


def arguments(steps: tuple[Step, ...]) -> str:
    """`x`, or `x,y`."""
    return "x,y" if any(operand == "y" for _, operand in steps) else "x"


def value_of(steps: tuple[Step, ...], values: list[int]) -> int:
    """What the function returns."""
    result = values[0]
    for operator, operand in steps:
        number = values[1] if isinstance(operand, str) else operand
        result = result + number if operator == "+" else result - number if operator == "-" else result * number
    return result


def commit(folder: Path) -> None:
    """One commit, whose id depends on the files alone."""
    who = {f"GIT_{role}_{what}": text for role in ("AUTHOR", "COMMITTER") for what, text in WHO.items()}
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "Short functions"]):
        subprocess.run(["git", *words], cwd=folder, env=environment, check=True)


WHO = {"NAME": "short functions", "EMAIL": "short-functions@localhost", "DATE": "2024-01-01T00:00:00+0000"}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--modules", type=int, default=300, metavar="N", help="modules to write (default: 300)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    write_repository(args.folder, modules=args.modules, seed=args.seed)
    print(f"{args.modules} modules in {args.folder}")


if __name__ == "__main__":
    main()
