"""Both doors of the buffer."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from configs.schema import Config, FilterConfig, ObjectiveConfig, RolloutConfig, TaskConfig
from environments.records import StopReason
from rl.filters import DropReason, get_door, is_gibberish, put_door
from rl.records import Rollout, RolloutGroup
from tests.fakes import make_group, make_rollout

VOCAB = 128_256


def config(*, objective: str = "cwm", staleness: int = 0, **filters: Any) -> Config:
    return Config(
        tasks={"fake": TaskConfig(kind="programs", env="math")},
        objective=ObjectiveConfig(name=objective),  # type: ignore[arg-type]
        rollout=RolloutConfig(max_staleness=staleness),
        filters=FilterConfig(**filters),
    )


def put(group: RolloutGroup, **options: Any) -> DropReason | None:
    return put_door(config(**options), vocab_size=VOCAB)(group)


def with_tokens(rollout: Rollout, *, ids: list[int], logprobs: list[float], stop: StopReason = StopReason.STOP_TOKEN) -> Rollout:
    turn = rollout.turns[0]
    completion = replace(
        turn.completion,
        token_ids_T=np.array(ids, np.int32),
        logprobs_T=np.array(logprobs, np.float32),
        versions_T=np.zeros(len(ids), np.int32),
        stop_reason=stop,
    )
    return replace(rollout, turns=(replace(turn, completion=completion),))


def test_an_ordinary_group_passes() -> None:
    assert put(make_group()) is None


@pytest.mark.parametrize(("rewards", "expected"), [((1.0, 1.0, None), DropReason.ZERO_VARIANCE), ((1.0, -1.0), None)])
def test_zero_variance_is_rejected_only_when_resampling(rewards: tuple[float | None, ...], expected: DropReason | None) -> None:
    assert put(make_group(rewards=rewards)) is None
    assert put(make_group(rewards=rewards), zero_variance="resample") is expected


def test_too_few_graded() -> None:
    group = make_group(rewards=(1.0, None, None))
    assert put(group) is DropReason.TOO_FEW_GRADED
    assert put(group, objective="reinforce_pp") is None
    assert put(make_group(rewards=(None, None)), objective="reinforce_pp") is DropReason.TOO_FEW_GRADED


def test_solve_rate_bounds_are_inclusive_and_ignore_ungraded() -> None:
    group = make_group(rewards=(1.0, -1.0, -1.0, -1.0, None))
    assert put(group, min_solve_rate=0.25, max_solve_rate=0.25) is None
    assert put(group, min_solve_rate=0.26) is DropReason.TOO_HARD
    assert put(group, max_solve_rate=0.24) is DropReason.TOO_EASY


def test_gibberish_needs_a_rare_token_and_a_low_logprob_at_once() -> None:
    limit = -math.log(VOCAB) - 2
    rollout = make_rollout("a")
    cases = [
        ([100_001], [limit - 0.01], True),
        ([100_000], [limit - 0.01], False),
        ([100_001], [limit + 0.01], False),
        ([100_001, 5], [limit + 0.01, limit - 0.01], False),
        ([5, 100_001], [-0.1, limit - 0.01], True),
    ]
    for ids, logprobs, expected in cases:
        assert is_gibberish(with_tokens(rollout, ids=ids, logprobs=logprobs), vocab_size=VOCAB, min_id=100_000) is expected


def test_one_gibberish_rollout_does_not_cost_a_group_that_has_enough_others() -> None:
    bad = with_tokens(make_rollout("x", reward=1.0), ids=[100_001], logprobs=[-30.0])
    two, three = make_group(rewards=(1.0, -1.0)), make_group(rewards=(1.0, -1.0, -1.0))
    spoiled = replace(two, rollouts=(bad, two.rollouts[1]))
    assert put(spoiled) is None, "the filter is off by default"
    assert put(spoiled, gibberish=True) is DropReason.GIBBERISH
    assert put(replace(three, rollouts=(bad, *three.rollouts[1:])), gibberish=True) is None
    assert put(replace(three, rollouts=(bad, *three.rollouts[1:])), gibberish=True, zero_variance="resample") is DropReason.ZERO_VARIANCE


@pytest.mark.parametrize("stop", [StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL])
def test_overlong_rollouts(stop: StopReason) -> None:
    cut = with_tokens(make_rollout("x", reward=-1.0), ids=[5], logprobs=[-1.0], stop=stop)
    group = replace(make_group(), rollouts=(make_rollout("y"), cut))
    assert put(group) is None
    assert put(group, overlong=True) is DropReason.OVERLONG
    assert put(make_group(), overlong=True) is None


def test_stale_looks_at_the_most_recent_tokens_of_graded_rollouts() -> None:
    door = get_door(config(staleness=2))
    assert door(make_group(version=3), 5) is None
    assert door(make_group(version=3), 6) is DropReason.STALE
    mixed = make_rollout("x", version=0)
    turn = mixed.turns[0]
    versions = np.array([0, 2, 4], np.int32)
    mixed = replace(mixed, turns=(replace(turn, completion=replace(turn.completion, versions_T=versions)),))
    fresh = make_group(version=4)
    assert door(replace(fresh, rollouts=(mixed, *fresh.rollouts)), 6) is None, "old first tokens are fine"
    broken = make_rollout("z", reward=None, version=0)
    assert door(replace(fresh, rollouts=(broken, *fresh.rollouts)), 6) is None, "it is not trained on"


def test_reasons_read_as_plain_text() -> None:
    assert f"{DropReason.ZERO_VARIANCE}" == "zero_variance"
    assert str({DropReason.STALE: 1}) == "{'stale': 1}"
