"""One ZeRO rank: turns batches into optimizer steps. The only file that knows DeepSpeed.

    Batch ─► micro-batches ─► Policy (logprobs) ─► Objective (loss) ─► backward, gradients partitioned ─► AdamW on this rank's
    float32 masters ─► partitions ─► buckets() for the generators, save() for a resume, export() for the world

It does not choose what to train on, assign advantages or move weights to generators.
"""

import contextlib
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from configs.schema import Config, LearnerConfig
from rl.errors import RunFailed
from rl.hf_export import ShardWriter, copy_tokenizer
from rl.host_memory import keep_freed_memory
from rl.loss import LossInputs, make_objective
from rl.model import load_model
from rl.policy import Policy
from rl.rank_state import Layout, read_state, write_state
from rl.records import Batch, MicroBatch, StepStats, WeightBucket
from rl.step_stats import StepTotals
from rl.weight_sender import WeightSender
from rl.weight_sync import Piece

ON_GPU = torch.cuda.is_available()
os.environ.setdefault("DS_ACCELERATOR", "cuda" if ON_GPU else "cpu")  # deepspeed decides at its import

import deepspeed  # noqa: E402

_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_NO_CLIP = 1e30
"""Stands for "no clipping": DeepSpeed checks the gradient norm for infinities and NaN only when it clips."""


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

    def __init__(self, config: Config, *, model_path: Path, rank: int, world_size: int, init_method: str, threads: int) -> None:
        """
        Args:
            model_path: folder with a Hugging Face checkpoint.
            init_method: where the ranks meet, `tcp://127.0.0.1:PORT` or `file:///path`.
            threads: CPU threads of this rank.
        """
        _quiet()
        torch.set_num_threads(threads)
        if not ON_GPU:
            keep_freed_memory()
        self._config = config
        self._rank, self._world_size = rank, world_size
        self._model_path = model_path
        self._steps_done = 0
        self._total_steps = config.run.steps * config.learner.optimizer_steps_per_batch
        self._dtype = torch.float32 if config.model.dtype == "float32" else torch.bfloat16
        # DeepSpeed's stage 1 applies non-finite gradients in bf16; stage 2 partitions more and checks them.
        stage = config.learner.zero_stage
        self._stage = 2 if stage == 1 and self._dtype == torch.bfloat16 else stage
        _join(rank=rank, world_size=world_size, init_method=init_method)
        self._engine = self._make_engine(_make_policy(config, model_path), train=True)
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
            self._reference = self._make_engine(_make_policy(config, model_path).requires_grad_(False), train=False)
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
            for micro_batch, old_N in zip(batch.micro_batches, old_of_batch, strict=True):
                self._accumulate(micro_batch, old_N=old_N, totals=totals)
            rate = learning_rate(self._config.learner, step=self._steps_done, total=self._total_steps)
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
        """Rollout ids of all ranks, in rank order."""
        ids: list[Sequence[str]] = [()] * self._world_size
        distributed.all_gather_object(ids, tuple(rollout_ids))
        return tuple(rollout_id for own in ids for rollout_id in own)

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
        """Stage 3: what ZeRO left on this rank, without its padding. Stages 1 and 2: an equal share of each full parameter."""
        for name, parameter in self._policy.named_parameters():
            if self._stage == 3:
                zero: Any = parameter
                size, share, values = zero.ds_numel, zero.ds_tensor.ds_numel, zero.ds_tensor.data
            else:
                size, values = parameter.numel(), parameter.data.view(-1)
                share = -(-size // self._world_size)
            start = min(self._rank * share, size)
            count = min(share, size - start)
            own = values[:count] if self._stage == 3 else values[start : start + count]
            yield Piece(name=Policy.hf_name(name), start=start, values=own)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face checkpoint (safetensors, configuration, tokenizer). All ranks take part, rank 0 writes."""
        writer = ShardWriter(folder) if self._rank == 0 else None
        if writer is not None:
            self._policy.config.save_pretrained(folder)
            copy_tokenizer(self._model_path, folder)
        for name, parameter in self._policy.named_parameters():
            with self._gathered(parameter):
                if writer is not None:
                    writer.add(Policy.hf_name(name), parameter.data.detach().cpu().clone())
        if writer is not None:
            writer.close()
        if self._world_size > 1:
            distributed.barrier()

    def _gathered(self, parameter: torch.nn.Parameter) -> contextlib.AbstractContextManager[Any]:
        gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3)
        return gathered

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
        self._spread_masters()
        self._steps_done = optimizer_step

    def _masters(self) -> list[Tensor]:
        """The flat float32 pieces that this rank's optimizer works on."""
        optimizer = self._engine.optimizer
        return list(optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups)

    def _spread_masters(self) -> None:
        """Compute the weights of all ranks from the masters, as the optimizer step does after its update."""
        optimizer = self._engine.optimizer
        if self._stage == 3:
            for i in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(i)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
            return
        for shards, master, group in zip(
            optimizer.parallel_partitioned_bit16_groups, self._masters(), optimizer.real_dp_process_group, strict=True
        ):
            shards[distributed.get_rank(group)].data.copy_(master.data)
        deepspeed.runtime.utils.all_gather_dp_groups(
            groups_flat=optimizer.bit16_groups_flat,
            partitioned_param_groups=optimizer.parallel_partitioned_bit16_groups,
            dp_process_group=optimizer.real_dp_process_group,
            start_alignment_factor=optimizer.nccl_start_alignment_factor,
            allgather_bucket_size=optimizer.allgather_bucket_size,
        )

    def close(self) -> None:
        """Release the engine and leave the process group."""
        for engine in (self._engine, self._reference):
            if engine is not None:
                engine.destroy()
        if distributed.is_initialized():
            deepspeed.comm.destroy_process_group()

    def _make_engine(self, policy: Policy, *, train: bool) -> Any:
        """The policy under ZeRO: with AdamW, or (the frozen reference) only partitioned."""
        learner = self._config.learner
        optimizer = None
        if train:
            optimizer = torch.optim.AdamW(
                policy.parameters(),
                lr=learner.learning_rate,
                betas=learner.betas,
                eps=learner.eps,
                weight_decay=learner.weight_decay,
                fused=True,
            )
        engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=optimizer,
            config=_engine_config(learner, stage=self._stage if train else 3, dtype=self._dtype, world_size=self._world_size),
            dist_init_required=False,
        )
        return engine


