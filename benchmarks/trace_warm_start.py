"""The same tiny model with and without traces in its warm start: how often does it predict the output of programs it has never seen?

    python -m benchmarks.trace_warm_start models/traces [--seeds 0,1,2] [--samples 4]

Makes the bases of `examples/trace_tiny_base.py` for every seed, each a folder below the one given (those that are there already are not
made again): `traces`; `outputs`, with as many tokens and no traces; `few`, with the outputs of `traces` and nothing else. Evaluates
them on the held-out problems of `configs/trace_tiny.yaml`, which are the same for all, and prints a JSON line for each and one that
compares: means over the seeds, and paired bootstraps over the problems.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.machine import print_result
from configs.load import load_config
from configs.schema import Config
from examples.trace_tiny_base import CONFIG, TOKENS, TRACE_SHARE, make_base
from rl.evaluate_model import evaluate_command
from rl.statistics import Tally, paired_bootstrap, pass_rate

ARMS = {"outputs": 1.0, "few": 1 - TRACE_SHARE, "traces": 1.0}
"""Name of a base: its share of the tokens."""
OUTPUTS, FEW, AT_ONCE, BY_TRACE = "outputs output", "few output", "traces output", "traces trace"
"""Ways to answer: base and task."""
Tallies = Mapping[str, Tally]


def base(folder: Path, *, config: Config, seed: int, tokens: int, outputs_only: bool) -> None:
    """Make a base that is not there, and print what it was trained on."""
    if folder.exists():
        return
    started, cpu = time.perf_counter(), time.process_time()
    data = make_base(folder, config=config, seed=seed, tokens=tokens, outputs_only=outputs_only)
    print_result(
        benchmark="trace_warm_start",
        base=folder.name,
        steps=len(data.batches),
        batch_size=len(data.batches[0]),
        tokens=data.n_tokens,
        answer_tokens=data.n_learned,
        outputs=data.n_outputs,
        traces=data.n_traces,
        seconds=round(time.perf_counter() - started),
        cpu_seconds=round(time.process_time() - cpu),
    )


def evaluated(folder: Path, *, config: Config, samples: int, outputs_only: bool) -> dict[str, Tallies]:
    """By task: successes of every held-out problem, by its id."""
    if outputs_only:  # it has never seen a trace
        config = replace(config, tasks={name: task for name, task in config.tasks.items() if name != "trace"})
    with contextlib.redirect_stdout(sys.stderr):
        report = evaluate_command(config, model_path=folder, samples=samples, seeds=(0,))
    found = {}
    for name in config.tasks:
        rate = report.pooled(name)
        print_result(benchmark="trace_warm_start", base=folder.name, task=name, **rate.to_json())
        found[name] = rate.by_problem
    return found


def pooled(by_seed: Sequence[Tallies]) -> dict[str, Tally]:
    """The samples of all models together: a problem is still one draw."""
    return {problem: sum((tallies[problem] for tallies in by_seed), start=Tally(passed=0, graded=0)) for problem in by_seed[0]}


def compare(ways: Mapping[str, Sequence[Tallies]]) -> None:
    """Print the table: each way of answering, and the differences between them."""
    totals = {way: pooled(by_seed) for way, by_seed in ways.items()}
    shown = {}
    for way, total in totals.items():
        estimate = pass_rate(list(total.values()))
        by_seed = [round(pass_rate(list(tallies.values())).value, 4) for tallies in ways[way]]
        shown[way] = {"value": round(estimate.value, 4), "low": round(estimate.low, 4), "high": round(estimate.high, 4), "by_seed": by_seed}
    rates = {way: {problem: tally.rate for problem, tally in total.items()} for way, total in totals.items()}
    differences = {
        f"{second} - {first}": asdict(paired_bootstrap(rates[first], rates[second]))
        for first, second in ((OUTPUTS, AT_ONCE), (OUTPUTS, BY_TRACE), (FEW, AT_ONCE), (AT_ONCE, BY_TRACE))
    }
    print_result(benchmark="trace_warm_start", ways=shown, differences=differences)


def main() -> None:
    """Make, evaluate, compare."""
    parser = argparse.ArgumentParser(description="Warm starts with and without traces.")
    parser.add_argument("out", type=Path, help="folder of the models")
    parser.add_argument("--seeds", default="0,1,2", help="of weights and programs, one a model (default: 0,1,2)")
    parser.add_argument("--samples", type=int, default=4, help="samples a problem (default: 4)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"tokens to train on (default: {TOKENS})")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config([CONFIG])
    ways: dict[str, list[Tallies]] = {OUTPUTS: [], FEW: [], AT_ONCE: [], BY_TRACE: []}
    for seed in map(int, args.seeds.split(",")):
        for arm, share in ARMS.items():
            folder, outputs_only = args.out / f"{arm}-{seed}", arm != "traces"
            base(folder, config=config, seed=seed, tokens=round(share * args.tokens), outputs_only=outputs_only)
            for task, tallies in evaluated(folder, config=config, samples=args.samples, outputs_only=outputs_only).items():
                ways[f"{arm} {task}"].append(tallies)
    compare(ways)


if __name__ == "__main__":
    main()
