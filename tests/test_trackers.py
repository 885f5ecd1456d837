"""Trackers through their real libraries, offline."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import Config, LogConfig, ModelConfig, RunConfig, TaskConfig
from rl.log.metrics import EvalMetrics
from rl.trackers import eval_scalars, make_trackers, step_scalars
from tests.log_fakes import make_metrics

EVAL = EvalMetrics(step=2, time=5.0, split="heldout", source="sums", passed=8, graded=10)


def config(*, tensorboard: bool = False, wandb: bool = False) -> Config:
    return Config(
        run=RunConfig(name="quick"),
        model=ModelConfig(path="model"),
        tasks={"sums": TaskConfig(kind="reasoning_gym", env="math")},
        log=LogConfig(tensorboard=tensorboard, wandb=wandb),
    )


def test_none_by_default(tmp_path: Path) -> None:
    assert make_trackers(config(), tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_scalars_leave_out_what_has_no_value() -> None:
    found = dict(step_scalars(make_metrics(3, loss=float("nan"), drops={})))
    assert found["train/pass_rate/sums"] == 0.5 and found["train/phases/train"] == 0.8
    assert "train/loss" not in found and "train/step" not in found
    assert list(eval_scalars(replace(EVAL, passed=0, graded=0))) == []


def test_tensorboard_writes_events_and_hides_superseded_ones(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for restored, steps in ((0, (1, 2, 3)), (1, (2,))):
        (tracker,) = make_trackers(config(tensorboard=True), tmp_path, restored_step=restored)
        for step in steps:
            tracker.step(make_metrics(step, reward_mean=step + restored / 10))
        tracker.evaluated(EVAL)
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("train/reward_mean")] == [(1, 1.0), (2, 2.1)]
    assert events.Scalars("heldout/sums/pass_rate")[-1].value == pytest.approx(0.8)


def test_wandb_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tracker,) = make_trackers(config(wandb=True), tmp_path)
    tracker.step(make_metrics(1))
    tracker.evaluated(EVAL)
    tracker.close()
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert b"train/pass_rate/sums" in content and b"heldout/sums/pass_rate" in content


def test_a_bad_wandb_mode_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "maybe")
    with pytest.raises(ValueError, match="WANDB_MODE is 'maybe'"):
        make_trackers(config(wandb=True), tmp_path)


@pytest.mark.parametrize(("package", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        make_trackers(config(**{package: True}), tmp_path)
