"""Intervals and comparisons against published values, closed forms and simulated evaluations."""

import math
from itertools import combinations

import numpy as np
import pytest

from rl.statistics import Tally, paired_bootstrap, pass_at_k, pass_rate, wilson_interval


def test_wilson_interval_against_published_values() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_with_a_success() -> None:
    for graded, passed in ((5, 0), (5, 2), (6, 3), (4, 4), (7, 1)):
        marks = [True] * passed + [False] * (graded - passed)
        for k in range(1, graded + 1):
            chosen = list(combinations(marks, k))
            exact = sum(map(any, chosen)) / len(chosen)
            assert pass_at_k([Tally(passed=passed, graded=graded)], k=k).value == pytest.approx(exact)


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    value = pass_at_k([Tally(passed=3, graded=5000)], k=1000).value
    assert value == pytest.approx(1 - math.comb(4997, 1000) / math.comb(5000, 1000))


def test_ungraded_samples_count_neither_as_failures_nor_as_successes() -> None:
    with_failures_of_infrastructure = [Tally(passed=2, graded=2, ungraded=2), Tally(passed=0, graded=0, ungraded=4)]
    estimate = pass_rate(with_failures_of_infrastructure)
    assert (estimate.value, estimate.problems, estimate.left_out, estimate.ungraded) == (1.0, 1, 1, 6)
    four = pass_at_k([*with_failures_of_infrastructure, Tally(passed=1, graded=4)], k=4)
    assert (four.value, four.problems, four.left_out, four.ungraded) == (1.0, 1, 2, 6)
    nothing = pass_rate([Tally(passed=0, graded=0, ungraded=4)])
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0.0, 1.0)


def test_pass_rate_with_one_sample_a_problem_has_the_interval_of_wilson() -> None:
    estimate = pass_rate([Tally(passed=1, graded=1)] * 81 + [Tally(passed=0, graded=1)] * 182)
    assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(81, 263))


def test_samples_that_only_repeat_their_problem_narrow_nothing() -> None:
    estimate = pass_rate([Tally(passed=8, graded=8)] * 30 + [Tally(passed=0, graded=8)] * 70)
    assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(30, 100), abs=2e-3)
    none = pass_rate([Tally(passed=0, graded=8)] * 100)
    assert (none.low, none.high) == pytest.approx(wilson_interval(0, 100))


def test_intervals_of_repeated_samples_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(7)
    truth_at_4 = 1 - 0.8 * 1.8 * 2.8 * 3.8 / (1.2 * 2.2 * 3.2 * 4.2)  # 1 - E[(1 - p)^4] of p ~ Beta(0.4, 0.8)
    repeats, clustered, plain, at_4 = 400, 0, 0, 0
    for _ in range(repeats):
        tallies = [Tally(passed=int(generator.binomial(8, p)), graded=8) for p in generator.beta(0.4, 0.8, size=60)]
        estimate = pass_rate(tallies)
        clustered += estimate.low <= 1 / 3 <= estimate.high
        low, high = wilson_interval(sum(tally.passed for tally in tallies), 8 * len(tallies))
        plain += low <= 1 / 3 <= high
        four = pass_at_k(tallies, k=4, draws=400)
        at_4 += four.low <= truth_at_4 <= four.high
    assert 0.92 <= clustered / repeats <= 0.98
    assert plain / repeats < 0.8  # what ignoring the problems would do
    assert 0.92 <= at_4 / repeats <= 0.98


def test_paired_bootstrap_agrees_with_the_normal_theory_of_the_mean_difference() -> None:
    generator = np.random.default_rng(3)
    first = {str(i): float(value) for i, value in enumerate(generator.uniform(size=400))}
    second = {name: value + float(generator.normal(0.02, 0.2)) for name, value in first.items()}
    gaps = np.asarray([second[name] - first[name] for name in first])
    error = gaps.std(ddof=1) / math.sqrt(gaps.size)
    found = paired_bootstrap(first, second)
    assert found.difference == pytest.approx(gaps.mean())
    assert (found.low, found.high) == pytest.approx((gaps.mean() - 1.96 * error, gaps.mean() + 1.96 * error), abs=0.1 * error)
    assert found.p_value == pytest.approx(math.erfc(abs(gaps.mean()) / error / math.sqrt(2)), abs=0.02)
    mirrored = paired_bootstrap(second, first)
    assert mirrored.difference == pytest.approx(-found.difference)
    assert mirrored.p_value == pytest.approx(found.p_value, abs=0.02)
    assert paired_bootstrap(first, second) == found  # seeded


def test_paired_bootstrap_rejects_equal_policies_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    rejected, covered, repeats = 0, 0, 400
    for _ in range(repeats):
        chances = generator.beta(0.5, 0.5, size=50)
        one, other = ({str(i): generator.binomial(4, p) / 4 for i, p in enumerate(chances)} for _ in range(2))
        found = paired_bootstrap(one, other, draws=500)
        rejected += found.p_value < 0.05
        covered += found.low <= 0 <= found.high
    assert 0.02 <= rejected / repeats <= 0.09
    assert 0.91 <= covered / repeats <= 0.98


def test_paired_bootstrap_counts_what_it_cannot_pair() -> None:
    found = paired_bootstrap({"a": 0.0, "b": 1.0, "c": math.nan, "d": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0, "e": 0.0}, draws=100)
    assert (found.problems, found.left_out) == (2, 3)
    assert (found.first, found.second, found.difference) == (0.5, 1.0, 0.5)
    single = paired_bootstrap({"a": 0.0}, {"a": 1.0})
    assert (single.low, single.high, single.p_value) == (-math.inf, math.inf, 1.0)
    assert math.isnan(paired_bootstrap({}, {"a": 1.0}).difference)


def test_paired_bootstrap_of_equal_evaluations_finds_nothing() -> None:
    same = {str(i): float(i % 2) for i in range(20)}
    found = paired_bootstrap(same, same, draws=200)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_pass_at_k_refuses_no_samples() -> None:
    with pytest.raises(ValueError, match="k=0"):
        pass_at_k([Tally(passed=1, graded=1)], k=0)
