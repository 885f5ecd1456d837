"""The ring with real buffer, advantages and batches, and fakes that force an order of events."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Config, EvalConfig, FilterConfig, ModelConfig, RolloutConfig, RunConfig, SamplingConfig, TaskConfig
from environments.records import Problem
from environments.sources.mixture import MixtureState
from rl.buffer import Buffer, Rejection
from rl.checkpoint import Checkpoints, LoopState
from rl.errors import PartDied, RunFailed
from rl.evaluate import EvalReport
from rl.filters import get_door, put_door, unfit_rollout
from rl.loop import Loop, StepResult
from rl.records import Sampling, Span
from tests.fakes import FakeGenerators, FakeLearner, FakeRollouts, make_problem


class FakeMixture:
    """Problem i at index i; one held-out problem."""

    def __init__(self) -> None:
        self.index = 0

    def next(self) -> tuple[int, Problem]:
        self.index += 1
        return self.index - 1, make_problem(f"t{self.index - 1}")

    def state(self) -> MixtureState:
        return MixtureState(next_index=self.index, fingerprint="fake")

    def restore(self, state: MixtureState) -> None:
        self.index = state.next_index

    def heldout(self) -> tuple[Problem, ...]:
        return (make_problem("heldout"),)


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.steps: list[StepResult] = []
        self.reports: list[EvalReport] = []
        self.said: list[str] = []
        self.turned_away: list[int] = []

    def rejected(self, rejections: Sequence[Rejection], *, step: int) -> None:
        self.turned_away += [rejection.group.index for rejection in rejections]

    def step(self, result: StepResult) -> None:
        self.steps.append(result)

    def evaluated(self, report: EvalReport) -> None:
        self.reports.append(report)

    def span(self, span: Span) -> None:
        pass

    def waiting(self, reason: str) -> None:
        self.said.append(reason)

    def say(self, message: str) -> None:
        self.said.append(message)


def make_config(*, steps: int = 3, staleness: int = 0, timeout: float = 5.0, patience: int = 20, resample: bool = False) -> Config:
    return Config(
        run=RunConfig(name="t", steps=steps),
        model=ModelConfig(path="m"),
        tasks={"fake": TaskConfig(kind="programs", env="math")},
        sampling=SamplingConfig(max_tokens=8),
        rollout=RolloutConfig(prompts_per_step=2, samples_per_prompt=2, max_staleness=staleness, timeout=timeout),
        filters=FilterConfig(zero_variance="resample" if resample else "skip", zero_variance_patience=patience),
        evaluation=EvalConfig(every=0),
    )


class Ring:
    """A loop and everything around it."""

    def __init__(self, config: Config, folder: Path, *, rewards: Any = None) -> None:
        self.learner, self.generators, self.rollouts = FakeLearner(), FakeGenerators(), FakeRollouts(rewards)
        self.mixture, self.observer = FakeMixture(), Recorder()
        self.checkpoints = Checkpoints(folder, keep=2)
        self.buffer = Buffer(
            batch_size=config.rollout.prompts_per_step,
            max_staleness=config.rollout.max_staleness,
            put_door=put_door(config, vocab_size=128),
            get_door=get_door(config),
        )
        self.loop = Loop(
            config,
            mixture=self.mixture,  # type: ignore[arg-type]
            sampling=Sampling(max_tokens=8),
            learner=self.learner,
            generators=self.generators,
            rollouts=self.rollouts,
            buffer=self.buffer,
            checkpoints=self.checkpoints,
            observer=self.observer,
            unfit=unfit_rollout(config.filters, vocab_size=128),
            config_fingerprint="same",
        )

    def run(self, during: Callable[["Ring"], Any] | None = None) -> None:
        async def body() -> None:
            main = asyncio.create_task(self.loop.run())
            if during is not None:
                await during(self)
            await asyncio.wait_for(main, 30)

        asyncio.run(body())


def trained(ring: Ring) -> list[list[int]]:
    return [[group.index for group in result.groups] for result in ring.observer.steps]


def test_every_step_trains_one_batch_in_index_order_and_publishes(tmp_path: Path) -> None:
    ring = Ring(make_config(), tmp_path)
    ring.run()
    assert trained(ring) == [[0, 1], [2, 3], [4, 5]]
    assert ring.generators.versions == [0, 1, 2, 3]
    assert [report.step for report in ring.observer.reports] == [0, 3]
    assert all(result.checksum for result in ring.observer.steps)


def test_on_policy_never_starts_the_next_batch_before_the_weights(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=2), tmp_path)
    ring.run()
    train_jobs = [job for job in ring.rollouts.jobs if job.split == "train"]
    assert [job.dispatch_version for job in train_jobs] == [0, 0, 1, 1]


def test_async_keeps_rollouts_going_while_the_learner_is_busy_within_the_bound(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=2, staleness=1), tmp_path)
    ring.learner.hold.clear()

    async def during(ring: Ring) -> None:
        while "train" not in ring.learner.events:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        started = [job for job in ring.rollouts.jobs if job.split == "train"]
        assert len(started) == 4, "one batch in training, one ahead, no more"
        ring.learner.hold.set()

    ring.run(during)
    assert sorted(index for batch in trained(ring) for index in batch) == [0, 1, 2, 3]


def test_a_batch_that_is_ready_does_not_keep_the_next_rollouts_from_starting(tmp_path: Path) -> None:
    ring = Ring(make_config(staleness=1), tmp_path)
    started, train_step = list[int](), ring.learner.train_step

    async def counted(batches: Any) -> Any:
        await asyncio.sleep(0)  # what has been admitted starts
        started.append(sum(job.split == "train" for job in ring.rollouts.jobs))
        return await train_step(batches)

    ring.learner.train_step = counted  # type: ignore[method-assign]
    ring.run()
    # Two batches may be on their way when the first is trained, one more with each version.
    assert started == [4, 6, 8]


def test_zero_variance_groups_are_skipped_counted_and_do_not_stall(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=2), tmp_path, rewards=lambda job: (1.0, 1.0) if job.index == 0 else (1.0, -1.0))
    ring.run()
    first = ring.observer.steps[0]
    assert {sample.group_index for sample in first.samples} == {1}
    assert len(ring.observer.steps) == 2


def test_rollouts_without_a_reward_are_counted_when_their_group_is_rejected_too(tmp_path: Path) -> None:
    rewards = {0: (None, None), 1: (1.0, None, -1.0)}
    ring = Ring(make_config(steps=2), tmp_path, rewards=lambda job: rewards.get(job.index, (1.0, -1.0)))
    ring.run()
    dropped = sum((result.dropped for result in ring.observer.steps), Counter())
    assert (dropped["infra"], dropped["too_few_graded"]) == (3, 1)


def test_a_run_without_rewards_ends_with_the_most_frequent_reason(tmp_path: Path) -> None:
    ring = Ring(make_config(patience=2), tmp_path, rewards=lambda job: (None, None) if job.split == "train" else (1.0, -1.0))
    with pytest.raises(
        RunFailed, match=r"the last 8 groups were all rejected: 16 of 16 rollouts got no reward.*infra.*: made up"
    ) as caught:
        ring.run()
    assert "too easy" not in str(caught.value)
    assert any("16 of 16" not in said and "8 of 8 rollouts got no reward" in said for said in ring.observer.said)


def test_resampling_replaces_rejected_groups(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=1, resample=True), tmp_path, rewards=lambda job: (1.0, 1.0) if job.index in (0, 2) else (1.0, -1.0))
    ring.run()
    assert trained(ring) == [[1, 3]]
    assert sum(ring.observer.steps[0].dropped.values()) == 2


def test_nothing_to_learn_from_says_so_and_then_stops(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=50, patience=3), tmp_path, rewards=lambda job: (1.0, 1.0))
    with pytest.raises(RunFailed, match="equal rewards"):
        ring.run()
    assert any("nothing to learn from for 3 steps" in message for message in ring.observer.said)
    assert "train" not in ring.learner.events


def test_endless_resampling_stops_with_the_reason(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=5, patience=2, resample=True), tmp_path, rewards=lambda job: (1.0, 1.0))
    with pytest.raises(RunFailed, match="zero_variance"):
        ring.run()


def test_prompts_over_the_limit_are_counted(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=1), tmp_path, rewards=lambda job: None if job.index == 0 else (1.0, -1.0))
    ring.run()
    assert ring.observer.steps[0].dropped["prompt_too_long"] == 1
    assert trained(ring) == [[1, 2]]


def test_a_silent_wait_ends_at_the_deadline_and_names_the_groups(tmp_path: Path) -> None:
    config = make_config(timeout=0.5)
    ring = Ring(config, tmp_path, rewards=lambda job: (1.0, -1.0))

    async def during(ring: Ring) -> None:
        while not ring.observer.reports:
            await asyncio.sleep(0.001)
        ring.rollouts.hold.clear()

    # The first heartbeat comes before the deadline is looked at.
    import rl.loop

    beat, rl.loop._HEARTBEAT = rl.loop._HEARTBEAT, 0.1
    try:
        with pytest.raises(PartDied, match=r"no rollout finished within rollout\.timeout"):
            ring.run(during)
    finally:
        rl.loop._HEARTBEAT = beat


def test_a_learner_error_ends_the_run(tmp_path: Path) -> None:
    ring = Ring(make_config(), tmp_path)
    ring.learner.fail = PartDied("learner rank 0 died during train_step")
    with pytest.raises(PartDied, match="rank 0"):
        ring.run()


def test_stop_saves_and_a_resumed_loop_trains_the_rest_once(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=1000, staleness=2), tmp_path)

    async def during(ring: Ring) -> None:
        while len(ring.observer.steps) < 3:
            await asyncio.sleep(0.005)
        ring.loop.stop()

    ring.run(during)
    done = len(ring.observer.steps)
    found = Checkpoints(tmp_path, keep=2).newest(say=print)
    assert found is not None
    state: LoopState = found[1]
    assert state.version == done

    again = Ring(make_config(steps=done + 2, staleness=2), tmp_path)
    again.loop.restore(state)
    again.run()
    final = again.checkpoints.newest(say=print)
    assert final is not None
    waiting = [group.index for group in final[1].buffer.groups] + [job.index for job in final[1].unfinished]
    waiting += ring.observer.turned_away + again.observer.turned_away
    indices = [i for batch in trained(ring) + trained(again) for i in batch] + waiting
    assert sorted(indices) == list(range(final[1].mixture.next_index)), "no group is lost, none is trained twice"
    assert [report.step for report in again.observer.reports] == [done + 2]


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=1), tmp_path)
    ring.run()
    found = ring.checkpoints.newest(say=print)
    assert found is not None
    again = Ring(make_config(steps=2), tmp_path)
    again.loop._fingerprint = "other"
    with pytest.raises(ValueError, match="other settings"):
        again.loop.restore(found[1])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    ring = Ring(make_config(steps=2), tmp_path)
    ring.run()
    longer = Ring(make_config(steps=3), tmp_path)
    longer.loop.restore(ring.checkpoints.newest(say=print)[1])  # type: ignore[index]
    longer.run()
    (tmp_path / "step-000003" / "learner" / "rank0.bin").write_bytes(b"damaged")
    said: list[str] = []
    found = longer.checkpoints.newest(say=said.append)
    assert found is not None and found[1].version == 2
    assert "step-000003 is damaged" in said[0] and "rank0.bin" in said[0]
