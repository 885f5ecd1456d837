"""Packed rows against one document a row: padding, and seconds of forward and backward passes.

    python -m benchmarks.packing [--rounds 3] [--threads 1]

A Llama of SmolLM2-135M's sizes with random weights, bfloat16, on samples of four shapes; the first is small enough to be run. Both ways
score the same tokens, and sides take turns. Prints one JSON line.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from unittest.mock import patch

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import print_result
from configs.schema import Config, LearnerConfig, RolloutConfig, SamplingConfig, TaskConfig
from rl import batch as batch_module
from rl.batch import make_batches
from rl.policy import Policy
from rl.records import MicroBatch, TrainSample

Draw = Callable[[np.random.Generator], float]
SHAPES: dict[str, tuple[int, Draw, Draw, int, int]] = {
    "short answers": (8, lambda r: r.integers(40, 100), lambda r: r.integers(2, 32), 1, 2048),
    "one-line repairs": (16, lambda r: r.integers(60, 128), lambda r: r.integers(10, 200), 1, 8192),
    "reasoning": (16, lambda r: r.integers(40, 300), lambda r: min(4000, r.lognormal(np.log(800), 0.8)), 1, 4096),
    "131k contexts": (64, lambda r: r.integers(500, 8000), lambda r: min(122_000, r.lognormal(np.log(8000), 1.1)), 8, 131_072),
}
"""Prompts of 8 samples; tokens of a prompt and of an answer; data-parallel ranks; micro-batch tokens."""
TIMED = ("short answers",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=3, tie_word_embeddings=True)).to(torch.bfloat16)
    policy = Policy(model, chunk=1024)
    results = {}
    for name, (prompts, prompt, answer, ranks, budget) in SHAPES.items():
        samples = _samples(np.random.default_rng(0), prompts, prompt, answer)
        arms = {"packed": _layout(samples, ranks, budget)}
        with patch.object(batch_module, "_fill", _one_a_row):
            arms["one a row"] = _layout(samples, ranks, budget)
        padding = {arm: round(1 - _real(micros) / _places(micros), 4) for arm, micros in arms.items()}
        results[name] = {"padding": padding, "micro_batches": {arm: len(micros) for arm, micros in arms.items()}}
        if name in TIMED:
            seconds: dict[str, list[float]] = {arm: [] for arm in arms}
            for n in range(options.rounds + 1):
                for arm in sorted(arms, reverse=bool(n % 2)):
                    taken = _train(policy, arms[arm])
                    if n:
                        seconds[arm].append(taken)
            medians = {arm: statistics.median(values) for arm, values in seconds.items()}
            results[name] |= {
                "seconds": {arm: round(value, 3) for arm, value in medians.items()},
                "packed_to_one_a_row": round(medians["packed"] / medians["one a row"], 3),
            }
    print_result(benchmark="packing", rounds=options.rounds, threads=options.threads, shapes=results)


def _samples(rng: np.random.Generator, prompts: int, prompt: Draw, answer: Draw) -> list[TrainSample]:
    samples = []
    for group in range(prompts):
        shared = rng.integers(1, 40_000, int(prompt(rng)))
        for index in range(8):
            ids = np.concatenate([shared, rng.integers(1, 40_000, max(2, int(answer(rng))))]).astype(np.int32)
            agent = np.arange(len(ids)) >= len(shared)
            samples.append(
                TrainSample(
                    rollout_id=f"{group}-{index}",
                    group_index=group,
                    token_ids_T=ids,
                    agent_mask_T=agent,
                    behaviour_logprobs_T=np.zeros(len(ids), dtype=np.float32),
                    versions_T=np.where(agent, 0, -1).astype(np.int32),
                    advantage=1.0,
                    prompt_len=len(shared),
                )
            )
    return samples


def _layout(samples: Sequence[TrainSample], ranks: int, budget: int) -> list[MicroBatch]:
    config = Config(
        tasks={"made": TaskConfig(kind="programs", env="math")},
        sampling=SamplingConfig(max_tokens=131_072),
        rollout=RolloutConfig(prompts_per_step=64),
        learner=LearnerConfig(ranks=ranks, micro_batch_tokens=budget),
    )
    batches = make_batches(samples, config=config, n_rollouts=len(samples))
    return [micro_batch for rank in batches for batch in rank for micro_batch in batch.micro_batches]


def _one_a_row(documents, *, budget):  # type: ignore[no-untyped-def]  # the private types of rl.batch
    micro_batches = []
    for document in sorted(documents, key=lambda document: (-document.length, document.members)):
        if micro_batches and (len(micro_batches[-1]) + 1) * micro_batches[-1][0][0].length <= budget:
            micro_batches[-1].append([document])
        else:
            micro_batches.append([[document]])
    return micro_batches


def _places(micro_batches: Sequence[MicroBatch]) -> int:
    return sum(micro_batch.token_ids_BL.size for micro_batch in micro_batches)


def _real(micro_batches: Sequence[MicroBatch]) -> int:
    return sum(int((micro_batch.documents_BL >= 0).sum()) for micro_batch in micro_batches)


def _train(policy: Policy, micro_batches: Sequence[MicroBatch]) -> float:
    """Seconds of a forward and backward pass of all of them."""
    names = ("token_ids_BL", "positions_BL", "segments_BL", "documents_BL", "source_N", "targets_N")
    started = time.perf_counter()
    for micro_batch in micro_batches:
        policy(*(torch.from_numpy(getattr(micro_batch, name)) for name in names))[0].sum().backward()
    policy.zero_grad()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
