"""Asynchronous against strictly on-policy training on an environment of long-tailed latency: the same tokens, measured and predicted.

    python -m benchmarks.async_sync [--median 0.5] [--spread 1.0] [--staleness 4] [--steps 12]

The quickstart's tiny model; an episode takes a log-normal time. Both runs train the same number of batches of the same size. The
prediction takes lengths and latencies from the on-policy run's log and measures this machine. Prints one JSON line.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import print_result
from configs.load import load_config
from configs.schema import Config
from rl.log.metrics import read_metrics
from rl.plan import make_plan
from rl.planner.command import machine_setup
from rl.planner.measure import measure_machine
from rl.planner.shape import model_shape
from rl.planner.simulate import simulate
from rl.planner.workload import recorded

ROOT = Path(__file__).parent.parent
WORDS = (
    *(
        "run.name=case",
        "run.threads=2",
        "run.plugins=[benchmarks/plan_tasks.py]",
        "model.path=configs/base/tiny-cwm",
        "model.dtype=float32",
    ),
    *(
        "model.max_prompt_tokens=128",
        "model.context_length=256",
        "tasks.sums.kind=programs",
        "tasks.sums.env=slow",
        "tasks.sums.reward=coin",
    ),
    *("tasks.sums.options.kind=arithmetic", "tasks.sums.options.max_operand=19", "sampling.max_tokens=24", "generator.slots=256"),
    *("rollout.prompts_per_step=8", "rollout.samples_per_prompt=4", "learner.learning_rate=1.0e-6", "learner.micro_batch_tokens=2048"),
    *("evaluation.enabled=false", "checkpoint.every=1000"),
)


def main() -> None:
    """Run both, predict both, print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--median", type=float, default=0.5, help="seconds of an episode")
    parser.add_argument("--spread", type=float, default=1.0, help="standard deviation of the logarithm")
    parser.add_argument("--staleness", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        configs = {}
        measured = {}
        for name, staleness in (("sync", 0), ("async", options.staleness)):
            words = (*WORDS, f"run.dir={scratch}/{name}", f"run.steps={options.steps}", f"rollout.max_staleness={staleness}")
            configs[name] = load_config([], words)
            measured[name] = _run(words, Path(scratch) / name / "case", median=options.median, spread=options.spread)
        predicted = _predict(configs, log=f"{scratch}/sync/case")
    print_result(
        benchmark="async_sync",
        latency=f"log-normal, median {options.median} s, spread {options.spread}",
        steps=options.steps,
        staleness=options.staleness,
        measured={name: {key: round(value, 3) for key, value in values.items()} for name, values in measured.items()},
        predicted_seconds={name: round(value, 2) for name, value in predicted.items()},
        times_faster={
            "measured": round(measured["async"]["tokens_per_s"] / measured["sync"]["tokens_per_s"], 2),
            "predicted": round(predicted["sync"] / predicted["async"], 2),
        },
    )


def _run(words: tuple[str, ...], run: Path, *, median: float, spread: float) -> dict[str, float]:
    """Train; seconds from the first rollout to the last step, tokens a second, mean staleness."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLOW_MEDIAN": str(median), "SLOW_SPREAD": str(spread)}
    subprocess.run([sys.executable, "-m", "rl.cli", "train", *words, "--clean"], cwd=ROOT, env=environment, stdout=sys.stderr, check=True)
    steps = read_metrics(run / "metrics.jsonl").steps
    seconds = sum(sum(step.phases.get(phase, 0.0) for phase in ("rollout", "train", "sync", "log")) for step in steps)
    tokens = sum(step.tokens for step in steps)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "staleness": sum(step.staleness_mean for step in steps) / len(steps),
    }


def _predict(configs: dict[str, Config], *, log: str) -> dict[str, float]:
    """Seconds of all steps."""
    workload = recorded(log)
    seconds = {}
    for name, config in configs.items():
        shape = model_shape(config.model.path)
        machine = measure_machine(config, folder=Path(config.model.path), shape=shape, plan=make_plan(config), workload=workload)
        found = simulate(machine_setup(config, shape=shape, machine=machine, workload=workload), steps=config.run.steps)
        seconds[name] = sum(step.seconds for step in found.steps)
    return seconds


if __name__ == "__main__":
    main()
