"""Check of data and graders: every reference solution must pass, every stub must fail. One JSON line.

python benchmarks/graders.py --data ../shared/data [--only mbpp classeval]

The folder holds rows of public data sets as JSON lines; a file that is not there is left out, and said so. The exit status is 1
when a reference fails or a stub passes; each is reported with its task id.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import print_result
from configs.schema import TaskConfig
from environments.code_tests.read import read_tests
from environments.code_tests.records import FunctionTests, SourceTests
from environments.records import Episode, Message, Problem, StopReason
from environments.sources.jsonl import JsonlSource
from rewards.registry import make_grader
from rewards.score import Grader, Score, ScoreStatus

FUNCTION_STUBS = ("def {name}(*args, **kwargs): return None", "def {name}(*args, **kwargs): pass", "")
CLASS_STUBS = ("class {name}:\n    def __getattr__(self, name): return lambda *args, **kwargs: None", "class {name}: pass", "")
TEXT_STUBS = ("return None", "pass", "")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """How the rows of one file become problems."""

    file: str
    settings: Mapping[str, Any]
    """Of TaskConfig."""
    reference: str | None
    """The field with the right answer; None when there is none."""


DATA_SETS = {
    "humaneval": DataSet(file="humaneval", settings={"env": "code", "options": {"context": "prompt"}}, reference="reference"),
    "humanevalplus_mini": DataSet(
        file="humanevalplus_mini", settings={"env": "code", "options": {"context": "prompt"}}, reference="reference"
    ),
    "humanevalfix_py": DataSet(file="humanevalfix_py", settings={"env": "code"}, reference="reference"),
    "mbpp": DataSet(file="mbpp", settings={"env": "code", "prompt": "{prompt}\n{example_test}"}, reference="reference"),
    "mbppplus": DataSet(file="mbppplus", settings={"env": "code", "prompt": "{prompt}\n{example_test}"}, reference="reference"),
    "p3_puzzles": DataSet(file="p3_puzzles", settings={"env": "code_puzzle", "options": {"context": "prompt"}}, reference="reference"),
    "classeval": DataSet(
        file="classeval", settings={"env": "code_class", "options": {"test_seconds": 30, "total_seconds": 60}}, reference="reference"
    ),
    "codecontests_sample": DataSet(file="codecontests_sample", settings={"env": "code_stdio"}, reference=None),
    "cruxeval_output": DataSet(
        file="cruxeval",
        settings={
            "env": "code_output",
            "prompt": "{code}\nf({input})",
            "answer_field": "output",
            "options": {"compare": "value"},
        },
        reference="answer",
    ),
    "cruxeval_input": DataSet(
        file="cruxeval", settings={"env": "code_input", "prompt": "{code}\n{output}", "answer_field": "input"}, reference="answer"
    ),
}


def load(name: str, folder: Path) -> list[Problem]:
    """The problems of a data set, checked as for a run."""
    data = DATA_SETS[name]
    source = JsonlSource(
        name, config=TaskConfig(**{"kind": "jsonl", "path": str(folder / f"{data.file}.jsonl"), "prompt": "{prompt}"} | data.settings)
    )
    return [source.problem(index) for index in range(source.size)]


def stubs(problem: Problem) -> tuple[str, ...]:
    """Code that does nothing, in the form that the problem asks for."""
    env = problem.task.env
    if env in ("code_output", "code_input", "code_stdio"):
        return TEXT_STUBS if env != "code_stdio" else ("def main(): return None\nmain()", "pass", "")
    tests = read_tests(env, problem.reference)
    names = tests.names if isinstance(tests, SourceTests) else (tests.entry_point,) if isinstance(tests, FunctionTests) else ()
    forms = CLASS_STUBS if env == "code_class" else FUNCTION_STUBS
    return tuple("\n".join(form.format(name=name) for name in names) for form in forms)


async def grade_all(grader: Grader, jobs: Sequence[tuple[Problem, str]]) -> list[Score]:
    """The scores of replies, a few at a time."""
    places = asyncio.Semaphore(8)

    async def one(problem: Problem, code: str) -> Score:
        reply = Message(role="assistant", content=f"```\n{code}\n```")
        async with places:
            return await grader.grade(problem, Episode(messages=(reply,), stop_reason=StopReason.DONE, n_sampled_tokens=1))

    return await asyncio.gather(*(one(problem, code) for problem, code in jobs))


async def check(name: str, folder: Path) -> dict[str, Any]:
    """The figures of one data set."""
    problems = load(name, folder)
    field = DATA_SETS[name].reference
    right = [] if field is None else [(problem, str(problem.reference[field])) for problem in problems]
    wrong = [(problem, stub) for problem in problems for stub in stubs(problem)]
    grader = make_grader(problems[0].task.env)
    started = time.perf_counter()
    try:
        scores = await grade_all(grader, [*right, *wrong])
    finally:
        await grader.close()
    seconds = time.perf_counter() - started
    graded = list(zip([*right, *wrong], scores, strict=True))
    failing = [f"{job[0].task.id}: {score.reason}" for job, score in graded[: len(right)] if score.status is not ScoreStatus.OK]
    passing = [f"{job[0].task.id}: {job[1]!r}" for job, score in graded[len(right) :] if score.status is not ScoreStatus.POLICY_FAIL]
    return {
        "references": len(right),
        "references_pass": len(right) - len(failing),
        "stubs": len(wrong),
        "stubs_fail": len(wrong) - len(passing),
        "seconds": round(seconds, 1),
        **({"failing_references": failing} if failing else {}),
        **({"passing_stubs": passing} if passing else {}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the JSON lines")
    parser.add_argument("--only", nargs="*", choices=sorted(DATA_SETS), default=list(DATA_SETS), help="data sets; all by default")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.only:
        if (arguments.data / f"{DATA_SETS[name].file}.jsonl").is_file():
            results[name] = asyncio.run(check(name, arguments.data))
        else:
            results[name] = "no such file"
    counts = [found for found in results.values() if isinstance(found, dict)]
    totals = {key: sum(found[key] for found in counts) for key in ("references", "references_pass", "stubs", "stubs_fail")}
    print_result(benchmark="graders", **totals, data_sets=results)
    return int(totals["references"] != totals["references_pass"] or totals["stubs"] != totals["stubs_fail"])


if __name__ == "__main__":
    raise SystemExit(main())
