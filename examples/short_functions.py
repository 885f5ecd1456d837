"""Writes git repositories of tiny modules, from which `rl swe mutate` makes tasks that a small model can solve.

    python examples/short_functions.py data/short --repositories 16 --seed 0

Each module is one function whose docstring says in words what it returns, with a test of its own. With one operator of it changed, the
docstring tells the fix. No function is there twice, in whatever repository. The same arguments give the same repositories, to their
commits.
"""

import argparse
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

WORDS = {"+": "plus", "-": "minus", "*": "times"}
"""As problems of kind `function` put a formula into words."""
NAMES = "abcdefghijklmnopqrstuvwxyz"
"""Of the modules of a repository: one letter, which a model of characters can copy."""
LARGEST, MOST_REPOSITORIES = 9, 100
PROJECT = '[tool.pytest.ini_options]\npythonpath = ["."]\ntestpaths = ["tests"]\n'
Step = tuple[str, int | str]
Function = tuple[Step, ...]


def write_repositories(folder: Path, *, repositories: int, modules: int, seed: int) -> None:
    """`r0`, `r1` and so on in `folder`. Raises ValueError for a folder that is there already, and for too many of either."""
    if not 1 <= repositories <= MOST_REPOSITORIES:
        raise ValueError(f"--repositories is {repositories}; it must be from 1 to {MOST_REPOSITORIES}: there are not many more functions")
    if not 1 <= modules <= len(NAMES):
        raise ValueError(f"--modules is {modules}; it must be from 1 to {len(NAMES)}, as a module's name is one letter")
    if folder.exists():
        raise ValueError(f"{folder} is already there: remove it, or choose another folder")
    rng = random.Random(seed)
    functions = different_functions(rng)
    for number in range(repositories):
        write_repository(folder / f"r{number}", functions=[next(functions) for _ in range(modules)], rng=rng)


def write_repository(folder: Path, *, functions: Sequence[Function], rng: random.Random) -> None:
    """A module and a test for each function, and one commit."""
    (folder / "tests").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    for name, steps in zip(NAMES, functions, strict=False):
        (folder / f"{name}.py").write_text(module_text(steps))
        (folder / "tests" / f"test_{name}.py").write_text(test_text(steps, name=name, rng=rng))
    commit(folder)


def different_functions(rng: random.Random) -> Iterator[Function]:
    """Functions, none of them twice."""
    seen: set[Function] = set()
    while True:
        steps = make_steps(rng)
        if steps not in seen:
            seen.add(steps)
            yield steps


def make_steps(rng: random.Random) -> Function:
    """One to three operations on `x`: with `y` once in most functions, else with numbers."""
    operands: list[int | str] = [rng.randint(2, LARGEST) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.7:
        operands.insert(rng.randrange(len(operands) + 1), "y")
    return tuple((rng.choice("+-*"), operand) for operand in operands)


def module_text(steps: Function) -> str:
    """The function, `x plus y, times 3` in its docstring and `(x+y)*3` in its code."""
    formula, words, is_sum = "x", "x", False
    for operator, operand in steps:
        formula = f"({formula})" if operator == "*" and is_sum else formula
        formula += f"{operator}{operand}"
        words += f"{',' if words != 'x' else ''} {WORDS[operator]} {operand}"
        is_sum = operator != "*"
    return f'def f({arguments(steps)}):\n    """{words}."""\n    return {formula}\n'


def test_text(steps: Function, *, name: str, rng: random.Random) -> str:
    """Two calls, with numbers for which hardly two formulas agree."""
    count = len(arguments(steps).split(","))
    calls = [rng.sample(range(3, 20), count) for _ in range(2)]
    lines = [f"    assert f({','.join(map(str, values))}) == {value_of(steps, values)}\n" for values in calls]
    return f"from {name} import f\n\n\ndef test_f():\n{''.join(lines)}"


def arguments(steps: Function) -> str:
    """`x`, or `x,y`."""
    return "x,y" if any(operand == "y" for _, operand in steps) else "x"


def value_of(steps: Function, values: list[int]) -> int:
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
    parser.add_argument("--repositories", type=int, default=16, metavar="N", help="repositories to write (default: 16)")
    parser.add_argument("--modules", type=int, default=25, metavar="N", help="modules of each (default: 25)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    write_repositories(args.folder, repositories=args.repositories, modules=args.modules, seed=args.seed)
    print(f"{args.repositories} repositories of {args.modules} modules in {args.folder}")


if __name__ == "__main__":
    main()
