"""The same tensors through TRL's own trainers: advantages, loss and gradient agree within 1e-5.

The numbers come from TRL's code, called on a stand-in for the trainer that only holds settings and hands out tensors.
"""

import importlib
import logging
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.schema import ObjectiveConfig
from rl.advantage import advantages
from rl.batch import token_weights
from rl.loss import LossInputs, make_objective
from tests.test_advantage import group_of

logging.getLogger("trl").setLevel(logging.ERROR)
trl = pytest.importorskip("trl")

B, T, MAX_TOKENS = 6, 9, 16


class Accelerator:
    """One process."""

    device = torch.device("cpu")
    num_processes = 1
    process_index = 0

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    gather_for_metrics = gather

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


class Case:
    """Random padded tensors of one batch; the mask has a hole in every row, like a tool result."""

    def __init__(self, *, seed: int, spread: float) -> None:
        generator = torch.Generator().manual_seed(seed)

        def noise(scale: float) -> Tensor:
            return scale * torch.randn(B, T, generator=generator)

        self.lengths_B = torch.randint(2, T + 1, (B,), generator=generator)
        self.mask_BT = (torch.arange(T) < self.lengths_B[:, None]).long()
        self.old_BT = -torch.rand(B, T, generator=generator) * 3
        self.logprobs_BT = (self.old_BT + noise(spread)).requires_grad_()
        self.behaviour_BT = self.old_BT + noise(0.8)
        self.reference_BT = self.old_BT + noise(0.3)
        self.advantages_B = torch.randn(B, generator=generator)

    def ours(self, config: ObjectiveConfig) -> tuple[float, Tensor]:
        """Loss and gradient[B, T] of this project."""
        keep = self.mask_BT.bool()
        sample_N = torch.arange(B)[:, None].expand(B, T)[keep]
        counts = self.mask_BT.sum(1).numpy()
        weights_B = token_weights(config, counts, n_rollouts=B, n_tokens=int(counts.sum()), max_tokens=MAX_TOKENS)
        old_N = self.old_BT[keep]
        capped = config.importance_cap is not None
        output = make_objective(config)(
            LossInputs(
                logprobs_N=self.logprobs_BT[keep],
                behaviour_logprobs_N=self.behaviour_BT[keep] if capped else old_N,
                old_logprobs_N=old_N if capped else None,
                reference_logprobs_N=self.reference_BT[keep],
                advantages_N=self.advantages_B[sample_N],
                weights_N=torch.tensor(weights_B, dtype=torch.float32)[sample_N],
                sample_N=sample_N,
                n_samples=B,
            )
        )
        return output.loss.item(), torch.autograd.grad(output.loss, self.logprobs_BT)[0]

    def inputs(self) -> dict[str, Tensor]:
        return {
            "prompt_ids": torch.ones(B, 2, dtype=torch.long),
            "prompt_mask": torch.ones(B, 2, dtype=torch.long),
            "completion_ids": torch.ones(B, T, dtype=torch.long),
            "completion_mask": self.mask_BT,
            "advantages": self.advantages_B,
            "num_items_in_batch": self.mask_BT.sum(),
        }

    def trainer(self, **settings: Any) -> SimpleNamespace:
        """What TRL's `_compute_loss` reads of its trainer."""
        return SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *args, **kwargs: (self.logprobs_BT, torch.zeros(B, T), None),
            accelerator=Accelerator(),
            model=SimpleNamespace(training=True),
            args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
            current_gradient_accumulation_steps=1,
            aux_loss_enabled=False,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            _entropy_bonus_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            **settings,
        )

    def grpo(
        self, loss_type: str, *, low: float, high: float, level: str = "token", beta: float = 0.0, cap: float | None = None
    ) -> tuple[float, Tensor]:
        """Loss and gradient[B, T] of TRL's GRPOTrainer."""
        trainer = self.trainer(
            loss_type=loss_type,
            importance_sampling_level=level,
            epsilon_low=low,
            epsilon_high=high,
            beta=beta,
            max_completion_length=MAX_TOKENS,
            use_vllm=cap is not None,
            vllm_importance_sampling_correction=cap is not None,
        )
        inputs = {**self.inputs(), "old_per_token_logps": self.old_BT, "ref_per_token_logps": self.reference_BT}
        if cap is not None:
            # TRL's token_truncate mode computes this in its generation step.
            inputs["importance_sampling_ratio"] = (self.old_BT - self.behaviour_BT).exp().clamp(max=cap)
        loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
        return loss.item(), torch.autograd.grad(loss, self.logprobs_BT)[0]

    def rloo(self, *, epsilon: float) -> tuple[float, Tensor]:
        """Loss and gradient[B, T] of TRL's RLOOTrainer."""
        trainer = self.trainer(epsilon_low=epsilon, epsilon_high=epsilon)
        inputs = {**self.inputs(), "old_logps": (self.old_BT * self.mask_BT).sum(1)}
        loss = trl.RLOOTrainer._compute_loss(trainer, None, inputs)
        return loss.item(), torch.autograd.grad(loss, self.logprobs_BT)[0]


def agree(ours: tuple[float, Tensor], theirs: tuple[float, Tensor]) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=0)
    assert theirs[1].abs().max() > 1e-3, "the comparison must have something to compare"


