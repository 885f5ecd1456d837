"""The words of `rl swe ...`. The modules that do the work are imported when a command runs."""

import argparse
from pathlib import Path
from typing import Any

from rl.command_words import RUN_HELP, AddCommand


def add_swe_commands(commands: Any, *, command: AddCommand, epilog: str) -> None:
    """Add `swe` and what stands under it. `command(commands, name, run, text)` adds one command."""
    swe = commands.add_parser(
        "swe", help="repositories in containers: images, tasks, grading", description="Repository tasks.", epilog=epilog
    )
    below = swe.add_subparsers(dest="swe_command", required=True, metavar="COMMAND")

    engine = command(below, "engine", _engine, "start or stop a Docker engine of this project's own, or ask which one is used")
    engine.add_argument("action", choices=("start", "stop", "status"))

    image = command(below, "image", _image, "make the image of a repository and run its tests")
    image.add_argument(
        "source",
        metavar="SOURCE",
        help="pypi:NAME==VERSION, a source package (.tar.gz), the folder of a git repository, or image:REFERENCE that has one at /testbed",
    )
    image.add_argument("--name", metavar="NAME", help="name of the repository (default: from the source)")
    image.add_argument(
        "--base", metavar="IMAGE", help="image to build on; it must hold python3, pip and bash (default: one from this Python)"
    )
    image.add_argument("--requirements", type=Path, metavar="FILE", help="further requirements that the tests need")
    image.add_argument("--out", type=Path, default=Path("swe/images"), metavar="FOLDER", help="where NAME.json goes (default: swe/images)")
    image.add_argument("--runs", type=int, default=3, metavar="N", help="runs of the tests, to find flaky ones (default: 3)")

    mutate = command(below, "mutate", _mutate, "make tasks by breaking functions that tests cover")
    mutate.add_argument("image", type=Path, metavar="IMAGE.json", help="what rl swe image wrote")
    mutate.add_argument("--out", type=Path, default=Path("swe/tasks"), metavar="FOLDER", help="where the task folders go")
    mutate.add_argument("--tasks", type=int, default=20, metavar="N", help="tasks to keep (default: 20)")
    mutate.add_argument("--seed", type=int, default=0, metavar="N")
    mutate.add_argument("--kinds", metavar="KIND,...", help="mutations to use (default: all)")
    mutate.add_argument(
        "--style", choices=("issue", "file"), default="issue", help="instruction: an issue text, or the file that is broken"
    )

    rows = command(below, "import", _import, "make tasks from rows in SWE-bench's format")
    rows.add_argument("rows", type=Path, metavar="ROWS.jsonl")
    rows.add_argument("--image", metavar="TEMPLATE", default="{image}", help="image of a row, from its fields (default: {image})")
    rows.add_argument("--out", type=Path, default=Path("swe/tasks"), metavar="FOLDER", help="where the task folders go")

    rates = command(below, "rates", _rates, "write how often a run solved each task into the tasks")
    rates.add_argument("run", metavar="RUN", help=RUN_HELP)
    rates.add_argument("tasks", type=Path, metavar="FOLDER", help="folder of task folders")

    validate = command(below, "validate", _validate, "see that a task is sound: gold passes, doing nothing fails, repeats agree")
    validate.add_argument("tasks", nargs="+", type=Path, metavar="TASK_DIR")
    validate.add_argument("--repeat", type=int, default=3, metavar="N", help="runs that must agree (default: 3)")

    grade = command(below, "grade", _grade, "grade a patch")
    grade.add_argument("task", type=Path, metavar="TASK_DIR")
    grade.add_argument("--patch", type=Path, required=True, metavar="FILE", help="as git diff writes it")
    grade.add_argument("--reward", default="swe", metavar="NAME", help="swe or cwm_swe (default: swe)")

    run = command(below, "run", _run, "play a list of tool calls and grade the result")
    run.add_argument("task", type=Path, metavar="TASK_DIR")
    run.add_argument("--actions", type=Path, required=True, metavar="FILE", help='JSON: [{"tool": "bash", "input": "ls"}, ...]')
    run.add_argument("--reward", default="swe", metavar="NAME", help="swe or cwm_swe (default: swe)")
    run.add_argument("--format", choices=("cwm", "json"), default="cwm", help="how tool calls are written (default: cwm)")

    script = command(below, "script", _script, "write the actions of a scripted policy for generator.engine=scripted")
    script.add_argument("tasks", type=Path, metavar="FOLDER", help="folder of task folders")
    script.add_argument("--policy", choices=("oracle", "noop"), default="oracle", help="what the policy does (default: oracle)")
    script.add_argument("--format", choices=("cwm", "json"), default="cwm", help="how tool calls are written (default: cwm)")
    script.add_argument("--out", type=Path, required=True, metavar="FILE")


def _engine(args: argparse.Namespace) -> int:
    from rl.swe.engine import engine_command

    return engine_command(args.action, as_json=args.as_json)


def _image(args: argparse.Namespace) -> int:
    from rl.swe.image import image_command

    return image_command(
        args.source,
        name=args.name,
        base=args.base,
        requirements=args.requirements,
        out=args.out,
        runs=args.runs,
        as_json=args.as_json,
    )


def _mutate(args: argparse.Namespace) -> int:
    from rl.swe.mutate import mutate_command

    kinds = tuple(args.kinds.split(",")) if args.kinds else ()
    return mutate_command(args.image, out=args.out, n_tasks=args.tasks, seed=args.seed, kinds=kinds, style=args.style, as_json=args.as_json)


def _import(args: argparse.Namespace) -> int:
    from rl.swe.rows import import_command

    return import_command(args.rows, image=args.image, out=args.out, as_json=args.as_json)


def _rates(args: argparse.Namespace) -> int:
    from rl.swe.rates import rates_command

    return rates_command(args.run, args.tasks, as_json=args.as_json)


def _validate(args: argparse.Namespace) -> int:
    from rl.swe.validate import validate_command

    return validate_command(args.tasks, repeat=args.repeat, as_json=args.as_json)


def _grade(args: argparse.Namespace) -> int:
    from rl.swe.grade import grade_command

    return grade_command(args.task, patch=args.patch, reward=args.reward, as_json=args.as_json)


def _run(args: argparse.Namespace) -> int:
    from rl.swe.run import run_command

    return run_command(args.task, actions=args.actions, reward=args.reward, tool_format=args.format, as_json=args.as_json)


def _script(args: argparse.Namespace) -> int:
    from rl.swe.script import script_command

    return script_command(args.tasks, policy=args.policy, tool_format=args.format, out=args.out, as_json=args.as_json)
