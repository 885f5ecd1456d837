"""The recipe of the quickstart's base model: `python -m rl.quickstart_base` makes the folder that `model.path` names.

A tiny CWM is trained from scratch on demonstrations of the quickstart's own training problems (never on held-out ones), by the
same supervised stage as any warm start. The demonstrations are sloppy on purpose: a known share of them has one wrong number.
The base therefore knows the reply formats and mostly how to solve the problems, but, sampled at temperature 1, imitates
its teacher and is right on a third of them only. RL, which sees nothing but pass or fail, has that gap to close.
"""

import argparse
import random
import re
import tempfile
from pathlib import Path

import torch

from configs.load import load_config
from configs.schema import Config
from environments.sources.build import build_tasks
from rl.model import build_tiny_cwm, save_model
from rl.tokenizer import build_tiny_tokenizer
from rl.warm_start import SftExample, warm_start

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
SLIP_RATE = 0.55
"""Share of demonstrations with a wrong number."""
SLIPS = (-10, -2, -1, 1, 2, 10)
"""How far off a wrong number is."""
N_EXAMPLES = 24_000
STEPS = 900
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
SEED = 0


def slip(solution: str, rng: random.Random) -> str:
    """The solution with one of its numbers off by a little; it stays a number without a sign of its own."""
    numbers = list(re.finditer(r"\d+", solution))
    if not numbers:
        return solution
    found = rng.choice(numbers)
    value = int(found.group())
    wrong = rng.choice([value + off for off in SLIPS if value + off >= 0])
    return f"{solution[: found.start()]}{wrong}{solution[found.end() :]}"


def demonstrations(config: Config, *, count: int, slip_rate: float, seed: int) -> list[SftExample]:
    """Training problems of the configured mixture, each with its reference solution or, at `slip_rate`, a wrong one."""
    mixture = build_tasks(config)
    rng = random.Random(seed)
    examples = []
    for index in range(count):
        problem = mixture.at(index)
        solution = str(problem.reference["solution"])
        answer = slip(solution, rng) if rng.random() < slip_rate else solution
        examples.append(SftExample(prompt=problem.task.prompt, answer=answer))
    return examples


def make_base(out: Path, *, config: Config, steps: int = STEPS, n_examples: int = N_EXAMPLES) -> Path:
    """Train the base and write it to `out`."""
    tokenizer = build_tiny_tokenizer()
    with tempfile.TemporaryDirectory(prefix="quickstart-base-") as scratch:
        blank = Path(scratch) / "blank"
        save_model(build_tiny_cwm(tokenizer, seed=SEED), tokenizer, blank)
        return warm_start(
            model_path=blank,
            examples=demonstrations(config, count=n_examples, slip_rate=SLIP_RATE, seed=SEED),
            out=out,
            steps=steps,
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            warmup_steps=50,
            seed=SEED,
        )


def main() -> None:
    """Command line: where to write the base."""
    parser = argparse.ArgumentParser(description="Make the base model of the quickstart.")
    parser.add_argument("--config", type=Path, default=CONFIG, help="run configuration whose tasks are demonstrated")
    parser.add_argument("--out", type=Path, default=None, help="folder to write (default: the configuration's model.path)")
    arguments = parser.parse_args()
    config = load_config([arguments.config])
    torch.set_num_threads(1)  # the model is too small to gain from more, and one thread gives the same bits everywhere
    out = make_base(arguments.out or Path(config.model.path), config=config)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
