"""The plan: how cores and batches are shared out."""

import dataclasses
from pathlib import Path

import pytest

from configs.schema import Config, GeneratorConfig, LearnerConfig, ModelConfig, RolloutConfig, RunConfig, TaskConfig
from rl.plan import _cgroup_quota, available_cores, make_plan


def config_with(*, staleness: int, ranks: int = 1, replicas: int = 1, threads: int = 0) -> Config:
    return Config(
        run=RunConfig(name="demo", threads=threads),
        model=ModelConfig(path="m"),
        tasks={"t": TaskConfig(kind="programs", env="code")},
        rollout=RolloutConfig(max_staleness=staleness, prompts_per_step=8, samples_per_prompt=4, workers=3),
        learner=LearnerConfig(ranks=ranks, optimizer_steps_per_batch=2, micro_batch_tokens=512),
        generator=GeneratorConfig(replicas=replicas),
    )


@pytest.mark.parametrize(
    ("cores", "staleness", "ranks", "replicas", "learner_threads", "generator_threads"),
    [
        (2, 0, 1, 1, 2, 2),  # strictly on-policy: the sides take turns
        (2, 0, 2, 1, 1, 2),
        (8, 0, 3, 2, 2, 4),
        (2, 1, 1, 1, 1, 1),  # side by side: the cores are split
        (9, 2, 1, 2, 5, 2),
        (8, 2, 4, 1, 1, 4),
        (1, 3, 1, 1, 1, 1),  # never less than one thread
        (1, 0, 4, 4, 1, 1),
    ],
)
def test_threads(cores: int, staleness: int, ranks: int, replicas: int, learner_threads: int, generator_threads: int) -> None:
    plan = make_plan(config_with(staleness=staleness, ranks=ranks, replicas=replicas), cores=cores)
    assert (plan.ranks, plan.replicas, plan.workers) == (ranks, replicas, 3)
    assert (plan.learner_threads, plan.generator_threads) == (learner_threads, generator_threads)
    assert (plan.busy_threads > cores) == any("warning" in line for line in plan.lines())


@pytest.mark.parametrize("staleness", [0, 1, 4])
@pytest.mark.parametrize("cores", [2, 3, 16, 64])
def test_no_more_busy_threads_than_cores_while_there_are_enough(cores: int, staleness: int) -> None:
    assert make_plan(config_with(staleness=staleness), cores=cores).busy_threads <= cores


def test_configured_threads_override_the_machine() -> None:
    assert make_plan(config_with(staleness=0, threads=5), cores=64).learner_threads == 5
    assert make_plan(config_with(staleness=0)).cores == available_cores() >= 1


def test_batch_arithmetic_in_four_numbers() -> None:
    plan = make_plan(config_with(staleness=0), cores=2)
    assert (plan.prompts_per_step, plan.samples_per_prompt, plan.optimizer_steps_per_batch, plan.micro_batch_tokens) == (8, 4, 2, 512)
    batch = next(line for line in plan.lines() if line.startswith("batch"))
    assert batch == "batch      8 prompts a step x 4 samples a prompt = 32 rollouts, in 2 optimizer steps of micro-batches up to 512 tokens"
    assert plan.to_json()["rollouts_per_step"] == 32
    assert plan.to_json()["ranks"] == dataclasses.asdict(plan)["ranks"] == 1


def test_container_quota(tmp_path: Path) -> None:
    assert _cgroup_quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert _cgroup_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    assert _cgroup_quota(tmp_path) == 2.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cgroup_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _cgroup_quota(tmp_path) == 1.5
