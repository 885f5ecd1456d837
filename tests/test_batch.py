"""Packing: nothing is lost, every token sees exactly its own past, budgets and ranks are kept."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from configs.schema import Config, LearnerConfig, ObjectiveConfig, RolloutConfig, SamplingConfig, TaskConfig
from rl.batch import PADDING_ROLLOUT, make_batches, token_weights
from rl.records import Batch, MicroBatch, TrainSample

MAX_TOKENS = 64


def config(*, ranks: int = 1, steps: int = 1, budget: int = 256, objective: str = "cwm", **options: Any) -> Config:
    return Config(
        tasks={"fake": TaskConfig(kind="programs", env="math")},
        sampling=SamplingConfig(max_tokens=MAX_TOKENS),
        rollout=RolloutConfig(prompts_per_step=64),
        objective=ObjectiveConfig(name=objective, **options),  # type: ignore[arg-type]
        learner=LearnerConfig(ranks=ranks, optimizer_steps_per_batch=steps, micro_batch_tokens=budget),
    )


def make_sample(
    rng: np.random.Generator, *, group: int, index: int, prompt: np.ndarray, length: int, advantage: float, multi: bool
) -> TrainSample:
    """`length` tokens after the prompt; with `multi` some of them, never the last, belong to the environment."""
    agent = np.ones(length, dtype=bool)
    if multi and length > 2:
        agent[rng.integers(1, length - 1) : length - 1] = rng.random() < 0.5
    mask = np.concatenate([np.zeros(len(prompt), dtype=bool), agent])
    return TrainSample(
        rollout_id=f"{group:08d}-{index}",
        group_index=group,
        token_ids_T=np.concatenate([prompt, rng.integers(1, 1000, length)]).astype(np.int32),
        agent_mask_T=mask,
        behaviour_logprobs_T=np.where(mask, -rng.random(len(mask)), 0).astype(np.float32),
        versions_T=np.where(mask, 0, -1).astype(np.int32),
        advantage=advantage,
        prompt_len=len(prompt),
    )


def make_samples(
    seed: int, *, groups: int = 6, size: int = 4, longest: int = 30, multi: bool = True, zeros: bool = True
) -> list[TrainSample]:
    rng = np.random.default_rng(seed)
    samples = []
    for group in rng.permutation(groups).tolist():
        prompt = rng.integers(1, 1000, int(rng.integers(1, 20)))
        for index in range(size):
            advantage = 0.0 if zeros and rng.random() < 0.2 else float(rng.normal())
            length = int(rng.integers(1, longest))
            samples.append(make_sample(rng, group=group, index=index, prompt=prompt, length=length, advantage=advantage, multi=multi))
    return samples


def micro_batches(batches: Sequence[Sequence[Batch]]) -> list[MicroBatch]:
    return [micro for rank in batches for batch in rank for micro in batch.micro_batches]


def visible(micro: MicroBatch, source: int) -> list[tuple[int, int]]:
    """(position, token) of what the hidden state at `source` may attend to: the rule of `MicroBatch`, token by token."""
    length = micro.token_ids_BL.shape[1]
    row, column = divmod(source, length)
    own = micro.segments_BL[row, column]
    assert own >= 0
    return [
        (int(micro.positions_BL[row, c]), int(micro.token_ids_BL[row, c]))
        for c in range(column + 1)
        if micro.documents_BL[row, c] == micro.documents_BL[row, column] and micro.segments_BL[row, c] in (0, own)
    ]


def check_layout(micro: MicroBatch, by_id: dict[str, TrainSample]) -> None:
    """Every response token is predicted from exactly the tokens that came before it, at their own positions."""
    for s, rollout_id in enumerate(micro.rollout_ids):
        sample = by_id[rollout_id]
        of_sample = micro.sample_N == s
        agent = np.flatnonzero(sample.agent_mask_T)
        assert micro.targets_N[of_sample].tolist() == sample.token_ids_T[agent].tolist()
        assert micro.behaviour_logprobs_N[of_sample].tolist() == sample.behaviour_logprobs_T[agent].tolist()
        assert micro.advantages_N[of_sample].tolist() == [np.float32(sample.advantage)] * len(agent)
        for position, source in zip(agent.tolist(), micro.source_N[of_sample].tolist(), strict=True):
            assert visible(micro, source) == list(enumerate(sample.token_ids_T[:position].tolist()))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("ranks", "steps", "budget"), [(1, 1, 256), (2, 1, 64), (3, 2, 100), (1, 3, 1), (4, 2, 100_000)])
def test_layout_budget_ranks_and_completeness(seed: int, ranks: int, steps: int, budget: int) -> None:
    samples = make_samples(seed)
    by_id = {sample.rollout_id: sample for sample in samples}
    batches = make_batches(samples, config=config(ranks=ranks, steps=steps, budget=budget), n_rollouts=24)
    assert len(batches) == ranks and {len(rank) for rank in batches} == {steps}
    for step in zip(*batches, strict=True):
        assert len({len(batch.micro_batches) for batch in step}) == 1, "ranks would gather out of step"
        assert len({(batch.n_tokens, batch.n_samples) for batch in step}) == 1
        real = [m for batch in step for m in batch.micro_batches if m.rollout_ids != (PADDING_ROLLOUT,)]
        assert step[0].n_tokens == sum(len(m.targets_N) for m in real)
        assert step[0].n_samples == sum(len(m.rollout_ids) for m in real)
        assert len(step) * len(step[0].micro_batches) - len(real) < ranks, "no more empty micro-batches than it takes"
    seen: Counter[str] = Counter()
    for micro in micro_batches(batches):
        if micro.rollout_ids == (PADDING_ROLLOUT,):
            assert not micro.weights_N.any() and len(micro.targets_N) == 1
            continue
        assert micro.token_ids_BL.size <= budget or len(micro.token_ids_BL) == 1
        check_layout(micro, by_id)
        seen.update(micro.rollout_ids)
    assert seen == Counter(sample.rollout_id for sample in samples if sample.advantage != 0)


def test_a_group_shares_its_prompt_in_one_row() -> None:
    rng = np.random.default_rng(0)
    prompt = np.arange(1, 11)
    samples = [make_sample(rng, group=0, index=i, prompt=prompt, length=3, advantage=1.0, multi=False) for i in range(4)]
    (micro,) = make_batches(samples, config=config(), n_rollouts=4)[0][0].micro_batches
    assert micro.token_ids_BL.shape == (1, 10 + 4 * 2), "the last token of a sample is only a target"
    assert micro.segments_BL[0].tolist() == [0] * 10 + [1, 1, 2, 2, 3, 3, 4, 4]
    assert micro.positions_BL[0].tolist() == [*range(10), *[10, 11] * 4]
    assert micro.source_N.tolist() == [9, 10, 11, 9, 12, 13, 9, 14, 15, 9, 16, 17]


def test_samples_with_other_prompts_do_not_share() -> None:
    rng = np.random.default_rng(0)
    prompts = (np.array([1, 2, 3]), np.array([1, 2, 4]))
    samples = [make_sample(rng, group=0, index=i, prompt=prompts[i], length=3, advantage=1.0, multi=False) for i in range(2)]
    (micro,) = make_batches(samples, config=config(), n_rollouts=2)[0][0].micro_batches
    assert micro.token_ids_BL.shape == (2, 5)
    check_layout(micro, {sample.rollout_id: sample for sample in samples})


def test_a_group_over_the_budget_takes_several_rows() -> None:
    rng = np.random.default_rng(0)
    samples = [make_sample(rng, group=0, index=i, prompt=np.arange(1, 41), length=21, advantage=1.0, multi=False) for i in range(6)]
    micros = make_batches(samples, config=config(budget=100), n_rollouts=6)[0][0].micro_batches
    assert [micro.token_ids_BL.shape for micro in micros] == [(1, 100), (1, 100)]


def documents_of(*lengths: int) -> list[TrainSample]:
    """Samples of so many input tokens that share nothing."""
    rng = np.random.default_rng(0)
    prompts = [np.array([i + 1]) for i in range(len(lengths))]
    return [make_sample(rng, group=i, index=0, prompt=prompts[i], length=n, advantage=1.0, multi=False) for i, n in enumerate(lengths)]


def test_short_documents_are_packed_into_one_row() -> None:
    samples = documents_of(90, 60, 40, 31, 10, 21)
    (micro,) = make_batches(samples, config=config(budget=270), n_rollouts=6)[0][0].micro_batches
    check_layout(micro, {sample.rollout_id: sample for sample in samples})
    assert micro.token_ids_BL.shape == (1, 252)
    assert np.bincount(micro.documents_BL[0]).tolist() == [90, 60, 40, 31, 21, 10]
    assert micro.positions_BL[0, [0, 89, 90, 149, 150]].tolist() == [0, 89, 0, 59, 0], "positions start anew"


def test_short_documents_fill_up_the_rows_of_long_ones() -> None:
    samples = documents_of(9000, 6000, 4000, 3100, 1000, 2100)
    (micro,) = make_batches(samples, config=config(budget=27_000), n_rollouts=6)[0][0].micro_batches
    assert micro.token_ids_BL.shape == (3, 9000), "attention over longer rows would cost more than the padding"
    lengths = [np.bincount(row[row >= 0]).tolist() for row in micro.documents_BL]
    assert lengths == [[9000], [6000, 2100], [4000, 3100, 1000]]


def test_long_answers_to_short_prompts_do_not_share_because_attention_costs_more() -> None:
    rng = np.random.default_rng(0)
    samples = [make_sample(rng, group=0, index=i, prompt=np.array([1, 2, 3]), length=500, advantage=1.0, multi=False) for i in range(4)]
    (micro,) = make_batches(samples, config=config(budget=10_000), n_rollouts=4)[0][0].micro_batches
    assert micro.token_ids_BL.shape == (4, 502)


def test_ranks_get_work_rather_than_padding() -> None:
    samples = make_samples(1, groups=8, zeros=False)
    batches = make_batches(samples, config=config(ranks=4, budget=100_000), n_rollouts=32)
    assert all(micro.rollout_ids != (PADDING_ROLLOUT,) for micro in micro_batches(batches))


def test_optimizer_steps_take_whole_groups_in_index_order() -> None:
    samples = make_samples(2, groups=7, zeros=False)
    (rank,) = make_batches(samples, config=config(steps=3), n_rollouts=28)
    groups = [sorted({int(rollout_id[:8]) for micro in batch.micro_batches for rollout_id in micro.rollout_ids}) for batch in rank]
    assert groups == [[0, 1, 2], [3, 4], [5, 6]]


def test_fewer_groups_than_steps_make_fewer_steps_and_no_signal_none() -> None:
    samples = make_samples(2, groups=2, zeros=False)
    assert [len(rank) for rank in make_batches(samples, config=config(steps=5, ranks=2), n_rollouts=8)] == [2, 2]
    assert make_batches([], config=config(ranks=2), n_rollouts=8) == ((), ())


def test_the_order_of_samples_from_different_groups_does_not_matter() -> None:
    samples = make_samples(3)
    plain = make_batches(samples, config=config(ranks=2), n_rollouts=24)
    shuffled = make_batches(sorted(samples, key=lambda sample: -sample.group_index), config=config(ranks=2), n_rollouts=24)
    for left, right in zip(micro_batches(plain), micro_batches(shuffled), strict=True):
        assert left.rollout_ids == right.rollout_ids
        for name in ("token_ids_BL", "segments_BL", "source_N", "targets_N", "weights_N"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def total_weight(batches: Sequence[Sequence[Batch]]) -> float:
    return float(sum(micro.weights_N.sum(dtype=np.float64) for micro in micro_batches(batches)))


@pytest.mark.parametrize("ranks", [1, 3])
def test_weights_add_up_over_ranks_and_micro_batches(ranks: int) -> None:
    samples = make_samples(4, zeros=False)
    n_tokens, n = sum(int(sample.agent_mask_T.sum()) for sample in samples), len(samples)
    expected = {
        "cwm": n_tokens / (n * MAX_TOKENS),
        "dr_grpo": n_tokens / (n * MAX_TOKENS),
        "dapo": 1.0,
        "cispo": 1.0,
        "reinforce_pp": 1.0,
        "grpo": 1.0,
        "gspo": 1.0,
        "rloo": 1.0,
    }
    for name, total in expected.items():
        batches = make_batches(samples, config=config(ranks=ranks, budget=64, objective=name), n_rollouts=n)
        assert total_weight(batches) == pytest.approx(total, rel=1e-5), name


def test_denominators_count_what_the_papers_count() -> None:
    """24 rollouts of which 12 sampled nothing worth training on: rollout means keep them, token means count tokens."""
    samples = make_samples(9, groups=3, zeros=True)
    trained = [sample for sample in samples if sample.advantage != 0]
    assert len(trained) < len(samples)
    assert total_weight(make_batches(samples, config=config(objective="grpo"), n_rollouts=24)) == pytest.approx(len(trained) / 24, rel=1e-5)
    share = sum(s.agent_mask_T.sum() for s in trained) / sum(s.agent_mask_T.sum() for s in samples)
    assert total_weight(make_batches(samples, config=config(objective="dapo"), n_rollouts=24)) == pytest.approx(share, rel=1e-5)


def test_length_norm_replaces_max_tokens() -> None:
    weights = token_weights(ObjectiveConfig(length_norm=131072.0), np.array([3, 9]), n_rollouts=8, n_tokens=12, max_tokens=64)
    assert weights.tolist() == [1 / (8 * 131072)] * 2


def test_optimizer_steps_share_the_rollouts() -> None:
    samples = make_samples(6, zeros=False)
    (rank,) = make_batches(samples, config=config(steps=2, objective="grpo"), n_rollouts=48)
    totals = [sum(float(micro.weights_N.sum()) for micro in batch.micro_batches) for batch in rank]
    assert totals == pytest.approx([12 / 24, 12 / 24], rel=1e-5)


def test_a_kl_penalty_keeps_samples_of_advantage_zero() -> None:
    samples = make_samples(7)
    batches = make_batches(samples, config=config(kl_coef=0.1), n_rollouts=24)
    assert sum(len(micro.rollout_ids) for micro in micro_batches(batches)) == len(samples)


def test_a_sample_without_agent_tokens_is_refused() -> None:
    sample = make_samples(8, zeros=False)[0]
    empty = TrainSample(
        rollout_id="x",
        group_index=0,
        token_ids_T=sample.token_ids_T,
        agent_mask_T=np.zeros_like(sample.agent_mask_T),
        behaviour_logprobs_T=sample.behaviour_logprobs_T,
        versions_T=sample.versions_T,
        advantage=1.0,
        prompt_len=sample.prompt_len,
    )
    with pytest.raises(ValueError, match=r"sample x: .* 0 agent tokens"):
        make_batches([empty], config=config(), n_rollouts=1)


@pytest.mark.parametrize("objective", ["grpo", "rloo", "dapo", "cwm"])
def test_a_rollout_weighs_the_same_in_one_sample_or_in_two(objective: str) -> None:
    rng = np.random.default_rng(3)
    prompt = np.arange(1, 6)
    whole = make_sample(rng, group=0, index=0, prompt=prompt, length=10, advantage=1.0, multi=False)
    cut = [
        make_sample(rng, group=0, index=0, prompt=prompt, length=4, advantage=1.0, multi=False),
        replace(make_sample(rng, group=0, index=0, prompt=np.arange(1, 13), length=6, advantage=1.0, multi=False), part=1),
    ]
    other = make_sample(rng, group=0, index=1, prompt=prompt, length=7, advantage=-1.0, multi=False)

    def weights(samples: list[TrainSample]) -> list[float]:
        (rank,) = make_batches(samples, config=config(objective=objective), n_rollouts=2)
        found = [
            (micro.rollout_ids[s], weight)
            for micro in rank[0].micro_batches
            for s, weight in zip(micro.sample_N, micro.weights_N, strict=True)
        ]
        return sorted(float(weight) for rollout_id, weight in found if rollout_id == whole.rollout_id)

    assert weights([*cut, other]) == pytest.approx(weights([whole, other]))
    (rank,) = make_batches([*cut, other], config=config(objective=objective), n_rollouts=2)
    pairs = [pair for micro in rank[0].micro_batches for pair in zip(micro.rollout_ids, micro.parts, strict=True)]
    assert sorted(pairs) == [("00000000-0", 0), ("00000000-0", 1), ("00000000-1", 0)]
