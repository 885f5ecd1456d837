"""Rollouts to samples: what was sampled is what is trained on, token for token."""

from dataclasses import replace

import numpy as np
import pytest

from configs.schema import ObjectiveConfig
from environments.records import StopReason
from rl.advantage import GroupAdvantages, advantages
from rl.records import Completion, Turn
from rl.samples import to_sample, to_samples
from tests.fakes import make_group


def turn(context: list[int], ids: list[int], logprobs: list[float], versions: list[int]) -> Turn:
    completion = Completion(
        token_ids_T=np.array(ids, np.int32),
        logprobs_T=np.array(logprobs, np.float32),
        versions_T=np.array(versions, np.int32),
        stop_reason=StopReason.STOP_TOKEN,
    )
    return Turn(context_ids_P=np.array(context, np.int32), completion=completion, text="", started=0.0, ended=1.0)


def test_turns_join_with_context_masked_out_and_everything_aligned() -> None:
    turns = (turn([1, 2, 3], [10, 11], [-0.1, -0.2], [4, 4]), turn([7, 8], [12, 13, 14], [-0.3, -0.4, -0.5], [4, 5, 5]))
    sample = to_sample(turns, rollout_id="a-0", part=0, group_index=6, advantage=0.5)
    assert sample.token_ids_T.tolist() == [1, 2, 3, 10, 11, 7, 8, 12, 13, 14]
    assert sample.agent_mask_T.tolist() == [False] * 3 + [True] * 2 + [False] * 2 + [True] * 3
    assert sample.behaviour_logprobs_T == pytest.approx([0, 0, 0, -0.1, -0.2, 0, 0, -0.3, -0.4, -0.5])
    assert sample.versions_T.tolist() == [-1, -1, -1, 4, 4, -1, -1, 4, 5, 5]
    assert (sample.rollout_id, sample.group_index, sample.advantage, sample.prompt_len) == ("a-0", 6, 0.5, 3)
    arrays = (sample.token_ids_T, sample.agent_mask_T, sample.behaviour_logprobs_T, sample.versions_T)
    assert [array.dtype.name for array in arrays] == ["int32", "bool", "float32", "int32"]


def test_only_rollouts_with_an_advantage_and_tokens_become_samples() -> None:
    group = make_group(3, rewards=(1.0, None, -1.0, -1.0))
    silent = replace(group.rollouts[3], turns=(turn([1], [], [], []),))
    group = replace(group, rollouts=(*group.rollouts[:3], silent))
    result = advantages(ObjectiveConfig(name="dr_grpo"), [group], max_tokens=9)[0]
    samples = to_samples(group, result)
    assert [sample.rollout_id for sample in samples] == ["00000003-0", "00000003-2"]
    assert [sample.advantage for sample in samples] == pytest.approx([4 / 3, -2 / 3])


def test_a_group_without_signal_gives_nothing_but_a_zero_among_others_stays() -> None:
    group = make_group(rewards=(1.0, 0.0, -1.0))
    assert to_samples(group, GroupAdvantages(values_G=np.array([0.0, np.nan, 0.0]), reasons=(None,) * 3)) == []
    kept = to_samples(group, GroupAdvantages(values_G=np.array([1.0, 0.0, -1.0]), reasons=(None,) * 3))
    assert [sample.advantage for sample in kept] == [1.0, 0.0, -1.0]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="rollout a-0 has an empty prompt"):
        to_sample((turn([], [1], [-1.0], [0]),), rollout_id="a-0", part=0, group_index=0, advantage=1.0)


def test_a_turn_that_starts_anew_starts_a_sample_with_the_same_advantage() -> None:
    group = make_group(3, rewards=(1.0, -1.0))
    first = turn([1, 2], [10, 11], [-0.1, -0.2], [4, 4])
    anew = replace(turn([1, 2, 20, 7], [12], [-0.3], [5]), restarts=True)
    after = turn([8], [13], [-0.4], [5])
    silent = replace(turn([1, 2, 30], [], [], []), restarts=True)
    group = replace(group, rollouts=(replace(group.rollouts[0], turns=(first, anew, after, silent)), group.rollouts[1]))
    samples = to_samples(group, GroupAdvantages(values_G=np.array([0.5, -0.5]), reasons=(None,) * 2))
    assert [(sample.rollout_id, sample.part, sample.advantage) for sample in samples] == [
        ("00000003-0", 0, 0.5),
        ("00000003-0", 1, 0.5),
        ("00000003-1", 0, -0.5),
    ]
    assert [sample.token_ids_T.tolist() for sample in samples[:2]] == [[1, 2, 10, 11], [1, 2, 20, 7, 12, 8, 13]]
    assert samples[1].agent_mask_T.tolist() == [False] * 4 + [True, False, True] and samples[1].prompt_len == 4
