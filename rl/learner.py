"""One ZeRO rank: turns batches into optimizer steps.

    Batch ─► micro-batches ─► Policy (logprobs) ─► Objective (loss) ─► backward, gradients partitioned ─► AdamW on this rank's
    float32 masters ─► partitions ─► buckets() for the generators, save() for a resume, export() for the world

It does not choose what to train on, assign advantages or move weights to generators.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from configs.schema import Config, LearnerConfig
from rl import zero
from rl.errors import RunFailed
from rl.hf_files import PieceWriter, WeightFiles, copy_tokenizer, finish_shards, make_shards, plan_shards
from rl.host_memory import keep_freed_memory
from rl.loss import LossInputs, make_objective
from rl.model import DTYPES, empty_model, load_model
from rl.policy import Policy
from rl.rank_state import Layout, read_state, write_state
from rl.records import Batch, MicroBatch, StepStats, WeightBucket
from rl.sequence_parallel import SequenceParallel
from rl.step_stats import StepTotals
from rl.weight_sender import WeightSender
from rl.weight_sync import Piece


class NonFiniteLoss(RunFailed):
    """The loss or the gradient of an optimizer step is infinite or NaN. Nothing of that step was applied, on any rank.

    The learner that raised it holds half-accumulated gradients: restart from a checkpoint.
    """

    def __init__(self, what: str, step: int, rollout_ids: tuple[str, ...]) -> None:
        super().__init__(f"{what} is not finite in optimizer step {step}; rollouts: {', '.join(rollout_ids)}")
        self.what = what
        self.step = step
        self.rollout_ids = rollout_ids

    def __reduce__(self) -> tuple[Any, ...]:
        return NonFiniteLoss, (self.what, self.step, self.rollout_ids)


def learning_rate(config: LearnerConfig, *, step: int, total: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total`: linear warm-up from 0, then the schedule down to 0.

    The first step already moves: warm-up step k of w uses (k + 1) / w of the peak.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    left = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * left


class Learner:
    """One rank of the learner. All ranks call the same methods in the same order."""

    def __init__(
        self,
        config: Config,
        *,
        model_path: Path,
        rank: int,
        world_size: int,
        init_method: str,
        threads: int,
        note: Callable[[str], None] = lambda what: None,
    ) -> None:
        """
        Args:
            model_path: folder with a Hugging Face checkpoint.
            init_method: where the ranks meet, `tcp://127.0.0.1:PORT` or `file:///path`.
            threads: CPU threads of this rank.
            note: hears what this rank is at.
        """
        torch.set_num_threads(threads)
        if not zero.ON_GPU:
            keep_freed_memory()
        self._config = config
        self._rank, self._world_size = rank, world_size
        self._model_path = model_path
        self._steps_done = 0
        self._note = note
        self._total_steps = config.run.steps * config.learner.optimizer_steps_per_batch
        self._dtype = DTYPES[config.model.dtype]
        self._stage = zero.effective_stage(config.learner, self._dtype)
        # Longer than the loop waits for a call: its diagnosis, which knows all ranks, comes first.
        timeout = timedelta(seconds=60 + max(config.rollout.timeout, config.cluster.start_timeout))
        zero.join(rank=rank, world_size=world_size, init_method=init_method, timeout=timeout)
        together = config.learner.sequence_parallel
        self._sequence = SequenceParallel(together) if together > 1 else None
        self._counts = self._sequence is None or self._sequence.rank == 0  # else a neighbour reports the same micro-batches
        self._engine = self._make_engine(stage=self._stage, train=True)
        self._device: torch.device = self._engine.device
        self._policy: Policy = self._engine.module
        self._objective = make_objective(config.objective)
        self._sender = WeightSender(
            rank=rank,
            dtype=config.generator.dtype or config.model.dtype,
            bucket_bytes=int(config.learner.bucket_mb * (1 << 20)),
            deltas=config.learner.weight_sync == "delta",
        )
        self._reference = None
        if self._objective.needs_reference:
            self._reference = self._make_engine(stage=3, train=False)
            self._reference.eval()

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps applied so far."""
        return self._steps_done

    def train_step(self, batches: Sequence[Batch]) -> StepStats:
        """One optimizer step for each batch.

        Returns:
            Statistics over all ranks (loss and gradient norm: mean over the optimizer steps); `samples` are this rank's.

        Raises:
            NonFiniteLoss: see there; raised by all ranks alike.
        """
        assert batches, "a training step needs at least one batch"
        started = time.perf_counter()
        totals, norms, rate = StepTotals(), 0.0, 0.0
        old = self._old_logprobs(batches)
        self._engine.train()
        for batch, old_of_batch in zip(batches, old, strict=True):
            for i, (micro_batch, old_N) in enumerate(zip(batch.micro_batches, old_of_batch, strict=True), start=1):
                self._note(f"optimizer step {self._steps_done + 1}: micro-batch {i} of {len(batch.micro_batches)}")
                self._accumulate(micro_batch, old_N=old_N, totals=totals)
            rate = learning_rate(self._config.learner, step=self._steps_done, total=self._total_steps)
            self._note(f"optimizer step {self._steps_done + 1}: exchanges gradients and applies them")
            norms += self._apply(batch, rate)
        sums = totals.sums.to(self._device)
        if self._world_size > 1:
            distributed.all_reduce(sums)
        loss, entropy, k3, clipped, tokens = sums.tolist()
        return StepStats(
            loss=loss / len(batches),
            grad_norm=norms / len(batches),
            learning_rate=rate,
            entropy=entropy / max(tokens, 1),
            kl=k3 / max(tokens, 1),
            clip_fraction=clipped / max(tokens, 1),
            n_tokens=int(tokens),
            seconds=time.perf_counter() - started,
            samples=totals.samples,
        )

    def _old_logprobs(self, batches: Sequence[Batch]) -> list[list[Tensor | None]]:
        """Per batch and micro-batch, the logprobs of the policy before this training step.

        None where they equal those of the forward pass itself: nothing has been applied yet in the first optimizer step.
        """
        needed = self._objective.needs_old
        return [
            [self._score(self._engine, micro_batch) if needed and i > 0 else None for micro_batch in batch.micro_batches]
            for i, batch in enumerate(batches)
        ]

    @torch.no_grad()
    def _score(self, engine: Any, micro_batch: MicroBatch) -> Tensor:
        """float32[N]: logprobs of the response tokens without a graph."""
        logprobs_N: Tensor = engine(*self._inputs(micro_batch))[0]
        return logprobs_N

    def _inputs(self, micro_batch: MicroBatch) -> tuple[Tensor, ...]:
        arrays = (
            micro_batch.token_ids_BL,
            micro_batch.positions_BL,
            micro_batch.segments_BL,
            micro_batch.documents_BL,
            micro_batch.source_N,
            micro_batch.targets_N,
        )
        return tuple(self._tensor(array) for array in arrays)

    def _tensor(self, array: np.ndarray) -> Tensor:
        """A copy on the device: arrays out of an object store are read-only."""
        return torch.tensor(array, device=self._device)

    def _accumulate(self, micro_batch: MicroBatch, *, old_N: Tensor | None, totals: StepTotals) -> None:
        """Forward, loss and backward of one micro-batch."""
        reference_N = None if self._reference is None else self._score(self._reference, micro_batch)
        logprobs_N, entropies_N = self._engine(*self._inputs(micro_batch))
        if self._objective.needs_old and old_N is None:
            old_N = logprobs_N.detach()

        output = self._objective(
            LossInputs(
                logprobs_N=logprobs_N,
                behaviour_logprobs_N=self._tensor(micro_batch.behaviour_logprobs_N),
                old_logprobs_N=old_N,
                reference_logprobs_N=reference_N,
                advantages_N=self._tensor(micro_batch.advantages_N),
                weights_N=self._tensor(micro_batch.weights_N),
                sample_N=self._tensor(micro_batch.sample_N),
                n_samples=len(micro_batch.rollout_ids),
            )
        )
        self._require_finite(output.loss, micro_batch)
        # The weights carry the global denominator already: undo DeepSpeed's mean over ranks.
        self._engine.backward(output.loss * self._world_size)
        if self._counts:
            totals.add(micro_batch, loss=output.loss, logprobs_N=logprobs_N, entropies_N=entropies_N, clipped_N=output.clipped_N)

    def _require_finite(self, loss: Tensor, micro_batch: MicroBatch) -> None:
        """Raise on all ranks when the loss of any rank is not finite."""
        bad = (~torch.isfinite(loss.detach())).to(torch.int32)
        if self._world_size > 1:
            anywhere = bad.clone()
            distributed.all_reduce(anywhere, op=distributed.ReduceOp.MAX)
        else:
            anywhere = bad
        if anywhere.item():
            raise NonFiniteLoss("the loss", self._steps_done, self._gather_ids(micro_batch.rollout_ids if bad.item() else ()))

    def _gather_ids(self, rollout_ids: Sequence[str]) -> tuple[str, ...]:
        """Rollout ids of all ranks, in rank order, each once."""
        ids: list[Sequence[str]] = [()] * self._world_size
        distributed.all_gather_object(ids, tuple(rollout_ids))
        return tuple(dict.fromkeys(rollout_id for own in ids for rollout_id in own))

    def _apply(self, batch: Batch, rate: float) -> float:
        """Clip the accumulated gradient and apply it; returns its norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        if self._engine.optimizer.overflow:
            ids = tuple(rollout_id for micro_batch in batch.micro_batches for rollout_id in micro_batch.rollout_ids)
            raise NonFiniteLoss("the gradient", self._steps_done, self._gather_ids(ids))
        self._steps_done += 1
        return float(self._engine.get_global_grad_norm())

    def buckets(self, version: int, *, delta: bool = False) -> Iterator[WeightBucket]:
        """This rank's partition of the weights in the generators' precision; nothing is gathered.

        The buckets may be views of the live weights: ship them before the next `train_step`.

        Args:
            delta: only what has changed since the version before; needs `learner.weight_sync=delta`.
        """
        return (self._sender.delta if delta else self._sender.whole)(self._pieces(), version=version)

    def _pieces(self) -> Iterator[Piece]:
        for name, start, values in zero.partitions(self._policy, stage=self._stage):
            yield Piece(name=Policy.hf_name(name), start=start, values=values)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face checkpoint (safetensors, configuration, tokenizer): all ranks write, each its own partition."""
        shapes = {Policy.hf_name(name): shape for name, shape in zero.shapes(self._policy).items()}
        shards = plan_shards(shapes, dtype=self._dtype)
        if self._rank == 0:
            copy_tokenizer(self._model_path, folder)
            self._policy.config.save_pretrained(folder)
            make_shards(folder, shards)
        distributed.barrier()
        writer, written = PieceWriter(folder, shards), 0
        for piece in self._pieces():
            writer.write(piece.name, start=piece.start, values=piece.values)
            written += piece.values.numel()
        writer.close()
        everywhere = torch.tensor(written, device=self._device)
        distributed.all_reduce(everywhere)
        assert everywhere.item() == sum(map(math.prod, shapes.values())), "an element was not written, or twice"
        if self._rank == 0:
            finish_shards(folder, shards)
        distributed.barrier()

    def save(self, folder: Path) -> None:
        """Write this rank's masters, optimizer state and counters for an exact resume, durably, with a checksum manifest."""
        inner = self._engine.optimizer.optimizer
        masters = [master.detach().cpu() for master in self._masters()]
        states = [{k: v.cpu() for k, v in inner.state.get(m, {}).items()} for m in self._masters()]
        write_state(
            {"masters": masters, "states": states},
            folder,
            rank=self._rank,
            layout=self._layout,
            optimizer_step=self._steps_done,
        )

    @property
    def _layout(self) -> Layout:
        return Layout(world_size=self._world_size, zero_stage=self._stage, dtype=self._config.model.dtype)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote: training continues bit for bit.

        Raises:
            ValueError: a file is missing or damaged, or was written by another number of ranks, stage or precision.
        """
        state, optimizer_step = read_state(folder, rank=self._rank, layout=self._layout)
        masters = self._masters()
        if [m.numel() for m in masters] != [m.numel() for m in state["masters"]]:
            raise ValueError(f"{folder}: the checkpoint belongs to another model than {self._model_path}")
        inner = self._engine.optimizer.optimizer
        with torch.no_grad():
            for master, saved, saved_state in zip(masters, state["masters"], state["states"], strict=True):
                master.data.copy_(saved)
                inner.state[master] = {
                    key: value.clone() if value.dim() == 0 else value.clone().to(master.device) for key, value in saved_state.items()
                }
        zero.spread_masters(self._engine.optimizer, stage=self._stage)
        self._steps_done = optimizer_step

    def _masters(self) -> list[Tensor]:
        return zero.masters(self._engine.optimizer, stage=self._stage)

    def close(self) -> None:
        """Release the engine and leave the process group."""
        for engine in (self._engine, self._reference):
            if engine is not None:
                engine.destroy()
        zero.leave()

    def _make_engine(self, *, stage: int, train: bool) -> Any:
        """The policy under ZeRO, or the frozen reference. Under stage 3 no rank ever holds the whole model."""
        config, learner = self._config.model, self._config.learner
        whole = stage != 3
        model = (load_model if whole else empty_model)(self._model_path, dtype=config.dtype).requires_grad_(train)
        policy = Policy(model, chunk=learner.head_chunk_tokens, checkpointing=learner.activation_checkpointing, sequence=self._sequence)
        if not whole:
            files = WeightFiles(self._model_path)
            zero.partition(policy, lambda name, tensor: files.fill(Policy.hf_name(name), tensor), learner=learner, dtype=self._dtype)
        return zero.make_engine(policy, learner=learner, stage=stage, dtype=self._dtype, train=train)