PAIRS: dict[str, Callable[[Case], tuple[float, Tensor]]] = {
    "grpo": lambda case: case.grpo("grpo", low=0.2, high=0.2),
    "dr_grpo": lambda case: case.grpo("dr_grpo", low=0.2, high=0.2),
    "dapo": lambda case: case.grpo("dapo", low=0.2, high=0.28),
    "reinforce_pp": lambda case: case.grpo("bnpo", low=0.2, high=0.2),
    "cwm": lambda case: case.grpo("dr_grpo", low=0.2, high=0.25),
    "gspo": lambda case: case.grpo("grpo", low=3e-4, high=4e-4, level="sequence"),
    "cispo": lambda case: case.grpo("cispo", low=0.2, high=5.0),
    "rloo": lambda case: case.rloo(epsilon=0.2),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradient(name: str, seed: int) -> None:
    spread = {"gspo": 1e-3, "rloo": 0.08, "cispo": 1.5}.get(name, 0.3)
    case = Case(seed=seed, spread=spread)
    agree(case.ours(ObjectiveConfig(name=name)), PAIRS[name](case))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "cispo", "gspo"])
def test_kl_and_truncated_importance_weights(name: str, seed: int) -> None:
    case = Case(seed=seed, spread=1e-3 if name == "gspo" else 0.3)
    settings = {
        "grpo": ("grpo", 0.2, 0.2, "token"),
        "dr_grpo": ("dr_grpo", 0.2, 0.2, "token"),
        "dapo": ("dapo", 0.2, 0.28, "token"),
        "cispo": ("cispo", 0.2, 5.0, "token"),
        "gspo": ("grpo", 3e-4, 4e-4, "sequence"),
    }
    loss_type, low, high, level = settings[name]
    ours = case.ours(ObjectiveConfig(name=name, kl_coef=0.05, importance_cap=1.5))  # type: ignore[arg-type]
    agree(ours, case.grpo(loss_type, low=low, high=high, level=level, beta=0.05, cap=1.5))


def generation_trainer(rewards: Tensor, group_size: int, **settings: Any) -> SimpleNamespace:
    """What TRL's `_generate_and_score_completions` reads of its trainer, with given rewards."""
    n = len(rewards)
    return SimpleNamespace(
        accelerator=Accelerator(),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            per_device_train_batch_size=n,
            gradient_checkpointing_kwargs=None,
            gradient_checkpointing=False,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
        ),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        eos_token_ids=[1],
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        environment_factories=None,
        tools=None,
        environments=None,
        num_generations=group_size,
        num_iterations=1,
        beta=0.0,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        reward_weights=torch.ones(1),
        reward_func_names=["reward"],
        reward_funcs=[None],
        _calculate_rewards=lambda *args: rewards[:, None],
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (torch.zeros(n, 2), None, None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _logs={"prompt": [], "completion": [], "rewards": defaultdict(list), "advantages": [], "extra": defaultdict(list)},
        _pending_extra_logs={},
        _pending_metrics={},
        **settings,
    )


@pytest.mark.parametrize(("name", "scale"), [("grpo", "group"), ("dr_grpo", "none"), ("rloo", None)])
@pytest.mark.parametrize("seed", range(3))
def test_advantages(name: str, scale: str | None, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of four with one reward missing in the first."""
    rng = np.random.default_rng(seed)
    rewards = rng.choice([-1.0, 0.0, 0.3, 1.0], size=(3, 4))
    rewards[0, 2] = np.nan
    flat = torch.tensor(rewards.reshape(-1), dtype=torch.float32)
    prompt_ids, completion_ids = [[1]] * 12, [[1, 1]] * 12
    if name == "rloo":
        owner = trl.RLOOTrainer
        generated: tuple[Any, ...] = (prompt_ids, completion_ids, ["c"] * 12)
        settings: dict[str, Any] = {"reward_clip_range": None, "normalize_advantages": False}
    else:
        owner = trl.GRPOTrainer
        generated = (prompt_ids, completion_ids, None, ["c"] * 12, None, {}, None, None)
        settings = {"multi_objective_aggregation": "sum_then_normalize", "scale_rewards": scale}
    trainer = generation_trainer(flat, 4, _generate=lambda prompts: generated, **settings)
    module = importlib.import_module(owner.__module__)
    monkeypatch.setattr(module, "gather_object", lambda values: values)
    monkeypatch.setattr(module, "gather", lambda values: values, raising=False)
    monkeypatch.setattr(module, "disable_gradient_checkpointing", lambda *args: torch.no_grad())
    method = getattr(owner._generate_and_score_completions, "__wrapped__", owner._generate_and_score_completions)
    theirs = method(trainer, [{"prompt": "p"}] * 12)["advantages"]
    groups = [group_of([None if np.isnan(r) else float(r) for r in row], [2] * 4, index=i) for i, row in enumerate(rewards)]
    ours = np.concatenate([result.values_G for result in advantages(ObjectiveConfig(name=name), groups, max_tokens=9)])  # type: ignore[arg-type]
    # TRL gives 0 where there is no reward; here there is no advantage at all.
    assert np.nan_to_num(ours) == pytest.approx(theirs.numpy(), abs=1e-5)
    assert np.abs(theirs.numpy()).max() > 0.1
