"""Every policy-gradient objective, as a loss over the flat response tokens of a micro-batch.

An objective is three choices, one row of `_RECIPES` each:
  ratio      what the importance ratio is taken over: a token, or the whole sequence (sum or mean of log ratios)
  surrogate  what is done with it: PPO's pessimistic clip, or CISPO's clipped, detached weight
  clip       how far the ratio may move

The loss is sum over tokens of weights_N * token_loss_N. The weights carry the objective's aggregation and the global
denominator (see `rl.batch.token_weights`), so micro-batches and ranks simply add up. Advantages are `rl.advantage`'s.

Ratio: without `importance_cap` it is taken to the behaviour policy, whose logprobs came with the tokens (CWM). With it,
the ratio is taken to the learner's own logprobs before the update, and each token's loss is multiplied by
min(exp(old - behaviour), cap), detached: truncated importance sampling for the mismatch between engine and learner.

N response tokens, S samples of the micro-batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema import ObjectiveConfig

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to this before exp: e^20 is far outside every clip range and far inside float32."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossInputs:
    """What an objective sees of one micro-batch."""

    logprobs_N: Tensor
    """Learner logprobs of the response tokens, with gradient."""
    behaviour_logprobs_N: Tensor
    old_logprobs_N: Tensor | None
    """Learner logprobs before the first update of the batch; needed where `needs_old`."""
    reference_logprobs_N: Tensor | None
    """Logprobs of the frozen initial policy; needed where `needs_reference`."""
    advantages_N: Tensor
    weights_N: Tensor
    """Aggregation and global denominator."""
    sample_N: Tensor
    """int: index of the sample each token belongs to. All tokens of a sample are in one micro-batch."""
    n_samples: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossOutput:
    """What the learner needs of an objective."""

    loss: Tensor
    """Scalar, with gradient."""
    clipped_N: Tensor
    """bool[N]: tokens whose policy gradient was cut: set to zero by a clip, or scaled down by CISPO's bound."""


def token_ratio(log_ratio_N: Tensor, inputs: LossInputs) -> Tensor:
    """log pi_theta(token) - log pi_old(token)."""
    return log_ratio_N


def sequence_sum_ratio(log_ratio_N: Tensor, inputs: LossInputs) -> Tensor:
    """Log ratio of whole sequences, on each of their tokens."""
    totals_S = log_ratio_N.new_zeros(inputs.n_samples).index_add(0, inputs.sample_N, log_ratio_N)
    return totals_S[inputs.sample_N]


def sequence_mean_ratio(log_ratio_N: Tensor, inputs: LossInputs) -> Tensor:
    """Length-normalized log ratio of sequences (GSPO, equation 7), on each of their tokens."""
    counts_S = log_ratio_N.new_zeros(inputs.n_samples).index_add(0, inputs.sample_N, torch.ones_like(log_ratio_N))
    return sequence_sum_ratio(log_ratio_N, inputs) / counts_S[inputs.sample_N]


def clipped_surrogate(log_ratio_N: Tensor, inputs: LossInputs, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO's pessimistic bound (arXiv 1707.06347, equation 7)."""
    ratio_N, advantages_N = log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp(), inputs.advantages_N
    bounded_N = ratio_N.clamp(1.0 - low, 1.0 + high)
    loss_N = -torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N)
    too_low_N = (ratio_N < 1.0 - low) & (advantages_N < 0)
    too_high_N = (ratio_N > 1.0 + high) & (advantages_N > 0)
    return loss_N, too_low_N | too_high_N | (log_ratio_N.abs() > MAX_LOG_RATIO)


