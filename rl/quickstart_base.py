"""The recipe of the quickstart's base model: `python -m rl.quickstart_base` makes the folder that `model.path` names.

A tiny CWM is trained from scratch on the quickstart's own training problems (never on held-out ones), in two supervised stages
of the same kind as any warm start:

1. on right demonstrations, until it mostly knows how to solve the problems;
2. briefly on sloppy ones: a known share of them has one number that is a little off.

The base is weak by design. Its likeliest reply is often right, but sampled at temperature 1 it imitates the sloppy teacher and is
right about a third of the time. RL, which sees nothing but pass or fail, has that gap to close.
"""

import argparse
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.load import load_config
from configs.schema import Config
from environments.sources.build import build_tasks
from environments.sources.mixture import Mixture
from rl.model import build_tiny_cwm, save_model
from rl.tokenizer import build_tiny_tokenizer
from rl.warm_start import SftExample, warm_start

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
DEMONSTRATION_MIX = ("tasks.arithmetic.weight=1", "tasks.output.weight=1", "tasks.function.weight=0.25")
"""Shares of the demonstrations, whatever those of the RL run are: tuning the run does not change its base."""
SLIP_RATE = 0.6
"""Share of the second stage's demonstrations that have a wrong number."""
SLIPS = (-10, -2, -1, 1, 2, 10)
"""How far off a wrong number is."""
BATCH_SIZE = 64
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One supervised stage."""

    steps: int
    learning_rate: float
    slip_rate: float


STAGES = (Stage(steps=800, learning_rate=2e-3, slip_rate=0.0), Stage(steps=80, learning_rate=1e-3, slip_rate=SLIP_RATE))


def slip(solution: str, rng: random.Random) -> str:
    """The solution with one of its numbers off by a little; it stays a number without a sign of its own."""
    numbers = list(re.finditer(r"\d+", solution))
    if not numbers:
        return solution
    found = rng.choice(numbers)
    value = int(found.group())
    wrong = rng.choice([value + off for off in SLIPS if value + off >= 0])
    return f"{solution[: found.start()]}{wrong}{solution[found.end() :]}"


def demonstrations(mixture: Mixture, *, indices: range, slip_rate: float) -> list[SftExample]:
    """Training problems of the mixture, each with its reference solution or, at `slip_rate`, a wrong one."""
    examples = []
    for index in indices:
        problem = mixture.at(index)
        rng = random.Random(f"{SEED}/{index}")
        solution = str(problem.reference["solution"])
        answer = slip(solution, rng) if rng.random() < slip_rate else solution
        examples.append(SftExample(prompt=problem.task.prompt, answer=answer))
    return examples


def make_base(out: Path, *, config: Config, stages: Sequence[Stage] = STAGES) -> Path:
    """Train the base and write it to `out`."""
    tokenizer, mixture, start = build_tiny_tokenizer(), build_tasks(config), 0
    with tempfile.TemporaryDirectory(prefix="quickstart-base-") as scratch:
        folder = Path(scratch) / "blank"
        save_model(build_tiny_cwm(tokenizer, seed=SEED), tokenizer, folder)
        for number, stage in enumerate(stages):
            indices = range(start, start + stage.steps * BATCH_SIZE)
            start = indices.stop
            folder = warm_start(
                model_path=folder,
                examples=demonstrations(mixture, indices=indices, slip_rate=stage.slip_rate),
                out=out if stage is stages[-1] else Path(scratch) / f"stage-{number}",
                steps=stage.steps,
                batch_size=BATCH_SIZE,
                learning_rate=stage.learning_rate,
                warmup_steps=min(50, stage.steps // 4),
                seed=SEED + number,
            )
    return out


def main() -> None:
    """Command line: where to write the base."""
    parser = argparse.ArgumentParser(description="Make the base model of the quickstart.")
    parser.add_argument("--out", type=Path, default=None, help="folder to write (default: model.path of configs/quickstart.yaml)")
    arguments = parser.parse_args()
    config = load_config([CONFIG], DEMONSTRATION_MIX)
    torch.set_num_threads(1)  # the model is too small to gain from more, and one thread gives the same bits everywhere
    out = make_base(arguments.out or Path(config.model.path), config=config)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
