"""The words of `rl debug`. The modules that do the work are imported when the command runs."""

import argparse
from pathlib import Path
from typing import Any

from rl.command_words import AddCommand
from rl.traces.arguments import read_source


def add_debug_command(commands: Any, *, command: AddCommand) -> None:
    """Add `debug`. `command(commands, name, run, text)` adds one command."""
    debug = command(commands, "debug", _debug, "step through a program with a model as the debugger, beside the real interpreter")
    debug.add_argument("model", metavar="MODEL", help="checkpoint folder, as model.path")
    debug.add_argument("file", type=Path, metavar="FILE", help="Python source")
    debug.add_argument("--entry", metavar="NAME", help="function to call (default: run FILE as a script)")
    debug.add_argument("--args", default="[]", metavar="LIST", help="positional arguments as a Python literal, such as \"[1, 'a']\"")
    debug.add_argument("--script", type=Path, metavar="COMMANDS", help="file with commands, one a line (default: stdin)")
    debug.add_argument("--temperature", type=float, default=0.0, metavar="T", help="of sampling (default: 0, the likeliest token)")
    debug.add_argument("--seed", type=int, default=0, metavar="N", help="of sampling (default: 0)")
    debug.add_argument("--max-tokens", type=int, default=512, metavar="N", help="most tokens of a frame (default: 512)")
    debug.add_argument(
        "--max-frames", type=int, default=100, metavar="N", help="most frames that the model writes for a command (default: 100)"
    )


def _debug(args: argparse.Namespace) -> int:
    for name in ("max_tokens", "max_frames"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    if not 0 <= args.temperature <= 10:
        raise ValueError(f"--temperature is {args.temperature}; it must be from 0 to 10")
    from environments.traces.tracer import Program
    from rl.debug.command import debug_command

    return debug_command(
        args.model,
        program=Program(source=read_source(args.file), entry=args.entry, args=args.args),
        script=args.script,
        as_json=args.as_json,
        temperature=args.temperature,
        seed=args.seed,
        most_tokens=args.max_tokens,
        most_frames=args.max_frames,
    )
