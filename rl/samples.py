"""From a finished group to training samples: tokens in, tokens out, nothing is tokenized again."""

from collections.abc import Sequence

import numpy as np

from rl.advantage import GroupAdvantages
from rl.records import RolloutGroup, TrainSample, Turn, unbroken


def samples_of(groups: Sequence[RolloutGroup], advantages: Sequence[GroupAdvantages]) -> tuple[TrainSample, ...]:
    """Samples of all groups, in their order."""
    return tuple(sample for group, own in zip(groups, advantages, strict=True) for sample in to_samples(group, own))


def to_samples(group: RolloutGroup, advantages: GroupAdvantages) -> list[TrainSample]:
    """Samples of the rollouts that have an advantage and sampled at least one token, in the group's order; one a rollout, and one
    more for each time that the chat template made it start anew.

    A group without any non-zero advantage gives none: there is nothing to learn from. In other groups rollouts of
    advantage 0 stay, because token-mean objectives count their tokens; `make_batches` leaves them out of the rows.
    """
    if not np.any(np.nan_to_num(advantages.values_G)):
        return []
    pairs = zip(group.rollouts, advantages.values_G, strict=True)
    return [
        to_sample(turns, rollout_id=rollout.rollout_id, part=part, group_index=group.index, advantage=float(value))
        for rollout, value in pairs
        if not np.isnan(value)
        for part, turns in enumerate(unbroken(rollout.turns))
        if any(len(turn.completion.token_ids_T) for turn in turns)
    ]


def to_sample(turns: Sequence[Turn], *, rollout_id: str, part: int, group_index: int, advantage: float) -> TrainSample:
    """A run of turns joined: context tokens masked out, sampled tokens masked in.

    Raises ValueError when the first turn has no context: nothing would predict the first sampled token.
    """
    first = turns[0]
    if len(first.context_ids_P) == 0:
        raise ValueError(f"rollout {rollout_id} has an empty prompt; render at least one token before the first turn")
    ids, masks, logprobs, versions = [], [], [], []
    for turn in turns:
        n_context, completion = len(turn.context_ids_P), turn.completion
        ids += [turn.context_ids_P, completion.token_ids_T]
        masks += [np.zeros(n_context, dtype=bool), np.ones(len(completion.token_ids_T), dtype=bool)]
        logprobs += [np.zeros(n_context, dtype=np.float32), completion.logprobs_T]
        versions += [np.full(n_context, -1, dtype=np.int32), completion.versions_T]
    return TrainSample(
        rollout_id=rollout_id,
        part=part,
        group_index=group_index,
        token_ids_T=np.concatenate(ids).astype(np.int32, copy=False),
        agent_mask_T=np.concatenate(masks),
        behaviour_logprobs_T=np.concatenate(logprobs).astype(np.float32, copy=False),
        versions_T=np.concatenate(versions).astype(np.int32, copy=False),
        advantage=advantage,
        prompt_len=len(first.context_ids_P),
    )
