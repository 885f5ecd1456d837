"""Two runs compared at equal tokens, over logs that the writers made."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from environments.records import Message, Problem, Task
from rewards.score import Score, ScoreStatus
from rl.log.compare import RunComparison, TokenCount, compare_runs, training_window
from rl.log.metrics import EvalMetrics, MetricsWriter
from rl.log.query import RunLog
from rl.log.runs import RunPaths, prepare_run
from rl.log.writer import LearnerWriter, RolloutWriter
from rl.records import RolloutGroup
from tests.log_fakes import make_group, make_metrics, make_rollout, make_sample, make_stats, make_turn

Outcomes = Mapping[str, Sequence[bool | None]]
"""Task: each sample passed, failed, or has no verdict."""
LEARNED = 2
"""Tokens of a step that the learner took."""


def make_run(
    root: Path,
    *,
    tokens: Sequence[int],
    evaluations: Mapping[int, Outcomes],
    source: str = "sums",
    resumed: int | None = None,
    answer: str = "4",
) -> Path:
    """A run, or its second attempt from step `resumed` on: a step for each of `tokens`, of whose rollouts the first one of `LEARNED` tokens
    is trained on, and the held-out evaluations of some versions."""
    identity = prepare_run(root, resume=resumed is not None)
    attempt, restored = identity.attempt, resumed or 0
    with ExitStack() as stack:
        writer = stack.enter_context(RolloutWriter(root, run_id=identity.run_id, attempt=attempt, writer="w0", tokens=False))
        learner = stack.enter_context(LearnerWriter(root, attempt=attempt))
        metrics = stack.enter_context(MetricsWriter(RunPaths(root=root).metrics, attempt=attempt, restored_step=restored))
        for version in range(restored, restored + len(tokens) + 1):
            if version > restored:
                count = tokens[version - restored - 1]
                group = training(version, tokens=(LEARNED, count - LEARNED), source=source)
                writer.write_group(group)
                samples = [make_sample(group.rollouts[0], group_index=version)]
                learner.write_step(train_step=version, groups=[group], samples=samples, stats=[make_stats(samples)])
                metrics.step(make_metrics(version))
            if version in evaluations:
                for group in evaluation(version, evaluations[version], source=source, answer=answer):
                    writer.write_group(group)
                metrics.evaluated(EvalMetrics(step=version, time=0.0, split="heldout", source=source, passed=0, graded=0))
    return root


def training(step: int, *, tokens: Sequence[int], source: str = "sums") -> RolloutGroup:
    """A group that was started for step `step`, one rollout for each number of `tokens`; the first one passed."""
    turns = [[make_turn(context=[1], sampled=[7] * n)] for n in tokens]
    rollouts = [make_rollout(f"{step:08d}-{i}", sample=i, turns=own, score=_score(i == 0)) for i, own in enumerate(turns)]
    group = make_group(step, version=step - 1, rollouts=rollouts)
    return replace(group, problem=replace(group.problem, source=source))


def evaluation(version: int, outcomes: Outcomes, *, source: str, answer: str) -> list[RolloutGroup]:
    groups = []
    for index, (task, samples) in enumerate(outcomes.items()):
        group_id = f"h{version:06d}s0-{index:06d}"
        rollouts = [make_rollout(f"{group_id}-{i}", sample=i, score=_score(passed)) for i, passed in enumerate(samples)]
        asked = Task(id=task, env="math", prompt=(Message(role="user", content=task),))
        problem = Problem(task=asked, reference={"answer": answer}, source=source)
        group = make_group(index, version=version, rollouts=rollouts, split="heldout")
        groups.append(replace(group, group_id=group_id, problem=problem))
    return groups


def _score(passed: bool | None) -> Score:
    if passed is None:
        return Score(reward=None, status=ScoreStatus.INFRA, reason="the sandbox did not answer")
    return Score(reward=float(passed), status=ScoreStatus.OK if passed else ScoreStatus.POLICY_FAIL)


def compared(first: Path, second: Path, by: TokenCount = TokenCount.SAMPLED) -> RunComparison:
    with RunLog(first) as one, RunLog(second) as other:
        return compare_runs(one, other, names=(first.name, second.name), by=by)


def test_runs_are_compared_where_both_had_sampled_as_much(tmp_path: Path) -> None:
    poor, good = {f"t{i}": [False, i % 4 == 0] for i in range(40)}, {f"t{i}": [True, i % 2 == 0] for i in range(40)}
    slow = make_run(tmp_path / "slow", tokens=[100] * 4, evaluations={0: poor, 2: poor, 4: good})
    fast = make_run(tmp_path / "fast", tokens=[300] * 4, evaluations={0: poor, 1: good, 2: poor, 4: poor})
    found = compared(slow, fast)
    assert found.tokens == 400 and found.no_heldout == ""
    assert (found.first.evaluated, found.first.tokens, found.first.total_tokens) == (4, 400, 400)
    assert (found.second.evaluated, found.second.tokens, found.second.total_tokens) == (1, 300, 1200)
    assert (found.first.training, found.second.training) == ((3, 3), (0, 0))
    held, trained = found.sources
    assert (held.split, trained.split) == ("heldout", "train")
    assert (held.first.value, held.second.value, held.difference.difference, held.difference.p_value) == (0.75, 0.75, 0.0, 1.0)
    assert (held.difference.problems, held.changed) == (40, 0)
    assert (trained.first.value, trained.second.value, trained.difference.problems) == (0.5, 0.5, 0), "each step had a task of its own"
    by_trained = compared(slow, fast, TokenCount.TRAINED)  # as many steps on as many tokens
    assert by_trained.tokens == 4 * LEARNED
    assert (by_trained.first.evaluated, by_trained.second.evaluated) == (4, 4)
    assert (by_trained.first.training, by_trained.second.training) == ((3, 3), (3, 3))
    held, trained = by_trained.sources
    assert held.difference.difference == pytest.approx(0.125 - 0.75)
    assert held.difference.high < 0 and held.difference.p_value < 0.01
    assert trained.difference.problems == 1


def test_rejected_rollouts_cost_as_much_and_later_ones_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tokens=[100, 100], evaluations={1: {"t0": [True]}, 2: {"t0": [True]}})
    with RolloutWriter(run, run_id="r", attempt=1, writer="w1", tokens=False) as writer:
        writer.write_group(replace(training(1, tokens=(30,)), group_id="rejected"))
        writer.write_group(training(3, tokens=(1000,)))  # on its way when the run ended
    found = compared(run, run)
    assert (found.first.tokens, found.first.total_tokens) == (230, 230)
    assert compared(run, run, TokenCount.TRAINED).tokens == 2 * LEARNED


def test_a_run_that_goes_on_is_compared_at_its_last_whole_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tokens=[100, 100], evaluations={1: {"t0": [True], "t1": [False]}})
    with RolloutWriter(run, run_id="r", attempt=1, writer="w1", tokens=False) as writer:  # the quick answers to the next one
        for group in evaluation(2, {"t0": [True]}, source="sums", answer="4"):
            writer.write_group(group)
    found = compared(run, run)
    assert (found.first.evaluated, found.sources[0].first.value) == (1, 0.5)


def test_what_a_resumed_run_did_again_counts_once(tmp_path: Path) -> None:
    """The first attempt had come further than the second one has: what it did beyond the checkpoint is no part of any policy."""
    run = make_run(tmp_path / "run", tokens=[100] * 4, evaluations={1: {"t0": [True]}, 3: {"t0": [True]}})
    make_run(run, resumed=1, tokens=[50, 50], evaluations={2: {"t0": [False]}})
    with RolloutWriter(run, run_id="r", attempt=1, writer="w1", tokens=False) as writer:  # never done again: in async runs it may be so
        writer.write_group(replace(training(3, tokens=(1000,)), group_id="beyond"))
    found = compared(run, run)
    assert (found.first.total_tokens, found.first.evaluated, found.first.tokens) == (200, 2, 150)
    assert found.sources[0].first.value == 0.0
    assert found.first.training == (2, 2)
    assert compared(run, run, TokenCount.TRAINED).tokens == 3 * LEARNED


def test_ungraded_samples_are_told_and_unpaired_problems_left_out(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", tokens=[100], evaluations={1: {"t0": [True, None], "t1": [None, None], "t2": [False, False]}})
    second = make_run(tmp_path / "b", tokens=[100], evaluations={1: {"t0": [True, True], "t1": [True, True], "t3": [True, True]}})
    held, _ = compared(first, second).sources
    assert (held.first.value, held.first.problems, held.first.ungraded) == (pytest.approx(1 / 3), 2, 3)
    assert (held.difference.problems, held.difference.left_out) == (1, 3)


def test_problems_whose_content_has_changed_are_told(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", tokens=[100], evaluations={1: {"t0": [True], "t1": [None]}})
    second = make_run(tmp_path / "b", tokens=[100], evaluations={1: {"t0": [True], "t1": [True]}}, answer="5")
    held, trained = compared(first, second).sources
    assert (held.difference.problems, held.changed) == (1, 1), "one of them is not compared"
    assert (trained.difference.problems, trained.changed) == (1, 0)


def test_why_held_out_problems_cannot_be_compared(tmp_path: Path) -> None:
    outcomes = {"t0": [True], "t1": [False]}
    sums = make_run(tmp_path / "sums", tokens=[100], evaluations={1: outcomes})
    others = make_run(tmp_path / "words", tokens=[100], evaluations={1: outcomes}, source="words")
    late = make_run(tmp_path / "late", tokens=[500], evaluations={1: outcomes})
    found = compared(sums, others)
    assert "sums holds out sums and words holds out words" in found.no_heldout
    assert [(one.source, one.split, one.shared) for one in found.sources][:2] == [("sums", "heldout", False), ("words", "heldout", False)]
    found = compared(sums, late)
    assert "run late has no evaluation of held-out problems within 100 sampled tokens" in found.no_heldout
    assert found.second.evaluated is None and [one.split for one in found.sources if one.shared] == ["train"]
    empty = make_run(tmp_path / "empty", tokens=[], evaluations={})
    found = compared(empty, empty)
    assert (found.tokens, found.sources, found.first.training) == (0, (), None)
    assert found.no_heldout.startswith("neither run has an evaluation")


def test_the_last_quarter_of_a_budget() -> None:
    costs = (0, 100, 200, 300, 400)
    assert [training_window(costs, budget) for budget in (400, 399, 250, 100, 50, 0)] == [(3, 3), (2, 2), (1, 1), (0, 0), (0, 0), None]
    even = range(9)
    assert training_window(even, 8) == (6, 7)
    assert training_window((0,), 8) is None
    assert training_window((0, 8, 8, 8), 8) == (0, 2), "steps that cost nothing"
