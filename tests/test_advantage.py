"""Baselines of every objective against numbers worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from configs.schema import ObjectiveConfig
from rewards.score import Score, ScoreStatus
from rl.advantage import advantages
from rl.filters import DropReason
from rl.records import RolloutGroup
from tests.fakes import make_group, make_rollout

OBJECTIVES = get_args(get_type_hints(ObjectiveConfig)["name"])
GROUP_BASELINES = [name for name in OBJECTIVES if name != "reinforce_pp"]


def group_of(rewards: Sequence[float | None], lengths: Sequence[int], *, index: int = 0) -> RolloutGroup:
    rollouts = tuple(
        make_rollout(f"{index:08d}-{i}", sample=i, reward=reward, tokens=length)
        for i, (reward, length) in enumerate(zip(rewards, lengths, strict=True))
    )
    return replace(make_group(index), rollouts=rollouts)


def values(name: str, *groups: RolloutGroup, max_tokens: int = 100, **options: Any) -> list[list[float]]:
    config = ObjectiveConfig(name=name, **options)  # type: ignore[arg-type]
    return [result.values_G.tolist() for result in advantages(config, groups, max_tokens=max_tokens)]


def test_cwm_baseline_is_the_length_weighted_mean() -> None:
    # mu = (1 * 1 + -1 * 3) / 4 = -0.5
    assert values("cwm", group_of([1.0, -1.0], [1, 3])) == [[1.5, -0.5]]


def test_grpo_divides_by_the_unbiased_std() -> None:
    # mean 0.5, std sqrt((0.25 * 4) / 3)
    sigma = (1 / 3) ** 0.5 + 1e-4
    for name in ("grpo", "dapo", "gspo", "cispo"):
        assert values(name, group_of([1, 0, 0, 1], [2] * 4))[0] == pytest.approx([0.5 / sigma, -0.5 / sigma, -0.5 / sigma, 0.5 / sigma])


def test_dr_grpo_only_centres() -> None:
    assert values("dr_grpo", group_of([1, 0, 0, 1], [1, 2, 3, 4])) == [[0.5, -0.5, -0.5, 0.5]]


def test_rloo_leaves_the_rollout_itself_out() -> None:
    assert values("rloo", group_of([3, 0, 0], [1, 1, 1])) == [[3.0, -1.5, -1.5]]


def test_reinforce_pp_normalizes_over_the_batch() -> None:
    got = values("reinforce_pp", group_of([1, 1], [1, 1]), group_of([0, 0], [1, 1], index=1))
    assert np.concatenate(got) == pytest.approx(np.array([0.5, 0.5, -0.5, -0.5]) / (0.5 + 1e-4))
    singles = values("reinforce_pp", group_of([1], [1]), group_of([0], [1], index=1))
    assert np.concatenate(singles) == pytest.approx(np.array([0.5, -0.5]) / (0.5 + 1e-4))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_rewards_give_exactly_zero(name: str) -> None:
    assert values(name, group_of([0.1] * 7, [1, 2, 3, 4, 5, 6, 7])) == [[0.0] * 7]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rollouts_without_reward_are_left_out_and_named(name: str) -> None:
    full = values(name, group_of([1.0, 0.0, 0.5], [2, 4, 3]))[0]
    broken = group_of([1.0, None, 0.0, 0.5], [2, 9, 4, 3])
    result = advantages(ObjectiveConfig(name=name), [broken], max_tokens=100)[0]  # type: ignore[arg-type]
    assert np.isnan(result.values_G[1])
    assert result.values_G[[0, 2, 3]].tolist() == full
    assert result.reasons == (None, DropReason.INFRA, None, None)


def test_ungradable_is_told_from_infra() -> None:
    group = group_of([1.0, 0.0, 0.0], [1, 1, 1])
    score = Score(reward=None, status=ScoreStatus.UNGRADABLE)
    group = replace(group, rollouts=(*group.rollouts[:2], replace(group.rollouts[2], score=score)))
    assert advantages(ObjectiveConfig(), [group], max_tokens=9)[0].reasons[2] is DropReason.UNGRADABLE


@pytest.mark.parametrize("name", GROUP_BASELINES)
def test_a_single_graded_rollout_has_no_baseline(name: str) -> None:
    result = advantages(ObjectiveConfig(name=name), [group_of([1.0, None], [2, 2])], max_tokens=9)[0]  # type: ignore[arg-type]
    assert np.isnan(result.values_G).all()
    assert result.reasons == (DropReason.TOO_FEW_GRADED, DropReason.INFRA)


def test_unfit_rollouts_get_no_advantage() -> None:
    group = group_of([1.0, 0.0, 5.0], [1, 1, 9])
    result = advantages(
        ObjectiveConfig(name="dr_grpo"),
        [group],
        max_tokens=9,
        unfit=lambda rollout: DropReason.OVERLONG if rollout.n_sampled == 9 else None,
    )[0]
    assert result.values_G[:2].tolist() == [0.5, -0.5]
    assert result.reasons == (None, None, DropReason.OVERLONG)


def test_overlong_punishment_falls_linearly_and_comes_before_the_baseline() -> None:
    # max 100, buffer 20: 80 tokens free, 90 half of it, 100 all of it, times 2.
    got = values("dr_grpo", group_of([1, 1, 1, 1], [80, 90, 100, 10]), overlong_buffer=20, overlong_penalty=2.0)[0]
    shaped = np.array([1.0, 0.0, -1.0, 1.0])
    assert got == pytest.approx((shaped - shaped.mean()).tolist())


def test_overlong_buffer_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.overlong_buffer is 101.*max_tokens=100"):
        values("dapo", group_of([1, 0], [1, 1]), overlong_buffer=101)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_order_of_rollouts_does_not_matter(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = int(rng.integers(2, 9))
        rewards, lengths, order = rng.choice([-1.0, 0.0, 1.0, 0.3], size), rng.integers(1, 50, size), rng.permutation(size)
        plain = values(name, group_of(rewards.tolist(), lengths.tolist()))[0]
        shuffled = values(name, group_of(rewards[order].tolist(), lengths[order].tolist()))[0]
        assert shuffled == pytest.approx(np.array(plain)[order], abs=1e-12)


def test_baselines_balance_what_they_should() -> None:
    """cwm: advantages times tokens of a group sum to 0; the centred ones: advantages do."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        rewards, lengths = rng.normal(size=6), rng.integers(1, 99, 6)
        group = group_of(rewards.tolist(), lengths.tolist())
        assert np.dot(values("cwm", group)[0], lengths) == pytest.approx(0.0, abs=1e-9)
        for name in ("grpo", "dr_grpo", "rloo"):
            assert sum(values(name, group)[0]) == pytest.approx(0.0, abs=1e-9)
        assert np.array(values("rloo", group)[0]) == pytest.approx(np.array(values("dr_grpo", group)[0]) * 6 / 5)
