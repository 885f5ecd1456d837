"""The words of `rl plan`. The modules that do the work are imported when it runs."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.command_words import RUN_HELP, AddCommand

if TYPE_CHECKING:
    from configs.schema import Config

CARD_NAMES = ("h100", "h200", "a100")


def add_plan_command(commands: Any, *, command: AddCommand, load: "Callable[[Sequence[str]], Config]", config_help: str) -> None:
    """Add `plan`. `load` makes a configuration of the words of the command line."""

    def run(args: argparse.Namespace) -> int:
        from rl.planner.command import Request, plan_command

        request = Request(
            config=load(args.settings),
            model=args.model,
            gpus=args.gpus,
            machine=args.machine,
            log=args.log,
            assumptions=_pairs(args.assume),
            steps=args.steps,
            plot=args.plot,
        )
        return plan_command(request, as_json=args.as_json)

    plan = command(commands, "plan", run, "predict memory, step time, staleness and the bottleneck of a run")
    plan.add_argument("settings", nargs="+", metavar="CONFIG|KEY=VALUE", help=config_help)
    plan.add_argument("--gpus", choices=CARD_NAMES, help="cards to plan for (default: this machine's cores, which are measured)")
    plan.add_argument("--model", metavar="NAME|FOLDER", help="cwm-32b, smollm2-135m, or a folder with a config.json (default: model.path)")
    plan.add_argument("--machine", type=Path, metavar="FILE", help="this machine's measurements: read, or written when it is not there")
    plan.add_argument("--log", metavar="RUN", help=f"take lengths, latencies and pass rates from {RUN_HELP}")
    plan.add_argument(
        "--assume", action="append", default=[], metavar="KEY=VALUE", help="what to assume without a log, such as environment_seconds=20"
    )
    plan.add_argument("--steps", type=int, default=8, metavar="N", help="steps to simulate after the ring has filled (default: 8)")
    plan.add_argument("--plot", type=Path, metavar="FILE", help="draw speed over 8 to 1,000 cards as a PNG file; needs --gpus")


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--assume {word}: write KEY=VALUE, for example environment_seconds=20")
        pairs[name] = value
    return pairs
