"""Advantages: how much better a rollout did than its baseline.

Each objective has one small function from rewards and lengths of the graded rollouts to advantages. Rollouts without a
reward (infrastructure failed, reference unusable) are left out of every baseline and get no advantage, which is not the
same as advantage 0: the former says nothing, the latter says "as expected".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import ObjectiveConfig
from rl.filters import DropReason, least_graded, ungraded
from rl.records import Rollout, RolloutGroup

_STD_EPS = 1e-4
"""Added to standard deviations; TRL's value."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupAdvantages:
    """Advantages of one group's rollouts, in their order."""

    values_G: np.ndarray
    """float64[G]; NaN where the rollout gets no advantage."""
    reasons: tuple[DropReason | None, ...]
    """Why a rollout gets no advantage; None where it has one."""


def advantages(
    objective: ObjectiveConfig,
    groups: Sequence[RolloutGroup],
    *,
    max_tokens: int,
    unfit: Callable[[Rollout], DropReason | None] = lambda rollout: None,
) -> tuple[GroupAdvantages, ...]:
    """Advantages of every group of a batch, in the groups' order.

    `unfit` (see `rl.filters.unfit_rollout`) leaves single rollouts out. `max_tokens` is the most tokens of a turn, for the
    overlong punishment. Raises ValueError when the punishment does not fit into it.
    """
    if objective.overlong_buffer > max_tokens:
        raise ValueError(f"objective.overlong_buffer is {objective.overlong_buffer}, more than sampling.max_tokens={max_tokens}: lower it")
    reasons = [[ungraded(rollout) or unfit(rollout) for rollout in group.rollouts] for group in groups]
    for of_group in reasons:
        if sum(reason is None for reason in of_group) < least_graded(objective.name):
            of_group[:] = [reason or DropReason.TOO_FEW_GRADED for reason in of_group]
    rewards = [_shaped_rewards(group, of_group, objective, max_tokens) for group, of_group in zip(groups, reasons, strict=True)]
    centre, scale = _batch_moments(rewards) if objective.name == "reinforce_pp" else (0.0, 1.0)
    results = []
    for group, of_group, rewards_K in zip(groups, reasons, rewards, strict=True):
        kept = np.array([reason is None for reason in of_group], dtype=bool)
        lengths_K = np.array([rollout.n_sampled for rollout in group.rollouts], dtype=np.float64)[kept]
        values_G = np.full(len(of_group), np.nan)
        if objective.name == "reinforce_pp":
            values_G[kept] = (rewards_K - centre) / scale
        elif len(rewards_K):
            values_G[kept] = _group_advantages(objective.name, rewards_K, lengths_K)
        results.append(GroupAdvantages(values_G=values_G, reasons=tuple(of_group)))
    return tuple(results)


def _group_advantages(name: str, rewards_K: np.ndarray, lengths_K: np.ndarray) -> np.ndarray:
    if np.ptp(rewards_K) == 0:
        # Rounding in a mean must not turn "all the same" into a gradient.
        return np.zeros_like(rewards_K)
    return _BASELINES[name](rewards_K, lengths_K)


def length_weighted(rewards_K: np.ndarray, lengths_K: np.ndarray) -> np.ndarray:
    """CWM (arXiv 2510.02387): R_i - sum(R L) / sum(L), not divided by sigma.

    With a constant denominator every token weighs the same, so the mean over tokens, not over rollouts, is the baseline
    that makes the summed advantage of a group zero.
    """
    if not lengths_K.any():
        return np.zeros_like(rewards_K)
    return rewards_K - (rewards_K * lengths_K).sum() / lengths_K.sum()


def standardized(rewards_K: np.ndarray, lengths_K: np.ndarray) -> np.ndarray:
    """GRPO (arXiv 2402.03300, section 4.1.2): (R_i - mean) / (std + 1e-4), the unbiased std that TRL takes."""
    return (rewards_K - rewards_K.mean()) / (rewards_K.std(ddof=1) + _STD_EPS)


def centred(rewards_K: np.ndarray, lengths_K: np.ndarray) -> np.ndarray:
    """Dr. GRPO (arXiv 2503.20783, section 3.2): R_i - mean; dividing by std overweights easy and hard questions."""
    return rewards_K - rewards_K.mean()


def leave_one_out(rewards_K: np.ndarray, lengths_K: np.ndarray) -> np.ndarray:
    """RLOO (arXiv 2402.14740, section 2.2): R_i minus the mean of the other rollouts' rewards."""
    return rewards_K - (rewards_K.sum() - rewards_K) / (len(rewards_K) - 1)


_BASELINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cwm": length_weighted,
    "grpo": standardized,
    "dr_grpo": centred,
    "dapo": standardized,
    "rloo": leave_one_out,
    "gspo": standardized,
    "cispo": standardized,
}


def _batch_moments(rewards: Sequence[np.ndarray]) -> tuple[float, float]:
    """REINFORCE++ (arXiv 2501.03262): mean and standard deviation over all graded rollouts of the batch."""
    rewards_K = np.concatenate([np.zeros(0), *rewards])
    if len(rewards_K) == 0 or np.ptp(rewards_K) == 0:
        return (float(rewards_K[0]) if len(rewards_K) else 0.0), 1.0
    return float(rewards_K.mean()), float(rewards_K.std()) + _STD_EPS


def _shaped_rewards(group: RolloutGroup, reasons: Sequence[DropReason | None], objective: ObjectiveConfig, max_tokens: int) -> np.ndarray:
    """float64[K]: rewards of the K rollouts without a reason, the overlong punishment added."""
    kept = [rollout for rollout, reason in zip(group.rollouts, reasons, strict=True) if reason is None]
    rewards_K = np.array([rollout.score.reward for rollout in kept], dtype=np.float64)
    if objective.overlong_buffer == 0:
        return rewards_K
    longest_K = np.array([max((len(turn.completion.token_ids_T) for turn in rollout.turns), default=0) for rollout in kept])
    return rewards_K + objective.overlong_penalty * soft_overlong(longest_K, max_tokens=max_tokens, buffer=objective.overlong_buffer)


def soft_overlong(lengths_K: np.ndarray, *, max_tokens: int, buffer: int) -> np.ndarray:
    """DAPO (arXiv 2503.14476, equation 13): 0 up to max_tokens - buffer, then linear down to -1 at max_tokens.

    `max_tokens` bounds a turn, so the length of an episode of several turns is that of its longest turn.
    """
    return np.clip((max_tokens - buffer - lengths_K) / buffer, -1.0, 0.0)
