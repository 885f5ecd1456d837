"""The words of `rl rescore`, `rl replay` and `rl diff`. The modules that do the work are imported when a command runs."""

import argparse
from typing import Any

from rl.command_words import RUN_HELP, AddCommand


def add_history_commands(commands: Any, *, command: AddCommand) -> None:
    """Add the three commands. `command(commands, name, run, text)` adds one."""
    rescore = command(commands, "rescore", _rescore, "score the rollouts of a run with another reward")
    rescore.add_argument("run", metavar="RUN", help=RUN_HELP)
    rescore.add_argument("--reward", required=True, metavar="SPEC", help="reward or mix, such as 'math + 0.1*my_pkg:brevity'")
    rescore.add_argument("--name", metavar="NAME", help="name of the new scorer in the log (default: SPEC)")
    rescore.add_argument("--where", default="true", metavar="SQL", help="only these rollouts: a condition on the view rollouts")
    rescore.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file or module that registers names")

    replay = command(commands, "replay", _replay, "play a rollout's actions again in a fresh environment and compare what comes back")
    replay.add_argument("run", metavar="RUN", help=RUN_HELP)
    replay.add_argument("rollout", metavar="ROLLOUT", help="rollout id, as in the rollouts table")
    replay.add_argument("--exact", action="store_true", help="count differences in addresses, temporary names and durations, too")

    diff = command(commands, "diff", _diff, "compare two rollouts, one task across policy versions, or two runs")
    diff.add_argument("run", metavar="RUN", help=RUN_HELP)
    diff.add_argument("others", nargs="*", metavar="OTHER", help="ids of two rollouts of RUN, or another run")
    diff.add_argument("--task", metavar="TASK_ID", help="this task across the policy versions of RUN")
    diff.add_argument("--by", choices=("sampled", "trained"), help="two runs: equal in tokens that were sampled (default) or trained on")


def _rescore(args: argparse.Namespace) -> int:
    from rl.history.rescore import rescore_command

    return rescore_command(args.run, reward=args.reward, name=args.name, where=args.where, plugins=args.plugin, as_json=args.as_json)


def _replay(args: argparse.Namespace) -> int:
    from rl.history.replay import replay_command

    return replay_command(args.run, args.rollout, exact=args.exact, as_json=args.as_json)


def _diff(args: argparse.Namespace) -> int:
    from rl.history.diff import diff_command

    return diff_command(args.run, args.others, task=args.task, by=args.by, as_json=args.as_json)
