"""Two runs compared at equal tokens, over logs that the writers made."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from environments.records import Message, Problem, Task
from rewards.score import Score, ScoreStatus
from rl.log.compare import RunComparison, TokenCount, compare_runs, comparison_table
from rl.log.metrics import MetricsWriter
from rl.log.query import RunLog
from rl.log.runs import RunPaths, prepare_run
from rl.log.writer import LearnerWriter, RolloutWriter
from tests.log_fakes import make_group, make_metrics, make_rollout, make_sample, make_stats

Outcomes = Mapping[str, Sequence[bool | None]]
"""Task: each sample passed, failed, or has no verdict."""


def make_run(root: Path, *, tokens: Sequence[int], evaluations: Mapping[int, Outcomes], source: str = "sums") -> Path:
    """A run of `len(tokens)` steps with the held-out evaluations of some versions."""
    identity = prepare_run(root)
    with RolloutWriter(root, run_id=identity.run_id, attempt=1, writer="w0", tokens=False) as writer:
        for version, outcomes in evaluations.items():
            for index, (task, samples) in enumerate(outcomes.items()):
                group_id = f"h{version:06d}s0-{index:06d}"
                scores = [_score(passed) for passed in samples]
                rollouts = [make_rollout(f"{group_id}-{i}", sample=i, score=score) for i, score in enumerate(scores)]
                asked = Task(id=task, env="math", prompt=(Message(role="user", content=task),))
                problem = Problem(task=asked, reference={"answer": "4"}, source=source)
                group = make_group(index, version=version, rollouts=rollouts, split="heldout")
                writer.write_group(replace(group, group_id=group_id, problem=problem))
    with LearnerWriter(root, attempt=1) as learner, MetricsWriter(RunPaths(root=root).metrics, attempt=1, restored_step=0) as metrics:
        for step, count in enumerate(tokens, start=1):
            group = make_group(step, version=step - 1)
            samples = [make_sample(group.rollouts[0], group_index=step)]
            learner.write_step(train_step=step, groups=[group], samples=samples, stats=[make_stats(samples)])
            metrics.step(make_metrics(step, tokens=count))
    return root


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
    assert found.tokens == 400
    assert (found.first.step, found.first.tokens, found.first.total_tokens) == (4, 400, 400)
    assert (found.second.step, found.second.tokens, found.second.total_tokens) == (1, 300, 1200)
    (sums,) = found.sources
    assert (sums.first.value, sums.second.value, sums.difference.difference, sums.difference.p_value) == (0.75, 0.75, 0.0, 1.0)
    by_trained = compared(slow, fast, TokenCount.TRAINED)  # as many steps on as many tokens
    assert (by_trained.first.step, by_trained.second.step) == (4, 4)
    (sums,) = by_trained.sources
    assert sums.difference.difference == pytest.approx(0.125 - 0.75)
    assert sums.difference.high < 0 and sums.difference.p_value < 0.01
    text = comparison_table(found)
    assert "at 400 sampled tokens" in text and "fast, version 1 at 300 of its 1,200 tokens" in text and "over 40 problems" in text


def test_ungraded_samples_are_told_and_unpaired_problems_left_out(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", tokens=[100], evaluations={1: {"t0": [True, None], "t1": [None, None], "t2": [False, False]}})
    second = make_run(tmp_path / "b", tokens=[100], evaluations={1: {"t0": [True, True], "t1": [True, True], "t3": [True, True]}})
    (sums,) = compared(first, second).sources
    assert (sums.first.value, sums.first.problems, sums.first.ungraded) == (pytest.approx(1 / 3), 2, 3)
    assert (sums.difference.problems, sums.difference.left_out) == (1, 3)
    text = comparison_table(compared(first, second))
    assert "(3 ungraded)" in text and "too few problems to tell" in text and "3 without a verdict on both sides" in text


def test_runs_that_cannot_be_compared_are_refused_with_the_reason(tmp_path: Path) -> None:
    outcomes = {"t0": [True], "t1": [False]}
    sums = make_run(tmp_path / "sums", tokens=[100], evaluations={1: outcomes})
    others = make_run(tmp_path / "words", tokens=[100], evaluations={1: outcomes}, source="words")
    late = make_run(tmp_path / "late", tokens=[500], evaluations={1: outcomes})
    with pytest.raises(ValueError, match="sums holds out sums and words holds out words"):
        compared(sums, others)
    with pytest.raises(ValueError, match=r"run late has no evaluation .* within 100 sampled tokens"):
        compared(sums, late)
