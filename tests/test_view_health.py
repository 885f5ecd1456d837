"""The sentences on a run's health: each appears when it should, names since when, and stays away otherwise."""

import math
from dataclasses import replace

import pytest

from rl.log.alive import RunState
from rl.log.metrics import EvalMetrics, Metrics
from rl.view.curves import curves, mark
from rl.view.health import RecentRollouts, VersionGroups, findings
from rl.view.open_run import Standing
from rl.view.render import number, percent, shown, shown_line, spark
from tests.log_fakes import make_metrics

LIVE = Standing(state=RunState.LIVE, why="", idle_seconds=1.0, step=60, total_steps=100)


def steps(n: int = 60, **changes: object) -> Metrics:
    return Metrics(steps=tuple(make_metrics(step, phases={"rollout": 1.0, "train": 3.0}, **changes) for step in range(1, n + 1)))


def texts(metrics: Metrics, *, state: Standing = LIVE, recent: RecentRollouts | None = None) -> list[str]:
    return [finding.text for finding in findings(metrics, state=state, recent=recent)]


def rollouts(*, total: int = 100, stops: dict[str, int] | None = None, infra: list[tuple[str, str, int]] | None = None) -> RecentRollouts:
    return RecentRollouts(first_version=40, total=total, by_stop=stops or {"done": total}, infra=infra or [])


def varied(shares: list[float]) -> RecentRollouts:
    groups = [VersionGroups(version=v, groups=100, same=round(100 * s), all_won=0, none_won=round(100 * s)) for v, s in enumerate(shares)]
    return RecentRollouts(first_version=0, total=100, by_stop={}, infra=[], groups=groups)


def test_a_sound_run_has_no_sentence() -> None:
    assert texts(steps(), recent=rollouts()) == []
    assert texts(steps(), recent=varied([0.2] * 50)) == []


def test_silence_is_told_with_what_is_usual() -> None:
    late = replace(LIVE, idle_seconds=100.0)
    assert texts(steps(), state=late) == ["No step for 2 min; usually one takes 4.0 s."]
    gone = replace(LIVE, state=RunState.DIED, idle_seconds=7200.0)
    assert texts(steps(), state=gone)[0].startswith(
        "The run is over after step 60 of 100: its process went away without a word, 2.0 h ago."
    )


def test_zero_variance_says_since_when() -> None:
    (text,) = texts(steps(), recent=varied([0.1] * 30 + [0.62] * 30))
    assert text.startswith("62% of groups had zero variance in the last 20 policy versions, since version 4")
    assert text.endswith("in 0% all rollouts won, in 62% none did.")


def test_stale_groups_are_told() -> None:
    sound, late = steps(30, drops={"stale": 0}).steps, steps(60, drops={"stale": 2, "zero_variance": 5}).steps[30:]
    (text,) = texts(Metrics(steps=(*sound, *late)))
    assert text.startswith("33% of groups were dropped as stale, since step 3")
    assert texts(steps(drops={"zero_variance": 50, "overlong": 9})) == []


def test_records_that_the_log_left_out_are_told() -> None:
    early = (*steps(4).steps, make_metrics(5, log_dropped={"tokens": 1200, "spans": 7}), *steps(60).steps[5:])
    (text,) = texts(Metrics(steps=tuple(replace(step, phases={}) for step in early)))
    assert text.startswith("The log left optional records out, first in step 5: tokens 1,200, spans 7.")
    assert texts(steps(log_dropped={"tokens": 0})) == []


def test_infrastructure_is_named() -> None:
    (text,) = texts(steps(), recent=rollouts(infra=[("code", "TimeoutError", 3), ("math", "OSError", 0)]))
    assert text == "3.0% of recent rollouts ended as infra: TimeoutError in code."
    assert texts(steps(), recent=rollouts(total=10, infra=[("code", "TimeoutError", 3)])) == []


def test_flags_are_counted() -> None:
    recent = replace(rollouts(total=2000), flags=[("tests_edited", 1200), ("repetition", 3)])
    (text,) = texts(steps(), recent=recent)
    assert text == "Flags on the 2,000 rollouts of the last 20 policy versions: tests_edited 1,200, repetition 3."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip_fraction": 0.5}, "50% of trained tokens are clipped"),
        ({"kl": 0.05, "staleness_max": 0}, "an engine mismatch"),
        ({"loss": math.nan}, "not finite in 60 steps, first in step 1"),
        ({"phases": {"rollout": 3.92}}, "waits for rollouts 98% of the time"),
    ],
)
def test_a_number_out_of_range_is_told(changes: dict[str, object], words: str) -> None:
    metrics = Metrics(steps=tuple(make_metrics(step, **{"phases": {"rollout": 1.0}, **changes}) for step in range(1, 61)))
    (text,) = texts(metrics)
    assert words in text


def test_changes_over_training_are_told() -> None:
    def curve(name: str, early: float, late: float) -> Metrics:
        sound = {"phases": {"rollout": 1.0}}
        return Metrics(steps=tuple(make_metrics(step, **{**sound, name: early if step <= 60 else late}) for step in range(1, 81)))

    assert "Entropy fell to 0.1 nats" in texts(curve("entropy", 0.9, 0.1))[0]
    assert "longer: 300 sampled tokens, against 100" in texts(curve("response_length", 100.0, 300.0))[0]
    assert "Mean reward fell from 0.8" in texts(curve("reward_mean", 0.8, 0.2))[0]
    assert texts(curve("reward_mean", 0.2, 0.8)) == []


def test_held_out_down_is_told_only_beyond_the_intervals() -> None:
    def run(last: int) -> Metrics:
        lines = [(10, 80), (60, last)]
        evals = tuple(EvalMetrics(step=s, time=0.0, split="heldout", source="sums", passed=n, graded=100) for s, n in lines)
        return Metrics(steps=steps().steps, evals=evals)

    assert texts(run(75)) == []
    (text,) = texts(run(50))
    assert text == "Held-out pass rate of sums fell from 80.0% at step 10 to 50.0% at step 60."


def test_curves_send_only_what_is_new() -> None:
    first, then = steps(50), steps(53)
    new = curves(then, seen=mark(first))
    assert (new["from"], new["x"]) == (50, [51, 52, 53])
    assert all(len(series["values"]) == 3 for chart in new["charts"] for series in chart["series"])
    assert curves(then, seen="7.50.0")["from"] == 0


def test_text_is_escaped_shortened_and_made_visible() -> None:
    assert shown("<b>&\x07\u202e") == '&lt;b&gt;&amp;<span class="unseen">\\x07</span><span class="unseen">\\u202e</span>'
    assert shown("a\nb\tc") == "a\nb\tc"
    assert shown("x" * 50_000, 10) == "x" * 10
    assert shown("a\u00a0b") == 'a<span class="unseen">\\u00a0</span>b'
    assert shown_line("one\n  two " * 100, 12) == "one two one …"
    assert shown(None) == ""


def test_numbers_are_rounded_as_elsewhere() -> None:
    assert [number(0.3125), number(2.0), number(1234.2), number(1e-5)] == ["0.313", "2", "1,234", "1e-05"]
    assert [percent(265 / 400), percent(297 / 400), percent(1.0), percent(0.0004, 2)] == ["66.2%", "74.3%", "100.0%", "0.04%"]


def test_a_curve_in_miniature_stays_in_its_box() -> None:
    points = [tuple(map(float, pair.split(","))) for pair in spark([math.nan, *range(500)]).split()]
    assert len(points) <= 130
    assert all(0 <= x <= 120 and 0 <= y <= 28 for x, y in points)
    assert spark([1.0]) == ""
