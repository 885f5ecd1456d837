"""Sampler: exact distributions under temperature, top-k and top-p, and uniform streams that know only their seed."""

import numpy as np
import pytest
import torch

from rl.engines.sampler import STREAM_CHUNK, RowSampling, Sampler, UniformStreams

DRAWS = 20_000


def parameters(rows: int, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> RowSampling:
    return RowSampling(
        temperature_B=np.full(rows, temperature, dtype=np.float32),
        top_p_B=np.full(rows, top_p, dtype=np.float32),
        top_k_B=np.full(rows, top_k, dtype=np.int64),
    )


def make_logits(vocab: int, *, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, vocab).astype(np.float32))


def exact(logits_V: torch.Tensor, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> np.ndarray:
    """Reference probabilities, float64[V], by a full sort: temperature, then top-k, then top-p."""
    probabilities = torch.softmax(logits_V.double() / temperature, dim=-1).numpy()
    order = np.argsort(-probabilities, kind="stable")
    kept = order[: top_k or len(order)]
    cumulative = np.cumsum(probabilities[kept]) / probabilities[kept].sum()
    kept = kept[: int(np.searchsorted(cumulative, top_p)) + 1] if top_p < 1 else kept
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept] / probabilities[kept].sum()
    return result


def chi_square_pvalue(observed: np.ndarray, expected: np.ndarray) -> float:
    """Probability of counts at least this far from the expected ones."""
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return float(torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2.0), torch.tensor(statistic / 2)))


@pytest.mark.parametrize(
    ("vocab", "filters"),
    [
        (50, {}),
        (50, {"temperature": 0.6}),
        (50, {"temperature": 1.7, "top_k": 7}),
        (50, {"top_p": 0.8}),
        (50, {"temperature": 1.3, "top_p": 0.7, "top_k": 12}),
        (50, {"top_k": 1}),
        (1000, {"top_p": 0.97, "temperature": 1.5}),
        (7, {}),
    ],
)
def test_draws_follow_the_exact_distribution(vocab: int, filters: dict[str, float]) -> None:
    logits_V = make_logits(vocab)
    expected = exact(logits_V, **filters)  # type: ignore[arg-type]  # parametrized keywords
    rows = logits_V.expand(DRAWS, vocab)
    uniforms = np.random.default_rng(1).random(DRAWS)
    tokens, _ = Sampler(vocab).draw(rows, uniforms_B=uniforms, sampling=parameters(DRAWS, **filters))  # type: ignore[arg-type]
    counts = np.bincount(tokens, minlength=vocab)
    assert counts[expected == 0].sum() == 0
    # Rare tokens are pooled, so that the chi-square approximation holds.
    order = np.argsort(-expected)
    common = order[expected[order] * DRAWS >= 10]
    observed, wanted = counts[common], expected[common] * DRAWS
    rest = DRAWS - wanted.sum()
    if rest > 5:
        observed, wanted = np.append(observed, DRAWS - observed.sum()), np.append(wanted, rest)
    if len(observed) > 1:
        assert chi_square_pvalue(observed, wanted * observed.sum() / wanted.sum()) > 1e-3


def test_wide_nucleus_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    # 1,000 nearly equal weights: the nucleus is wider than the candidates looked at first.
    logits_V = make_logits(1000, scale=0.1)
    kept = exact(logits_V, top_p=0.6) > 0
    assert kept.sum() > 300
    uniforms = (np.arange(DRAWS) + 0.5) / DRAWS
    tokens, _ = Sampler(1000).draw(logits_V.expand(DRAWS, 1000), uniforms_B=uniforms, sampling=parameters(DRAWS, top_p=0.6))
    assert set(tokens.tolist()) == set(np.flatnonzero(kept).tolist())


def test_an_inverse_cdf_is_exact_on_a_grid_of_uniforms() -> None:
    logits_V = make_logits(300)
    uniforms = (np.arange(DRAWS) + 0.5) / DRAWS
    tokens, _ = Sampler(300).draw(logits_V.expand(DRAWS, 300), uniforms_B=uniforms, sampling=parameters(DRAWS))
    expected = np.searchsorted(np.cumsum(exact(logits_V)), uniforms, side="right")
    # Float32 weights move each boundary by less than one step of the grid.
    assert (tokens != expected).mean() < 1e-2
    assert np.abs(np.bincount(tokens, minlength=300) / DRAWS - exact(logits_V)).max() <= 1 / DRAWS


