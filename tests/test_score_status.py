"""Rollouts without a reward, from the grader to the log, the progress line, the evaluation and the summary; never as a 0."""

import json
import math
import re
from pathlib import Path

import pytest

from rewards.score import Score, ScorePart, ScoreStatus
from rl.evaluate import EvalReport, PassRate, _pass_rate
from rl.log.query import RunLog
from rl.rollout import GroupOutcome
from rl.score_details import ScoreDetails
from rl.statistics import Tally
from tests.fakes import make_group, make_problem
from tests.ring import make_tiny_model, metrics, rl, write_config
from tests.test_rollout import make_job

MOODY = "tests.data.moody"


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run whose judge is moody, and what the run printed."""
    folder = tmp_path_factory.mktemp("moody")
    task = {
        "kind": "programs",
        "env": f"{MOODY}:Moody",
        "reward": f"{MOODY}:moody + 0.5*digits",
        "heldout": 8,
        "options": {"kind": "addition"},
    }
    config = write_config(
        folder,
        model=make_tiny_model(folder / "model"),
        run={"steps": 2},
        tasks={"digits": task},
        rollout={"retries": 1, "prompts_per_step": 6},
    )
    return folder / "runs" / "tiny", rl("train", config)


def test_the_progress_line_and_the_summary_count_them(moody: tuple[Path, str]) -> None:
    run, output = moody
    counted = {name: sum(step.drops.get(name, 0) for step in metrics(run).steps) for name in ("infra", "ungradable")}
    assert all(counted.values())
    for step, line in zip(metrics(run).steps, re.findall(r"^step \d/2 .*$", output, re.M), strict=True):
        assert all(f"{name} {count}" in line.partition("drops")[2] for name, count in step.drops.items())
    assert f"training rollouts without a reward: infra {counted['infra']}, ungradable {counted['ungradable']}" in output


def test_the_log_has_their_status_and_no_reward(moody: tuple[Path, str]) -> None:
    with RunLog(moody[0]) as log:
        rows = list(log.query("SELECT status, count(*), count(reward), min(len(map_keys(parts))) FROM rollouts GROUP BY ALL").rows)
        reasons = list(log.query("SELECT DISTINCT drop_reason FROM learner WHERE NOT admitted").rows)
        trainable = "group_id IN (SELECT group_id FROM rollouts GROUP BY ALL HAVING count(reward) > 1)"
        ((mean,),) = log.query(f"SELECT avg(reward) FROM rollouts WHERE split = 'train' AND dispatch_version = 0 AND {trainable}").rows
    counts = {status: (count, rewards, parts) for status, count, rewards, parts in rows}
    assert set(counts) == {"ok", "policy_fail", "infra", "ungradable"}
    assert all((rewards == 0) == (status in ("infra", "ungradable")) for status, (_, rewards, _) in counts.items())
    assert counts["ok"][2] == 2 and counts["infra"][2] == 1, "the part that was graded is kept"
    assert {"infra", "ungradable"} & {reason for (reason,) in reasons}
    assert mean == pytest.approx(metrics(moody[0]).steps[0].reward_mean), "the mean is over graded rollouts"


def test_the_evaluation_counts_them_apart(moody: tuple[Path, str]) -> None:
    run, output = moody
    with RunLog(run) as log:
        ((graded, ungraded, infra, ungradable),) = log.query(
            "SELECT sum(graded), sum(ungraded), sum(infra), sum(ungradable) FROM evals WHERE step = 0"
        ).rows
    assert graded + ungraded == 8 and infra + ungradable == ungraded > 0
    assert re.search(r"heldout digits at step 0: .* ungraded \((infra|ungradable) \d", output)


def test_an_evaluation_without_a_verdict_is_not_a_rate_of_zero() -> None:
    group = make_group(0, rewards=(None, 1.0, None))
    rate = _pass_rate(GroupOutcome(job=make_job(make_problem(), tokens=1), group=group))
    assert (rate.passed, rate.graded, rate.ungraded, rate.infra, rate.ungradable) == (1, 1, 2, 2, 0)
    both = rate + PassRate(by_problem={"other": Tally(passed=0, graded=0, ungraded=3)}, ungradable=2)
    assert (both.infra, both.ungradable, both.value) == (2, 2, 1.0)
    report = EvalReport(step=3, by_env={"sums": both}, mean_tokens=1.0)
    assert "1/1 passed, 5 ungraded (infra 2, ungradable 2, prompt too long 1)" in report.table()
    assert json.loads(json.dumps(report.to_json()))["by_env"]["sums"]["infra"] == 2


def test_an_evaluation_has_the_means_of_the_components_and_the_kinds_of_failures() -> None:
    def graded(value: float, reason: str = "") -> Score:
        status = ScoreStatus.POLICY_FAIL if reason else ScoreStatus.OK
        return Score(reward=value, status=status, parts={"state": ScorePart(value=value), "odd": ScorePart(value=math.nan)}, reason=reason)

    ungraded = Score(reward=None, status=ScoreStatus.INFRA, parts={"state": ScorePart(value=0.0)}, reason="no sandbox")
    first = ScoreDetails.of("a", [graded(1.0), graded(0.0, "line 3 is 'x' instead of 'it\\'s'"), ungraded])
    whole = first + ScoreDetails.of("b", [graded(0.0, "line 12 is 'yy' instead of 'z'"), graded(0.0, "\x1b: no block")])
    (mean,) = whole.to_json()["parts"].values()
    assert mean["mean"] == 0.25 and mean["problems"] == 2 and mean["interval_95"] == [0.0, 0.5]
    assert whole.failures == {"line … is … instead of …": 2, "\x1b: no block": 1}
    assert PassRate(by_problem={}, details=whole).lines("t")[1:] == [
        "    state              0.250  [0.000, 0.500]  2 problems",
        "    2 failed: line … is … instead of …",
        "    1 failed: \\x1b: no block",
    ]
