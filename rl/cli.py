"""The console command `rl`. Heavy modules are imported inside the command that needs them, so `rl --help` is instant.

Exit status: 0 success, 1 the run (or a check of `rl doctor` or `rl env check`, or a verdict of `rl grade`) failed, 2 wrong usage or
input, 130 interrupted.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl.chaos.arguments import add_chaos_command
from rl.command_words import RUN_HELP
from rl.debug.arguments import add_debug_command
from rl.export.arguments import add_export_command
from rl.history.arguments import add_history_commands
from rl.planner.arguments import add_plan_command
from rl.status.arguments import add_status_command
from rl.swe.arguments import add_swe_commands
from rl.traces.arguments import add_trace_commands

if TYPE_CHECKING:
    from configs.schema import Config

CONFIG_HELP = "YAML files, merged left to right, and overrides such as run.steps=10"
EPILOG = "Set RL_TRACEBACK=1 to see the Python traceback of an error."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = _parser()
    # argparse gives up a list of positionals at the first option: `rl train a.yaml --clean run.steps=3` leaves the last
    # word over, which is put back here.
    args, rest = parser.parse_known_args(argv)
    options = [word for word in rest if word.startswith("-")]
    if options or (rest and not hasattr(args, "settings")):
        parser.error(f"rl {args.command} does not know {' '.join(options or rest)}; see rl {args.command} --help")
    if rest:
        args.settings += rest
    command: Callable[[argparse.Namespace], int] = args.run_command
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # `env: my_pkg.my_env:MyEnv` finds a package in the current folder, as it does in Ray's workers
        status = command(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing to say, and nothing for the interpreter to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        known = _user_status(error)
        if known is None or os.environ.get("RL_TRACEBACK") == "1":
            raise
        print(f"rl {args.command}: {_one_line(error)}", file=sys.stderr)
        return known


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rl", description="Reinforcement-learning post-training of code models.", epilog=EPILOG, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _command(commands, "train", _train, "train a model")
    train.add_argument("settings", nargs="+", metavar="CONFIG|KEY=VALUE", help=CONFIG_HELP)
    start = train.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    start.add_argument("--clean", action="store_true", help="delete an earlier run of the same name first")
    train.add_argument("--dry-run", action="store_true", help="check data, rewards and model, print settings and plan; write nothing")

    evaluate = _command(commands, "eval", _eval, "pass rates on held-out problems, or on all")
    evaluate.add_argument("settings", nargs="+", metavar="CONFIG|KEY=VALUE", help=CONFIG_HELP)
    evaluate.add_argument("--model", type=Path, metavar="PATH", help="model to evaluate instead of model.path")
    evaluate.add_argument("--samples", type=_positive, metavar="N", help="samples a problem instead of evaluation.samples")
    evaluate.add_argument("--all", action="store_true", help="evaluate on every problem of the sources that can be counted")
    evaluate.add_argument("--seeds", type=_seeds, metavar="0,1,2", help="repeat with these seeds (default: run.seed)")

    _add_author_commands(commands)
    sql = _command(commands, "sql", _sql, "query the log of a run with SQL")
    sql.add_argument("run", metavar="RUN", help=RUN_HELP)
    sql.add_argument("query", metavar="QUERY", help="for example: SELECT env, avg(reward) FROM rollouts GROUP BY env")

    runs = _command(commands, "runs", _runs, "list runs: state, steps, pass rates, drops, flags")
    runs.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="folder that holds them (default: runs)")

    compact = _command(commands, "compact", _compact, "merge the files of a run's log into few")
    compact.add_argument("run", metavar="RUN", help=RUN_HELP)

    show = _command(commands, "show", _show, "print one rollout: messages, score, timings")
    show.add_argument("run", metavar="RUN", help=RUN_HELP)
    show.add_argument("rollout", metavar="ROLLOUT", help="rollout id, as in the rollouts table")

    plot = _command(commands, "plot", _plot, "draw the curves of a run")
    plot.add_argument("run", metavar="RUN", help=RUN_HELP)
    plot.add_argument("--out", type=Path, metavar="FILE", help="PNG file to write")

    view = _command(commands, "view", _view, "look at runs in the browser")
    view.add_argument("run", nargs="?", metavar="RUN", help=f"{RUN_HELP} (default: all runs)")
    view.add_argument("--dir", type=Path, dest="runs_dir", metavar="RUNS", help="folder of the runs to show (default: runs/)")
    view.add_argument("--port", type=_port, metavar="N", help="port on 127.0.0.1 (default: 8750, or a free one)")
    view.add_argument("--export", type=Path, metavar="DIR", help="write the pages of RUN as files and end; they open without a server")
    view.add_argument("--rollouts", type=_positive, default=200, metavar="N", help="newest rollouts that --export takes (default: 200)")

    add_export_command(commands, command=_command)
    add_history_commands(commands, command=_command)
    add_swe_commands(commands, command=_command, epilog=EPILOG)
    add_trace_commands(commands, command=_command)
    add_debug_command(commands, command=_command)
    add_plan_command(commands, command=_command, load=_load, config_help=CONFIG_HELP)

    add_status_command(commands, command=_command)
    add_chaos_command(commands, command=_command)

    _command(commands, "doctor", _doctor, "check what this machine offers")
    return parser


def _add_author_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    grade = _command(commands, "grade", _grade, "score a file of responses with any grader")
    grade.add_argument("--env", required=True, metavar="NAME", help="environment of the tasks: a name or a dotted path")
    grade.add_argument("--reward", metavar="SPEC", help="reward or mix, such as 'math + 0.1*my_pkg:brevity' (default: the environment's)")
    grade.add_argument("--tasks", required=True, type=Path, metavar="FILE", help="JSON lines with id, prompt, and answer or tests")
    grade.add_argument("--responses", required=True, type=Path, metavar="FILE", help="JSON lines with id, task_id and response")
    grade.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file or module that registers names")

    env = commands.add_parser(
        "env", help="check an environment, or start a new one", description="For authors of environments.", epilog=EPILOG
    )
    env_commands = env.add_subparsers(dest="env_command", required=True, metavar="COMMAND")
    check = _command(env_commands, "check", _env_check, "try an environment and its reward: resets, gold, cheats, leaks")
    check.add_argument("target", metavar="TARGET", help="a name, a dotted path, or a plugin file: my_env.py or my_env.py:name")
    check.add_argument("--reward", metavar="SPEC", help="reward or mix (default: the configuration's, else called like the environment)")
    problems = check.add_mutually_exclusive_group()
    problems.add_argument("--tasks", metavar="FILE", help="JSON lines with id, prompt, solution, and answer or tests")
    problems.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="configuration with task sources of the environment"
    )
    check.add_argument("--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="most seconds of one call (default: 30)")

    new = _command(env_commands, "new", _env_new, "write a small environment to start from")
    new.add_argument("name", metavar="NAME", help="a Python name in small letters")
    new.add_argument("--dir", type=Path, default=Path(), metavar="FOLDER", help="where to make the folder NAME (default: here)")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", epilog=EPILOG, allow_abbrev=False)
    command.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    command.set_defaults(run_command=run)
    return command


# --- commands -------------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    config = _load(args.settings)
    if args.dry_run:
        return _dry_run(config, as_json=args.as_json)
    from rl.train import train

    if not args.as_json:
        return train(config, resume=args.resume, clean=args.clean)
    # Progress goes to stderr, so that stdout holds the JSON line alone.
    with contextlib.redirect_stdout(sys.stderr):
        status = train(config, resume=args.resume, clean=args.clean)
    print(json.dumps({"run": str(Path(config.run.dir) / config.run.name), "exit_status": status}))
    return status


def _dry_run(config: "Config", *, as_json: bool) -> int:
    from configs.load import dump_config
    from configs.schema import resolved
    from rl.plan import make_plan
    from rl.preflight import checked_run

    plan = make_plan(config)
    if as_json:
        checked_run(config)
        print(json.dumps({"config": resolved(config), "plan": plan.to_json()}))
        return 0
    print(dump_config(config), end="")
    print("\n# plan")
    print("\n".join(f"# {line}" for line in plan.lines()), flush=True)
    checked_run(config)  # last: settings and plan are of use before the data and the model are there
    return 0


def _eval(args: argparse.Namespace) -> int:
    config = _load(args.settings)
    from rl.evaluate_model import evaluate_command

    with contextlib.redirect_stdout(sys.stderr) if args.as_json else contextlib.nullcontext():
        seeds = args.seeds or (config.run.seed,)
        report = evaluate_command(config, model_path=args.model, samples=args.samples, seeds=seeds, all_problems=args.all)
    print(json.dumps(report.to_json()) if args.as_json else report.table())
    return 0


def _grade(args: argparse.Namespace) -> int:
    from environments.registry import load_plugins
    from rl.grade import Verdict, grade_file

    def show(verdict: Verdict) -> None:
        print(json.dumps(verdict.to_json(), allow_nan=False) if args.as_json else verdict.line(), flush=True)

    load_plugins(args.plugin, field="--plugin")
    summary = grade_file(env=args.env, reward=args.reward, tasks=args.tasks, responses=args.responses, on_verdict=show)
    print(summary.line(), file=sys.stderr if args.as_json else sys.stdout)
    return summary.exit_status


def _env_check(args: argparse.Namespace) -> int:
    from rl.authoring.check import check
    from rl.authoring.records import Request

    request = Request(target=args.target, reward=args.reward, tasks=args.tasks, config=tuple(args.config), timeout=args.timeout)
    report = check(request)
    print(json.dumps(report.to_json()) if args.as_json else report.text())
    return 0 if report.ok else 1


def _env_new(args: argparse.Namespace) -> int:
    from rl.authoring.new import new_environment, next_steps

    files = [str(file) for file in new_environment(args.name, folder=args.dir)]
    print(json.dumps({"files": files}) if args.as_json else "\n".join([*files, "next:", next_steps(args.name, folder=args.dir)]))
    return 0


def _sql(args: argparse.Namespace) -> int:
    from rl.log.query import sql_command

    return sql_command(args.run, args.query, as_json=args.as_json)


def _runs(args: argparse.Namespace) -> int:
    from rl.log.list_runs import runs_command

    return runs_command(args.folder, as_json=args.as_json)


def _compact(args: argparse.Namespace) -> int:
    from rl.log.compact import compact_command

    return compact_command(args.run, as_json=args.as_json)


def _show(args: argparse.Namespace) -> int:
    from rl.log.show import show_command

    return show_command(args.run, args.rollout, as_json=args.as_json)


def _plot(args: argparse.Namespace) -> int:
    from rl.log.plot import plot_command

    return plot_command(args.run, out=args.out, as_json=args.as_json)


def _view(args: argparse.Namespace) -> int:
    from rl.view.command import view_command

    return view_command(args.run, runs_dir=args.runs_dir, port=args.port, export=args.export, rollouts=args.rollouts, as_json=args.as_json)


def _doctor(args: argparse.Namespace) -> int:
    from rl.doctor import doctor_command

    return doctor_command(as_json=args.as_json)


# --- arguments and errors -------------------------------------------------------------------------------------------


def _load(settings: Sequence[str]) -> "Config":
    """Configuration from the words of the command line: an existing file is a layer, any other word with `=` an override."""
    from configs.load import load_config

    overrides = [word for word in settings if "=" in word and not Path(word).is_file()]
    return load_config([Path(word) for word in settings if word not in overrides], overrides)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to 3600")
    return seconds


def _seeds(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of seeds such as 0,1,2")
    return tuple(int(word) for word in words)


def _user_status(error: Exception) -> int | None:
    """Exit status of an error that is told in one line; None for one that is a defect and keeps its traceback."""
    from environments.containers.base import ContainerError, EngineUnavailable, ImageMissing
    from environments.sandbox.base import SandboxError, SandboxUnavailable
    from rl.errors import RunFailed

    if isinstance(error, ValueError | OSError | ContainerError | EngineUnavailable | ImageMissing):
        return 2  # of commands that judge, 1 is a verdict
    return 1 if isinstance(error, RunFailed | SandboxError | SandboxUnavailable) else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