def test_extreme_uniforms_never_draw_an_impossible_token() -> None:
    logits = torch.full((2, 100), -torch.inf)
    logits[:, 40], logits[:, 41] = 0.0, 1.0
    tokens, logprobs = Sampler(100).draw(logits, uniforms_B=np.array([0.0, np.nextafter(1, 0)]), sampling=parameters(2))
    assert tokens.tolist() == [40, 41]
    np.testing.assert_allclose(logprobs, torch.log_softmax(torch.tensor([0.0, 1.0]), -1).numpy(), rtol=1e-6)


def test_logprobs_are_those_of_the_raw_logits_whatever_the_filters() -> None:
    logits = torch.stack([make_logits(200, seed=seed) for seed in range(64)])
    before = logits.clone()
    uniforms = np.random.default_rng(3).random(64)
    tokens, logprobs = Sampler(200).draw(logits, uniforms_B=uniforms, sampling=parameters(64, temperature=0.5, top_k=5, top_p=0.9))
    expected = torch.log_softmax(logits.double(), -1)[torch.arange(64), torch.from_numpy(tokens)]
    np.testing.assert_allclose(logprobs, expected.numpy(), atol=2e-6)
    assert logprobs.dtype == np.float32
    assert torch.equal(logits, before)


def test_temperature_zero_takes_the_largest_logit_next_to_sampled_rows() -> None:
    logits = torch.stack([make_logits(64, seed=seed) for seed in range(6)])
    mixed = RowSampling(
        temperature_B=np.array([0, 1, 0, 0.7, 1, 0], dtype=np.float32),
        top_p_B=np.array([0.5, 1, 1, 0.9, 1, 1], dtype=np.float32),
        top_k_B=np.array([0, 0, 3, 0, 4, 0]),
    )
    uniforms = np.random.default_rng(0).random(6)
    tokens, _ = Sampler(64).draw(logits, uniforms_B=uniforms, sampling=mixed)
    assert tokens[[0, 2, 5]].tolist() == logits.argmax(-1)[[0, 2, 5]].tolist()
    # Each row's draw is what it is alone.
    for row in range(6):
        alone = RowSampling(
            temperature_B=mixed.temperature_B[row : row + 1], top_p_B=mixed.top_p_B[row : row + 1], top_k_B=mixed.top_k_B[row : row + 1]
        )
        single, _ = Sampler(64).draw(logits[row : row + 1], uniforms_B=uniforms[row : row + 1], sampling=alone)
        assert single[0] == tokens[row]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_logits_are_an_error(bad: float) -> None:
    logits = make_logits(32).expand(2, 32).clone()
    logits[1, 5] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        Sampler(32).draw(logits, uniforms_B=np.array([0.5, 0.5]), sampling=parameters(2))


def test_streams_are_philox_keyed_by_the_seed_in_any_row_and_after_a_move() -> None:
    seed = 2**63 + 12345
    expected = np.random.Generator(np.random.Philox(key=seed)).random(2 * STREAM_CHUNK + 3)
    streams = UniformStreams(4)
    streams.seeds_B[:] = [1, seed, 2, seed]
    taken = []
    for t in range(len(expected)):
        if t == STREAM_CHUNK // 2:
            streams.move(np.array([3]), np.array([0]))
        row = 0 if t >= STREAM_CHUNK // 2 else 3
        values = streams.take(np.array([1, row]), np.array([t, t]))
        assert values[0] == values[1]
        taken.append(values[0])
    np.testing.assert_array_equal(taken, expected)
    assert streams.take(np.array([2]), np.array([0]))[0] != expected[0]


def test_a_token_whose_own_probability_vanishes_has_a_finite_logprob() -> None:
    logits = torch.tensor([[0.0, -300.0]]).expand(64, 2)
    tokens, logprobs = Sampler(2).draw(logits, uniforms_B=(np.arange(64) + 0.5) / 64, sampling=parameters(64, temperature=1000.0))
    assert set(tokens.tolist()) == {0, 1}
    np.testing.assert_allclose(logprobs[tokens == 1], -300.0)
