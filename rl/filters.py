"""The two doors of the buffer, as pure functions: which groups may wait for the learner, and which are too old to train on.

put door: a finished group is offered. get door: the learner asks for a batch. Both return None (accepted) or the
`DropReason` that is counted. A single rollout that must not be trained on (gibberish, overlong) does not cost its group:
`unfit_rollout` names it, `rl.advantage.advantages` leaves it out, and the put door rejects the group only when too few remain.
"""

import math
from collections.abc import Callable
from enum import StrEnum

import numpy as np

from configs.schema import Config, FilterConfig
from environments.records import StopReason
from rewards.score import ScoreStatus
from rl.records import Rollout, RolloutGroup

_OUT_OF_TOKENS = (StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL)


class DropReason(StrEnum):
    """Why a group or a rollout is not trained on; the value is what logs and counters show."""

    INFRA = "infra"
    """No reward: the infrastructure failed."""
    UNGRADABLE = "ungradable"
    """No reward: the reference cannot be used."""
    TOO_FEW_GRADED = "too_few_graded"
    """Fewer graded rollouts than a baseline needs."""
    ZERO_VARIANCE = "zero_variance"
    GIBBERISH = "gibberish"
    OVERLONG = "overlong"
    TOO_HARD = "solve_rate_low"
    TOO_EASY = "solve_rate_high"
    STALE = "stale"

    __repr__ = str.__repr__
    """Counters of reasons are shown to people as they are."""


def least_graded(objective: str) -> int:
    """Graded rollouts a group needs: two for a group baseline, one for REINFORCE++, whose baseline is the batch's."""
    return 1 if objective == "reinforce_pp" else 2


def ungraded(rollout: Rollout) -> DropReason | None:
    """Why a rollout carries no reward; None when it does."""
    if rollout.score.reward is not None:
        return None
    return DropReason.INFRA if rollout.score.status is ScoreStatus.INFRA else DropReason.UNGRADABLE


def is_gibberish(rollout: Rollout, *, vocab_size: int, min_id: int) -> bool:
    """CWM's rule (arXiv 2510.02387): a rare token (id > min_id) that was sampled below half of a nat-scaled uniform chance,
    logprob < -ln(vocab_size) - 2. The tokenizer's late merges are rare, so such a token in such a place is noise."""
    limit = -math.log(vocab_size) - 2.0
    completions = (turn.completion for turn in rollout.turns)
    return any(bool(np.any((c.token_ids_T > min_id) & (c.logprobs_T < limit))) for c in completions)


def is_overlong(rollout: Rollout) -> bool:
    """Whether the rollout ran out of tokens, so that its reward judges a torso (DAPO, arXiv 2503.14476, section 3.4)."""
    last = rollout.turns[-1].completion.stop_reason if rollout.turns else None
    return rollout.stop_reason in _OUT_OF_TOKENS or last in _OUT_OF_TOKENS


def is_stale(rollout: Rollout, *, version: int, max_staleness: int) -> bool:
    """CWM's rule: the rollout's most recent tokens come from a policy more than `max_staleness` versions behind."""
    return rollout.policy_max >= 0 and version - rollout.policy_max > max_staleness


def unfit_rollout(filters: FilterConfig, *, vocab_size: int) -> Callable[[Rollout], DropReason | None]:
    """The per-rollout filters: None for a rollout that may be trained on."""

    def unfit(rollout: Rollout) -> DropReason | None:
        if filters.gibberish and is_gibberish(rollout, vocab_size=vocab_size, min_id=filters.gibberish_min_id):
            return DropReason.GIBBERISH
        if filters.overlong and is_overlong(rollout):
            return DropReason.OVERLONG
        return None

    return unfit


def put_door(config: Config, *, vocab_size: int) -> Callable[[RolloutGroup], DropReason | None]:
    """The door for finished groups.

    Solve rate and variance are taken over graded rollouts, before the per-rollout filters: they say something about the
    task, not about what is trained on. Solved means status ok.
    """
    filters, least = config.filters, least_graded(config.objective.name)
    unfit = unfit_rollout(filters, vocab_size=vocab_size)

    def door(group: RolloutGroup) -> DropReason | None:
        graded = [rollout for rollout in group.rollouts if ungraded(rollout) is None]
        if len(graded) < least:
            return DropReason.TOO_FEW_GRADED
        solve_rate = sum(rollout.score.status is ScoreStatus.OK for rollout in graded) / len(graded)
        if solve_rate < filters.min_solve_rate:
            return DropReason.TOO_HARD
        if solve_rate > filters.max_solve_rate:
            return DropReason.TOO_EASY
        reasons = [reason for rollout in graded if (reason := unfit(rollout)) is not None]
        if len(graded) - len(reasons) < least:
            return reasons[0]
        if filters.zero_variance == "resample" and len({rollout.score.reward for rollout in graded if unfit(rollout) is None}) == 1:
            return DropReason.ZERO_VARIANCE
        return None

    return door


def get_door(config: Config) -> Callable[[RolloutGroup, int], DropReason | None]:
    """The door for groups about to be trained on at a policy version.

    One stale rollout rejects its group: a baseline over what is left would favour quick rollouts. Admission already bounds
    the age of a group, so this door closes only on groups that waited for others.
    """

    def door(group: RolloutGroup, version: int) -> DropReason | None:
        graded = (rollout for rollout in group.rollouts if ungraded(rollout) is None)
        stale = any(is_stale(rollout, version=version, max_staleness=config.rollout.max_staleness) for rollout in graded)
        return DropReason.STALE if stale else None

    return door