def clipped_weight(log_ratio_N: Tensor, inputs: LossInputs, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-stopgrad(clip(r, 1 - low, 1 + high)) A log pi: every token keeps a gradient (CISPO, equations 4 and 5)."""
    ratio_N = log_ratio_N.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    loss_N = -ratio_N.clamp(1.0 - low, 1.0 + high) * inputs.advantages_N * inputs.logprobs_N
    return loss_N, ratio_N > 1.0 + high


def k3(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Schulman's estimator of KL(policy || reference), never negative: exp(d) - d - 1 with d = reference - policy (GRPO, equation 4)."""
    difference_N = (reference_logprobs_N - logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return difference_N.exp() - difference_N - 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recipe:
    """One objective's choices and its published clip distances."""

    ratio: Callable[[Tensor, LossInputs], Tensor] = token_ratio
    surrogate: Callable[[Tensor, LossInputs, float, float], tuple[Tensor, Tensor]] = clipped_surrogate
    clip_low: float = 0.2
    clip_high: float = 0.2


_RECIPES: dict[str, _Recipe] = {
    # Code World Model, arXiv 2510.02387: token ratio to the behaviour policy, asymmetric clip, no KL, constant denominator.
    "cwm": _Recipe(clip_high=0.25),
    # DeepSeekMath, arXiv 2402.03300, equation 3: PPO clip on tokens, mean over a response's tokens, then over responses.
    "grpo": _Recipe(),
    # Understanding R1-Zero-like training, arXiv 2503.20783, section 3.2: GRPO without its length and std terms.
    "dr_grpo": _Recipe(),
    # DAPO, arXiv 2503.14476, equation 8: clip-higher, mean over all tokens of the batch.
    "dapo": _Recipe(clip_high=0.28),
    # Back to Basics, arXiv 2402.14740, equation 6: a response is one action. The paper takes the plain REINFORCE gradient
    # at ratio 1; off-policy TRL's RLOOTrainer clips the sequence ratio, and so does this.
    "rloo": _Recipe(ratio=sequence_sum_ratio),
    # REINFORCE++, arXiv 2501.03262: PPO clip on tokens, token mean, advantages normalized over the batch. The paper puts
    # its KL into the reward; here kl_coef adds k3 to the loss as for the other objectives.
    "reinforce_pp": _Recipe(),
    # GSPO, arXiv 2507.18071, equations 5 and 7, clip of section 5.1: length-normalized sequence ratio.
    "gspo": _Recipe(ratio=sequence_mean_ratio, clip_low=3e-4, clip_high=4e-4),
    # MiniMax-M1, arXiv 2506.13585, equations 4 and 5. No lower bound, as there; the paper does not publish the upper one: 5
    # is the middle of what ScaleRL (arXiv 2510.13786) found equally good, and what TRL recommends.
    "cispo": _Recipe(surrogate=clipped_weight, clip_low=1.0, clip_high=4.0),
}


class Objective:
    """One configured objective."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self._recipe = _RECIPES[config.name]
        self._low = self._recipe.clip_low if config.clip_low is None else config.clip_low
        self._high = self._recipe.clip_high if config.clip_high is None else config.clip_high
        self._kl_coef = config.kl_coef
        self._importance_cap = config.importance_cap

    @property
    def needs_old(self) -> bool:
        """Whether the learner must compute its logprobs before the first update of a batch."""
        return self._importance_cap is not None

    @property
    def needs_reference(self) -> bool:
        """Whether the frozen initial policy's logprobs are needed."""
        return self._kl_coef > 0.0

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Loss of one micro-batch; add up over micro-batches. Raises ValueError when needed logprobs are missing."""
        old_N = self._old_logprobs(inputs)
        log_ratio_N = self._recipe.ratio(inputs.logprobs_N - old_N, inputs)
        loss_N, clipped_N = self._recipe.surrogate(log_ratio_N, inputs, self._low, self._high)
        if self._importance_cap is not None:
            mismatch_N = (old_N - inputs.behaviour_logprobs_N).clamp(-MAX_LOG_RATIO, math.log(self._importance_cap))
            loss_N = loss_N * mismatch_N.exp()
        if self.needs_reference:
            if inputs.reference_logprobs_N is None:
                raise ValueError(
                    "objective.kl_coef is set, but no reference logprobs were given: load the reference policy, or set kl_coef=0"
                )
            loss_N = loss_N + self._kl_coef * k3(inputs.logprobs_N, inputs.reference_logprobs_N.detach())
        return LossOutput(loss=(inputs.weights_N * loss_N).sum(), clipped_N=clipped_N.detach())

    def _old_logprobs(self, inputs: LossInputs) -> Tensor:
        """What the ratio is taken to."""
        if self._importance_cap is None:
            return inputs.behaviour_logprobs_N
        if inputs.old_logprobs_N is None:
            raise ValueError(
                "objective.importance_cap is set, but no old learner logprobs were given: compute them, or set importance_cap=null"
            )
        return inputs.old_logprobs_N.detach()


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that a configuration names."""
    return Objective(config)
