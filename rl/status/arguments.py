"""The words of `rl status`. The modules that do the work are imported when the command runs."""

import argparse
from typing import Any

from rl.command_words import RUN_HELP, AddCommand


def add_status_command(commands: Any, *, command: AddCommand) -> None:
    """Add `status`. `command(commands, name, run, text)` adds one command."""
    status = command(commands, "status", _status, "what each part of a run does or waits for, since when, and what it did last")
    status.add_argument("run", metavar="RUN", help=RUN_HELP)


def _status(args: argparse.Namespace) -> int:
    from rl.status.show import status_command

    return status_command(args.run, as_json=args.as_json)
