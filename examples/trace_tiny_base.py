"""Makes the base model of `configs/trace_tiny.yaml`: a tiny CWM that has seen programs together with what they do.

    python -m examples.trace_tiny_base --out models/trace-tiny
    python -m examples.trace_tiny_base --out models/outputs-only --outputs-only

It is trained from scratch, with CWM's tokens of traces as single ids, on two kinds of examples about generated programs: a function and a
call with the value that it returns, and a function with every frame of its trace, which nine tenths of the tokens are. `--outputs-only` is
for comparison: the same programs first and then more of them, in as many tokens and as many steps, without a single trace. No program
is like a held-out one of the configuration, not even with other numbers in it.
"""

import argparse
import itertools
import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from configs.load import load_config
from configs.schema import Config
from environments.records import Problem
from environments.sources.build import build_source, build_tasks
from environments.traces.tasks import FULL, OUTPUT
from environments.traces.text import FRAME_TOKENS
from rl.model import build_tiny_cwm, save_model
from rl.prompt import ChatTokenizer, load_tokenizer
from rl.records import TokenExample
from rl.tokenizer import NUMBERS, build_tiny_tokenizer
from rl.warm_start import SftExample, tokenize_example, warm_start

CONFIG = Path(__file__).parent.parent / "configs" / "trace_tiny.yaml"
WORDS = (
    *("system", "user", "assistant", "\n\n", "```\n", "\n```", "\nassert f(", ") == ??", "  # << START_OF_TRACE"),
    *("def f(", "):\n", "    return ", "    ", "        ", "if ", "else:\n", "max(", "min(", "abs(", ", "),
    *(" = ", " += ", " -= ", " *= ", " + ", " - ", " * ", " // ", " % ", " > ", " < ", " == ", " >= ", " <= ", " != "),
    *('{"', '": "', '": "..", "', '": ".."}', '", "', '"}'),
    *NUMBERS,
    *(f"-{number}" for number in range(1, 100)),
)
"""Strings that are one token: what every program and every frame repeats, so that a trace is short, and a value is one token."""
SIZES = {"hidden": 64, "layers": 4, "heads": 2, "kv_heads": 1, "sliding_window": 256}
INITIALIZER_RANGE = 0.05
"""A model as narrow as this learns to look values up sooner than from the usual 0.02."""
TOKENS, TRACE_SHARE = 4_000_000, 0.9
"""Prompts included; the share of them in traces."""
STEP_TOKENS, LEARNING_RATE, WARMUP_STEPS = 1600, 2e-3, 50


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStartData:
    """What one model is trained on."""

    batches: tuple[tuple[TokenExample, ...], ...]
    """One a step, each of one kind of example and all of one size, in training order."""
    n_outputs: int
    n_traces: int

    @property
    def n_tokens(self) -> int:
        return sum(len(example.token_ids) for batch in self.batches for example in batch)

    @property
    def n_learned(self) -> int:
        """Tokens that the loss is about: the answers."""
        return sum(sum(example.mask) for batch in self.batches for example in batch)


def structure(problem: Problem) -> str:
    """The program with every number the same."""
    return re.sub(r"\d+", "0", str(problem.reference["code"]))


def save_blank(folder: Path, *, seed: int, sizes: dict[str, int] = SIZES) -> ChatTokenizer:
    """A model that knows nothing; the tokenizer to read with."""
    tokenizer = build_tiny_tokenizer(WORDS)
    tokenizer.add_tokens(list(FRAME_TOKENS), special_tokens=True)
    save_model(build_tiny_cwm(tokenizer, seed=seed, initializer_range=INITIALIZER_RANGE, **sizes), tokenizer, folder)
    return load_tokenizer(folder)


def examples(config: Config, env: str, *, tokenizer: ChatTokenizer, seed: int) -> Iterator[TokenExample]:
    """Endlessly; equal programs in the same order for both environments."""
    task = next(task for task in config.tasks.values() if task.env == env)
    source = build_source(
        "warm_start", config=replace(task, options=task.options | {"programs": f"warm start {seed}"}), seed=config.run.seed
    )
    heldout = {structure(problem) for problem in build_tasks(config).heldout()}
    for problem in map(source.problem, itertools.count()):
        if structure(problem) not in heldout:
            yield tokenize_example(SftExample(prompt=problem.task.prompt, answer=str(problem.reference["solution"])), tokenizer=tokenizer)


def up_to(stream: Iterator[TokenExample], *, tokens: float) -> list[TokenExample]:
    """As many examples as fit."""
    found: list[TokenExample] = []
    for example in stream:
        tokens -= len(example.token_ids)
        if tokens < 0:
            break
        found.append(example)
    return found


def warm_start_data(
    config: Config, *, tokenizer: ChatTokenizer, seed: int, tokens: int = TOKENS, outputs_only: bool = False
) -> WarmStartData:
    """`tokens` of examples. Outputs alone make shorter examples, so that a batch of them has more."""
    share = 0.0 if outputs_only else TRACE_SHARE
    parts = ((OUTPUT, (1 - share) * tokens), (FULL, share * tokens))
    outputs, traces = (up_to(examples(config, env, tokenizer=tokenizer, seed=seed), tokens=part) for env, part in parts)
    rng = random.Random(seed)
    size = max(1, round((len(outputs) + len(traces)) / (tokens / STEP_TOKENS)))
    batches: list[tuple[TokenExample, ...]] = []
    for kind in (outputs, traces):
        rng.shuffle(kind)
        batches += [tuple(kind[start : start + size]) for start in range(0, len(kind) - size + 1, size)]
    rng.shuffle(batches)
    return WarmStartData(batches=tuple(batches), n_outputs=len(outputs), n_traces=len(traces))


def make_base(out: Path, *, config: Config, seed: int = 0, tokens: int = TOKENS, outputs_only: bool = False) -> WarmStartData:
    """Train a base and write it to `out`; what it was trained on."""
    with tempfile.TemporaryDirectory(prefix="trace-tiny-") as scratch:
        blank = Path(scratch) / "blank"
        tokenizer = save_blank(blank, seed=seed)
        data = warm_start_data(config, tokenizer=tokenizer, seed=seed, tokens=tokens, outputs_only=outputs_only)
        warm_start(
            model_path=blank,
            examples=[example for batch in data.batches for example in batch],
            out=out,
            steps=len(data.batches),
            batch_size=len(data.batches[0]),
            learning_rate=LEARNING_RATE,
            warmup_steps=min(WARMUP_STEPS, len(data.batches) // 4),
            seed=seed,
            shuffle=False,
        )
    return data


def main() -> None:
    """Command line: which base, and where to write it."""
    parser = argparse.ArgumentParser(description="Make the base model of configs/trace_tiny.yaml.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--outputs-only", action="store_true", help="learn from outputs alone, in as many tokens")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"tokens to train on (default: {TOKENS})")
    parser.add_argument("--seed", type=int, default=0, help="of weights and programs (default: 0)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from more
    data = make_base(args.out, config=load_config([CONFIG]), seed=args.seed, tokens=args.tokens, outputs_only=args.outputs_only)
    print(
        f"wrote {args.out}: {len(data.batches)} steps, {data.n_tokens} tokens, {data.n_learned} of them answers; "
        f"{data.n_outputs} outputs, {data.n_traces} traces"
    )


if __name__ == "__main__":
    main()
