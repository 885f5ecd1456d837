"""CWM's real widths through learner, checkpoint and weight sync: hidden 6144, 48 query and 8 key-value heads of 128, few layers.

    python -m benchmarks.width [--layers 2] [--intermediate 2048] [--vocabulary 2048] [--ranks 2] [--sequence-parallel 1] [--tokens 512]

Random bfloat16 weights; all else as in CWM, except what the options say (CWM: 64 layers, 21504, 128256). Two ranks load the checkpoint
into partitions, take a step, save, take another, go back and take it again, export, and ship their weights to a torch engine. Every way
must give the same bits. Prints one JSON line.
"""

import argparse
import json
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CwmConfig

from benchmarks.machine import print_result
from configs.load import load_config
from configs.schema import Config
from rl.batch import make_batches
from rl.engines.torch_engine import TorchEngine
from rl.hf_files import PieceWriter, finish_shards, make_shards, plan_shards
from rl.model import empty_model
from rl.model_shapes import expected_shapes
from rl.records import TrainSample
from rl.weight_sync import WeightReceiver

CONFIG = Path(__file__).parent.parent / "configs" / "cwm_32b_small.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, value in (
        ("layers", 2),
        ("intermediate", 2048),
        ("vocabulary", 2048),
        ("ranks", 2),
        ("sequence-parallel", 1),
        ("tokens", 512),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parameters = _write_model(folder / "model", options)
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_rank, args=(rank, folder, options)) for rank in range(options.ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert all(process.exitcode == 0 for process in processes), "a rank failed: see above"
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(options.ranks)]
        received = _receive(folder, options.ranks)
    print_result(
        benchmark="width",
        parameters=parameters,
        weight_mib=round(parameters * 2 / 2**20),
        **vars(options),
        seconds={name: round(max(rank["seconds"][name] for rank in ranks), 2) for name in ranks[0]["seconds"]} | {"receive": received},
        peak_mib_of_a_rank={name: max(rank["peak_mib"][name] for rank in ranks) for name in ranks[0]["peak_mib"]},
        loss=ranks[0]["loss"],
    )


def _write_model(folder: Path, options: argparse.Namespace) -> int:
    """A checkpoint with random weights, written tensor by tensor; the number of its parameters."""
    config = CwmConfig(
        num_hidden_layers=options.layers,
        intermediate_size=options.intermediate,
        vocab_size=options.vocabulary,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (6144, 48, 8, 128)
    folder.mkdir()
    config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    shapes = expected_shapes(config.to_dict())
    shards = plan_shards(shapes, dtype=torch.bfloat16)
    make_shards(folder, shards)
    writer = PieceWriter(folder, shards)
    draw = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        values = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=draw) * config.initializer_range
        writer.write(name, start=0, values=values.to(torch.bfloat16).flatten())
    writer.close()
    finish_shards(folder, shards)
    return sum(parameter.numel() for parameter in empty_model(folder, dtype="bfloat16").parameters())


def _config(options: argparse.Namespace) -> Config:
    words = {"ranks": options.ranks, "sequence_parallel": options.sequence_parallel, "offload_optimizer": "false", "warmup_steps": 0}
    return load_config([CONFIG], [f"learner.{name}={value}" for name, value in words.items()])


def _samples(options: argparse.Namespace) -> list[TrainSample]:
    """Two groups of four rollouts, `options.tokens` tokens in all."""
    draw = np.random.default_rng(0)
    length = options.tokens // 8
    samples = []
    for i in range(8):
        ids = np.concatenate([np.full(8, i // 4 + 2), draw.integers(2, options.vocabulary, length - 8)]).astype(np.int32)
        agent = np.arange(length) >= 8
        samples.append(
            TrainSample(
                rollout_id=f"{i // 4}-{i % 4}",
                group_index=i // 4,
                token_ids_T=ids,
                agent_mask_T=agent,
                behaviour_logprobs_T=np.where(agent, -np.log(options.vocabulary), 0).astype(np.float32),
                versions_T=np.where(agent, 0, -1).astype(np.int32),
                advantage=float(draw.normal()),
                prompt_len=8,
            )
        )
    return samples


def _rank(rank: int, folder: Path, options: argparse.Namespace) -> None:
    """One process of the learner."""
    from rl.learner import Learner

    config = _config(options)
    batches = make_batches(_samples(options), config=config, n_rollouts=8)[rank]
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = action()
        seconds[name], peaks[name] = time.perf_counter() - started, _peak_mib()
        return result

    learner = timed(
        "load",
        lambda: Learner(
            config,
            model_path=folder / "model",
            rank=rank,
            world_size=options.ranks,
            init_method=f"file://{folder / 'meet'}",
            threads=1,
        ),
    )
    stats = timed("step", lambda: learner.train_step(batches))
    timed("save", lambda: learner.save(folder / "saved"))
    learner.train_step(batches)
    first = _bits(learner)
    timed("resume", lambda: learner.load(folder / "saved"))
    learner.train_step(batches)
    assert _bits(learner) == first, "a resumed step gives other bits"
    timed("export", lambda: learner.export(folder / "exported"))
    with open(folder / f"buckets{rank}.pickle", "wb") as file:
        timed("publish", lambda: pickle.dump(list(learner.buckets(1)), file, protocol=5))
    learner.close()
    (folder / f"rank{rank}.json").write_text(json.dumps({"seconds": seconds, "peak_mib": peaks, "loss": stats.loss}))


def _bits(learner: Any) -> list[int]:
    """Checksums of this rank's weights."""
    return [bucket.checksum for bucket in learner.buckets(1)]


def _receive(folder: Path, ranks: int) -> float:
    """Seconds in which a torch engine takes the weights of all ranks; they must be those of the exported checkpoint."""
    engine = TorchEngine(folder / "model", dtype=torch.bfloat16, slots=1, context_length=64)
    receiver = WeightReceiver(engine.parameters())
    buckets = [bucket for rank in range(ranks) for bucket in pickle.loads((folder / f"buckets{rank}.pickle").read_bytes())]
    started = time.perf_counter()
    receiver.begin(1)
    for bucket in buckets:
        receiver.apply(bucket)
    receiver.finish()
    taken = round(time.perf_counter() - started, 2)
    del buckets
    exported = {name: tensor for path in (folder / "exported").glob("*.safetensors") for name, tensor in load_file(path).items()}
    held = engine.parameters()
    assert held.keys() == exported.keys() and all(torch.equal(held[name], tensor) for name, tensor in exported.items())
    return taken


def _peak_mib() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    main()
