"""The words of `rl export ...`. The modules that do the work are imported when the command runs."""

import argparse
from pathlib import Path
from typing import Any

from rl.command_words import RUN_HELP, AddCommand


def add_export_command(commands: Any, *, command: AddCommand) -> None:
    """Add `export`. `command(commands, name, run, text)` adds one command."""
    export = command(commands, "export", _export, "write the rollouts of a run in a format of other tools")
    export.add_argument("run", metavar="RUN", help=RUN_HELP)
    export.add_argument("--to", required=True, metavar="FORMAT", help="scout, atif, hf, otel or perfetto")
    export.add_argument("--out", required=True, type=Path, metavar="PATH", help="file or folder to write; it must not exist")
    export.add_argument(
        "--where", metavar="CONDITION", help="SQL condition on the rollouts to take, such as \"env = 'math' AND reward > 0\" (default: all)"
    )


def _export(args: argparse.Namespace) -> int:
    from rl.export.command import export_command

    return export_command(args.run, to=args.to, out=args.out, where=args.where, as_json=args.as_json)
