"""Gradients of every objective: numbers worked out by hand, and properties that hold for all of them."""

import math
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from configs.schema import ObjectiveConfig
from rl.loss import LossInputs, LossOutput, make_objective

OBJECTIVES = get_args(get_type_hints(ObjectiveConfig)["name"])
TOKEN_CLIPS = {"cwm": (0.2, 0.25), "grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "reinforce_pp": (0.2, 0.2)}


def run(
    name: str,
    *,
    ratios: Sequence[float],
    advantages: Sequence[float],
    samples: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    mismatch: Sequence[float] | None = None,
    reference: Sequence[float] | None = None,
    **options: Any,
) -> tuple[LossOutput, Tensor]:
    """Loss and gradient by token; `ratios` are learner / old, `mismatch` is old / behaviour, `reference` is reference / learner."""
    n = len(ratios)
    old = -torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    logprobs = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    behaviour = old if mismatch is None else old - torch.tensor(mismatch, dtype=torch.float64).log()
    samples = list(samples or [0] * n)
    output = make_objective(ObjectiveConfig(name=name, **options))(  # type: ignore[arg-type]
        LossInputs(
            logprobs_N=logprobs,
            behaviour_logprobs_N=behaviour,
            old_logprobs_N=None if mismatch is None else old,
            reference_logprobs_N=None if reference is None else logprobs.detach() + torch.tensor(reference, dtype=torch.float64).log(),
            advantages_N=torch.tensor(advantages, dtype=torch.float64),
            weights_N=torch.tensor(weights or [1.0] * n, dtype=torch.float64),
            sample_N=torch.tensor(samples),
            n_samples=max(samples) + 1,
        )
    )
    (gradient,) = torch.autograd.grad(output.loss, logprobs)
    return output, gradient


@pytest.mark.parametrize(("name", "clip"), TOKEN_CLIPS.items())
def test_token_clips_cut_only_where_the_bound_is_pessimistic(name: str, clip: tuple[float, float]) -> None:
    low, high = 1 - clip[0], 1 + clip[1]
    cases = [  # ratio, advantage, cut
        (low - 0.01, 2.0, False),
        (low - 0.01, -2.0, True),
        (low + 0.01, -2.0, False),
        (high - 0.01, 2.0, False),
        (high + 0.01, 2.0, True),
        (high + 0.01, -2.0, False),
    ]
    ratios, advantages, cut = zip(*cases, strict=True)
    output, gradient = run(name, ratios=ratios, advantages=advantages)
    assert output.clipped_N.tolist() == list(cut)
    assert gradient.tolist() == pytest.approx([0.0 if c else -r * a for r, a, c in cases])
    bounded = [min(r * a, min(max(r, low), high) * a) for r, a, _ in cases]
    assert output.loss.item() == pytest.approx(-sum(bounded))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_policy_gradient_is_reinforce(name: str) -> None:
    """At ratio 1 every objective's gradient is -weight * advantage, a sequence objective's times what its tokens share."""
    advantages, samples, weights = [1.5, 1.5, -2.0, -2.0, -2.0], [0, 0, 1, 1, 1], [0.5, 0.5, 1 / 3, 1 / 3, 1 / 3]
    output, gradient = run(name, ratios=[1.0] * 5, advantages=advantages, samples=samples, weights=weights)
    # rloo: each token moves the sum of its sequence, whose loss all its tokens carry: weight summed over the sequence.
    scale = [1.0] * 5 if name == "rloo" else weights
    assert gradient.tolist() == pytest.approx([-s * a for s, a in zip(scale, advantages, strict=True)])
    assert not output.clipped_N.any()


def test_rloo_takes_the_ratio_of_whole_sequences() -> None:
    # Sequence 0: 1.05 * 1.1 = 1.155 inside, sequence 1: 1.1 * 1.1 = 1.21 clipped although each token is inside.
    output, gradient = run("rloo", ratios=[1.05, 1.1, 1.1, 1.1], advantages=[2.0] * 4, samples=[0, 0, 1, 1], weights=[0.25] * 4)
    assert gradient.tolist() == pytest.approx([-0.5 * 2.0 * 1.155] * 2 + [0.0] * 2)
    assert output.clipped_N.tolist() == [False, False, True, True]
    assert output.loss.item() == pytest.approx(-(0.5 * 2.0 * 1.155 + 0.5 * 2.0 * 1.2))


def test_gspo_takes_the_geometric_mean_of_the_sequence() -> None:
    # Tokens far outside the clip whose mean log ratio is 0, and a mild sequence outside 4e-4.
    output, gradient = run("gspo", ratios=[2.0, 0.5, 1.001, 1.001], advantages=[1.0] * 4, samples=[0, 0, 1, 1], weights=[0.25] * 4)
    assert gradient.tolist() == pytest.approx([-0.25, -0.25, 0.0, 0.0])
    assert output.clipped_N.tolist() == [False, False, True, True]
    assert output.loss.item() == pytest.approx(-(0.5 + 0.5 * 1.0004))


def test_cispo_bounds_the_weight_but_keeps_every_gradient() -> None:
    output, gradient = run("cispo", ratios=[0.01, 1.0, 3.0, 9.0], advantages=[1.0, -1.0, 2.0, 2.0])
    assert gradient.tolist() == pytest.approx([-0.01, 1.0, -6.0, -10.0])
    assert output.clipped_N.tolist() == [False, False, False, True]
    _, gradient = run("cispo", ratios=[0.5, 1.5], advantages=[1.0, 1.0], clip_low=0.2, clip_high=0.2)
    assert gradient.tolist() == pytest.approx([-0.8, -1.2])


def test_configured_clips_replace_the_published_ones() -> None:
    output, _ = run("cwm", ratios=[1.24, 0.9], advantages=[1.0, -1.0], clip_low=0.05, clip_high=0.5)
    assert output.clipped_N.tolist() == [False, True]


@pytest.mark.parametrize("name", ["cwm", "grpo", "cispo", "gspo"])
def test_importance_cap_scales_the_loss_and_is_no_part_of_the_gradient_path(name: str) -> None:
    plain, plain_gradient = run(name, ratios=[1.0, 1.0, 1.0], advantages=[1.0, -1.0, 1.0], samples=[0, 1, 2])
    capped, gradient = run(
        name, ratios=[1.0, 1.0, 1.0], advantages=[1.0, -1.0, 1.0], samples=[0, 1, 2], mismatch=[0.5, 1.5, 40.0], importance_cap=2.0
    )
    assert gradient.tolist() == pytest.approx((plain_gradient * torch.tensor([0.5, 1.5, 2.0])).tolist())
    assert not plain.clipped_N.any() and not capped.clipped_N.any()


def test_kl_is_k3_and_pulls_towards_the_reference() -> None:
    output, gradient = run("cwm", ratios=[1.0, 1.0], advantages=[0.0, 0.0], reference=[2.0, 0.5], kl_coef=0.1, weights=[1.0, 2.0])
    assert output.loss.item() == pytest.approx(0.1 * (2 - math.log(2) - 1) + 0.2 * (0.5 + math.log(2) - 1))
    # d/dlogp (e^d - d - 1) with d = ref - logp is 1 - e^d.
    assert gradient.tolist() == pytest.approx([0.1 * (1 - 2), 0.2 * (1 - 0.5)])


def test_what_an_objective_needs() -> None:
    plain, capped = make_objective(ObjectiveConfig()), make_objective(ObjectiveConfig(importance_cap=2.0, kl_coef=0.1))
    assert (plain.needs_old, plain.needs_reference) == (False, False)
    assert (capped.needs_old, capped.needs_reference) == (True, True)
    with pytest.raises(ValueError, match=r"objective\.importance_cap is set"):
        run("cwm", ratios=[1.0], advantages=[1.0], importance_cap=2.0)
    with pytest.raises(ValueError, match=r"objective\.kl_coef is set"):
        run("cwm", ratios=[1.0], advantages=[1.0], kl_coef=0.1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_wild_ratios_stay_finite(name: str) -> None:
    huge = torch.tensor([-200.0, -0.001, -200.0, -0.001], dtype=torch.float32)
    logprobs = huge.flip(0).clone().requires_grad_()
    objective = make_objective(ObjectiveConfig(name=name, importance_cap=2.0, kl_coef=0.1))  # type: ignore[arg-type]
    output = objective(
        LossInputs(
            logprobs_N=logprobs,
            behaviour_logprobs_N=huge.flip(0),
            old_logprobs_N=huge,
            reference_logprobs_N=huge,
            advantages_N=torch.tensor([1.0, 1.0, -1.0, -1.0]),
            weights_N=torch.ones(4),
            sample_N=torch.tensor([0, 1, 2, 3]),
            n_samples=4,
        )
    )
    (gradient,) = torch.autograd.grad(output.loss, logprobs)
    assert output.loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_properties_on_random_tokens(name: str) -> None:
    """Cut tokens have no gradient; order of tokens, and splitting samples over micro-batches, change nothing."""
    torch.manual_seed(0)
    cispo = name == "cispo"
    spread = 1e-3 if name == "gspo" else 1.0 if cispo else 0.2
    any_cut = False
    for _ in range(30):
        lengths = torch.randint(1, 7, (5,))
        samples = torch.repeat_interleave(torch.arange(5), lengths).tolist()
        n = len(samples)
        ratios = (spread * torch.randn(n)).exp().tolist()
        per_sample = torch.randn(5)
        advantages, weights = per_sample[samples].tolist(), torch.rand(5)[samples].tolist()
        output, gradient = run(name, ratios=ratios, advantages=advantages, samples=samples, weights=weights)
        assert cispo or (gradient[output.clipped_N] == 0).all()
        assert (gradient[~output.clipped_N] != 0).all()
        any_cut |= bool(output.clipped_N.any())

        order = torch.randperm(n).tolist()
        pick = [[values[i] for i in order] for values in (ratios, advantages, samples, weights)]
        mixed, mixed_gradient = run(name, ratios=pick[0], advantages=pick[1], samples=pick[2], weights=pick[3])
        if not cispo:  # its value, not its gradient, depends on logprobs, which `run` ties to the position
            assert mixed.loss.item() == pytest.approx(output.loss.item())
        assert mixed_gradient.tolist() == pytest.approx(gradient[order].tolist())

        cut_at = int(lengths[:2].sum())
        parts = [slice(0, cut_at), slice(cut_at, n)]
        split = [
            run(
                name,
                ratios=ratios[p],
                advantages=advantages[p],
                samples=[s % 2 if p.start == 0 else s - 2 for s in samples[p]],
                weights=weights[p],
            )
            for p in parts
        ]
        assert torch.cat([g for _, g in split]).tolist() == pytest.approx(gradient.tolist())
    assert any_cut
