"""The only file that knows DeepSpeed: how ranks meet, what ZeRO is set to, and what it keeps where.

A model under ZeRO-3 is never whole anywhere: it is built without storage, and each parameter exists only while it is cut up.
"""

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from configs.schema import LearnerConfig

ON_GPU = torch.cuda.is_available()
os.environ.setdefault("DS_ACCELERATOR", "cuda" if ON_GPU else "cpu")  # deepspeed decides at its import

import deepspeed  # noqa: E402
from deepspeed.runtime import compiler  # noqa: E402

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_NO_CLIP = 1e30
"""Stands for "no clipping": DeepSpeed checks the gradient norm for infinities and NaN only when it clips."""


def join(*, rank: int, world_size: int, init_method: str, timeout: timedelta = COLLECTIVE_TIMEOUT) -> None:
    """Meet the other ranks. `timeout`: of each collective."""
    _quiet()
    # The shared-memory operator serves inference only; without this it is compiled (or loaded) at every start, after all operators have
    # been tried out with a compiler.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    _import_muon()
    os.environ["LOCAL_RANK"] = str(rank % max(1, torch.cuda.device_count()))
    deepspeed.init_distributed(
        dist_backend="nccl" if ON_GPU else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        init_method=init_method,
        dist_init_required=True,
        rank=rank,
        world_size=world_size,
    )


def _import_muon() -> None:
    """DeepSpeed imports its Muon optimizer to ask whether it is the one in use, and that hands three functions to torch's compiler, which
    takes seconds to import. Nobody here uses Muon."""
    compile_functions = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_functions


def leave() -> None:
    """Leave the process group."""
    if distributed.is_initialized():
        deepspeed.comm.destroy_process_group()


def effective_stage(learner: LearnerConfig, dtype: torch.dtype) -> int:
    """DeepSpeed's stage 1 applies non-finite gradients in bf16; stage 2 partitions more and checks them."""
    return 2 if learner.zero_stage == 1 and dtype == torch.bfloat16 else learner.zero_stage


def partition(module: nn.Module, read: Callable[[str, Tensor], None], *, learner: LearnerConfig, dtype: torch.dtype) -> None:
    """Give a module on the meta device its weights, partitioned over all ranks: rank 0 reads, one parameter at a time exists.

    Args:
        read: fills the tensor, of the module's parameter of that name.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    settings = _settings(learner, stage=3, dtype=dtype, world_size=world_size)
    made: dict[int, nn.Parameter] = {}
    device = torch.device("cuda", torch.cuda.current_device()) if ON_GPU else torch.device("cpu")
    # All take turns in one buffer: blocks of many sizes would leave holes between the partitions that stay.
    buffer = torch.empty(max(parameter.numel() for parameter in module.parameters()), dtype=dtype, device=device)
    for path, owner in module.named_modules():
        for name, empty in list(owner.named_parameters(recurse=False)):
            if id(empty) not in made:  # tied weights are one parameter
                weight = nn.Parameter(buffer[: empty.numel()].view(empty.shape), requires_grad=empty.requires_grad)
                if rank == 0:
                    with torch.no_grad():
                        read(f"{path}.{name}" if path else name, weight.data)
                made[id(empty)] = weight
                # Sends rank 0's values to all, keeps each rank's share and lets the whole go.
                deepspeed.zero.Init(module=nn.ParameterList([weight]), config_dict_or_path=settings)
            owner.register_parameter(name, made[id(empty)])


def make_engine(policy: nn.Module, *, learner: LearnerConfig, stage: int, dtype: torch.dtype, train: bool) -> Any:
    """The policy under ZeRO: with AdamW, or (a frozen reference) only partitioned."""
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
    settings = _settings(learner, stage=stage, dtype=dtype, world_size=distributed.get_world_size())
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


def partitions(policy: nn.Module, *, stage: int) -> Iterator[tuple[str, int, Tensor]]:
    """What this rank holds of each parameter: name, first element, flat values. Nothing is gathered.

    Stage 3: what ZeRO left on this rank, without its padding. Stages 1 and 2: an equal share of each full parameter.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    for name, parameter in policy.named_parameters():
        if stage == 3:
            zero: Any = parameter
            size, share, values = zero.ds_numel, zero.ds_tensor.ds_numel, zero.ds_tensor.data
        else:
            size, values = parameter.numel(), parameter.data.view(-1)
            share = -(-size // world_size)
        start = min(rank * share, size)
        count = min(share, size - start)
        yield name, start, values[:count] if stage == 3 else values[start : start + count]


def shapes(policy: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all parameters, in order, partitioned or not."""
    return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in policy.named_parameters()}


def masters(optimizer: Any, *, stage: int) -> list[Tensor]:
    """The flat float32 pieces that this rank's optimizer works on."""
    return list(optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups)


def spread_masters(optimizer: Any, *, stage: int) -> None:
    """Compute the weights of all ranks from the masters, as the optimizer step does after its update."""
    if stage == 3:
        for i in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(i)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        return
    own = masters(optimizer, stage=stage)
    for shards, master, group in zip(optimizer.parallel_partitioned_bit16_groups, own, optimizer.real_dp_process_group, strict=True):
        shards[distributed.get_rank(group)].data.copy_(master.data)
    deepspeed.runtime.utils.all_gather_dp_groups(
        groups_flat=optimizer.bit16_groups_flat,
        partitioned_param_groups=optimizer.parallel_partitioned_bit16_groups,
        dp_process_group=optimizer.real_dp_process_group,
        start_alignment_factor=optimizer.nccl_start_alignment_factor,
        allgather_bucket_size=optimizer.allgather_bucket_size,
    )


def _settings(learner: LearnerConfig, *, stage: int, dtype: torch.dtype, world_size: int) -> dict[str, Any]:
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


def _quiet() -> None:
    """DeepSpeed logs to standard output; keep its errors only. Its calls of collectives by their old names warn every time."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*")
    for name in ("DeepSpeed", "deepspeed"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        for handler in logger.handlers:
            handler.setLevel(logging.ERROR)
