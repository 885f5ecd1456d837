"""The words of `rl chaos`. The modules that do the work are imported when the command runs."""

import argparse
from typing import Any

from rl.command_words import RUN_HELP, AddCommand

FAULTS = ("kill", "freeze", "slow", "drop-weights", "fill-disk", "undo")


def add_chaos_command(commands: Any, *, command: AddCommand) -> None:
    """Add `chaos`. `command(commands, name, run, text)` adds one command."""
    chaos = command(commands, "chaos", _chaos, "inject a fault into a live run, to see that it goes on")
    chaos.add_argument("run", metavar="RUN", help=RUN_HELP)
    chaos.add_argument("fault", choices=FAULTS, metavar="FAULT", help=", ".join(FAULTS))
    chaos.add_argument("part", nargs="?", metavar="PART", help="as rl status calls it: learner-0, generator-0, worker-0")
    chaos.add_argument(
        "--seconds", type=_seconds, default=30.0, metavar="N", help="how long freeze, slow and fill-disk last before they are undone"
    )
    chaos.add_argument("--share", type=_share, default=0.75, metavar="X", help="slow: part of the time that the process is stopped")
    chaos.add_argument("--most-gb", type=_seconds, default=4.0, metavar="N", help="fill-disk: refuse to take more GiB than this")


def _chaos(args: argparse.Namespace) -> int:
    from rl.chaos.command import Request, chaos_command

    request = Request(fault=args.fault, part=args.part, seconds=args.seconds, share=args.share, most_gb=args.most_gb)
    return chaos_command(args.run, request, as_json=args.as_json)


def _seconds(text: str) -> float:
    return _number(text, most=86400.0)


def _share(text: str) -> float:
    return _number(text, most=0.95)


def _number(text: str, *, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to {most:g}")
    return number