def _engine_config(learner: LearnerConfig, *, stage: int, dtype: torch.dtype, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own settings. Accumulation boundaries are the learner's: one `step()` applies all `backward()`s before it."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": ON_GPU,
        # On CPU the copy of each gradient into a bucket costs more than it saves.
        "contiguous_gradients": ON_GPU,
        "reduce_bucket_size": 50_000_000 if ON_GPU else 8_000_000,
        # Small sub-groups bound the float32 gradient copy and the moments that are live at a time.
        "sub_group_size": 100_000_000 if ON_GPU else 4_000_000,
    }
    if stage == 3 and world_size == 1 and not ON_GPU:
        # Alone, a rank has nobody to gather from: keep the parameters whole.
        zero |= {"stage3_param_persistence_threshold": 1 << 40, "stage3_model_persistence_threshold": 1 << 40}
    if learner.offload_optimizer and ON_GPU:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": learner.grad_clip or _NO_CLIP,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 1 << 40,
    }


def _make_policy(config: Config, model_path: Path) -> Policy:
    model = load_model(model_path, dtype=config.model.dtype)
    return Policy(model, chunk=config.learner.head_chunk_tokens, checkpointing=config.learner.activation_checkpointing)


def _join(*, rank: int, world_size: int, init_method: str) -> None:
    """Meet the other ranks."""
    # The shared-memory operator serves inference only; without this it is compiled (or loaded) at every start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["LOCAL_RANK"] = str(rank % max(1, torch.cuda.device_count()))
    deepspeed.init_distributed(
        dist_backend="nccl" if ON_GPU else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=_COLLECTIVE_TIMEOUT,
        init_method=init_method,
        dist_init_required=True,
        rank=rank,
        world_size=world_size,
    )


def _quiet() -> None:
    """DeepSpeed logs to standard output; keep its errors only. Its calls of collectives by their old names warn every time."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*")
    for name in ("DeepSpeed", "deepspeed"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        for handler in logger.handlers:
            handler.setLevel(logging.ERROR)
