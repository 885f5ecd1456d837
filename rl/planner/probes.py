"""What decode steps and prefills take on this machine: the product's own engine, alone in a process with the threads of a replica.

The model's weights do not matter, only its shape. Heavy imports happen inside.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.schema import Config
from rl.planner.shape import ModelShape
from rl.planner.timing import Timing

if TYPE_CHECKING:
    from rl.engines.torch_engine import TorchEngine

_REPEATS = 3
_SAMPLED = 12
"""Tokens of each sequence while decode steps are timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorTimings:
    """Of one replica."""

    decode: tuple[Timing, ...]
    """Work: 1, sequences, cached positions summed over sequences and layers."""
    prefill: tuple[Timing, ...]
    """Work: 1, tokens, pairs summed over layers, prompts."""
    refresh: float
    """More seconds of the first step with new weights."""


def probe_generator(config: Config, *, folder: Path, shape: ModelShape, threads: int, prompt: int) -> GeneratorTimings:
    """Time an engine with about `prompt` tokens a prompt."""
    import torch

    from rl.engines.torch_engine import TorchEngine

    torch.set_num_threads(threads)
    dtype = getattr(torch, config.generator.dtype or config.model.dtype)
    slots, samples = config.generator.slots, config.rollout.samples_per_prompt
    engine = TorchEngine(folder, dtype=dtype, slots=slots, context_length=4 * prompt + 2 * _SAMPLED)
    most = min(slots, config.rollout.prompts_per_step * samples)
    decode, prefill = [], []
    for rows in sorted({1, max(1, most // 8), max(1, most // 2), most}):
        for length in (prompt, 3 * prompt):
            _run(engine, rows=rows, samples=samples, prompt=length)  # touches the memory
            for _ in range(_REPEATS):
                before = engine.stats()
                _run(engine, rows=rows, samples=samples, prompt=length)
                after = engine.stats()
                steps, prompts = after.decode_steps - before.decode_steps, after.prompts - before.prompts
                positions = rows * shape.seen(length + _SAMPLED / 2)
                decode.append(Timing(work=(1, rows, positions), seconds=(after.decode_seconds - before.decode_seconds) / steps))
                work = (1, prompts * length, prompts * shape.attended(length), prompts)
                prefill.append(Timing(work=work, seconds=after.prefill_seconds - before.prefill_seconds))
    return GeneratorTimings(decode=_medians(decode), prefill=_medians(prefill), refresh=_refresh_seconds(engine))


def _run(engine: "TorchEngine", *, rows: int, samples: int, prompt: int) -> None:
    from rl.records import GenerateRequest, Sampling

    rng = np.random.default_rng(rows)
    for first in range(0, rows, samples):
        count = min(samples, rows - first)
        request = GenerateRequest(
            key=str(first),
            episodes=tuple(f"{first}-{i}" for i in range(count)),
            prompt_ids_P=rng.integers(0, engine.shape.vocab, prompt).astype(np.int32),
            seeds=tuple(range(count)),
            sampling=Sampling(max_tokens=_SAMPLED),
        )
        engine.submit(request)
    while engine.busy:
        engine.step()


def _refresh_seconds(engine: "TorchEngine") -> float:
    def seconds() -> float:
        began = time.perf_counter()
        _run(engine, rows=1, samples=1, prompt=8)
        return time.perf_counter() - began

    more = []
    for version in range(1, _REPEATS + 1):
        usual = seconds()
        engine.version = version
        more.append(seconds() - usual)
    return max(0.0, statistics.median(more))


def _medians(timings: Sequence[Timing]) -> tuple[Timing, ...]:
    """One timing for each kind of work."""
    seconds: dict[tuple[float, ...], list[float]] = {}
    for timing in timings:
        seconds.setdefault(timing.work, []).append(timing.seconds)
    return tuple(Timing(work=work, seconds=statistics.median(values)) for work, values in seconds.items())
