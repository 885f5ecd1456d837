"""Runs with real episodes, graders and log, made without a model: what the policy says comes from a function."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import environments.containers.make
import environments.sandbox.make
from configs.load import dump_config, load_config
from configs.schema import Config
from environments.containers.make import use_containers
from environments.sandbox.make import use_sandbox
from environments.sources.build import build_tasks
from rl.advantage import advantages
from rl.log.metrics import MetricsWriter, summarize_step
from rl.log.runs import RunPaths, prepare_run
from rl.log.writer import LearnerWriter, RolloutWriter
from rl.prompt import Renderer, load_tokenizer
from rl.records import RolloutGroup, Sampling
from rl.rollout import GroupJob, RolloutWorker
from rl.samples import samples_of
from rl.tokenizer import save_tiny_tokenizer
from tests.log_fakes import make_stats
from tests.test_rollout import ScriptedGenerator

SUMS = [{"id": f"sum-{n}", "question": f"{n}+{n}=", "answer": str(2 * n)} for n in range(4)]
Reply = Callable[[str, int], str]
"""What a rollout (its id) says in a turn."""


@contextlib.contextmanager
def kept_settings() -> Iterator[None]:
    """Sandbox and engine of the process are afterwards what they were."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (environments.containers.make, environments.sandbox.make):
            patch.setattr(module, "_config", module._config)
        yield


@pytest.fixture(autouse=True)
def settings_as_found() -> Iterator[None]:
    """For tests of commands that choose sandbox and engine as a run's configuration says."""
    with kept_settings():
        yield


def write_sums(folder: Path, rows: Sequence[Mapping[str, Any]] = SUMS) -> Path:
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_for(root: Path, *, tasks: Mapping[str, Any], **sections: Mapping[str, Any]) -> Config:
    """Settings of a small run at `root`, as `rl train` writes them down."""
    save_tiny_tokenizer(root.parent / "model")
    settings: dict[str, Any] = {
        "run": {"name": root.name, "dir": str(root.parent)},
        "model": {"path": str(root.parent / "model"), "context_length": 4000, "max_prompt_tokens": 2000},
        "tasks": tasks,
        "sampling": {"max_tokens": 500},
        "rollout": {"max_turns": 4, "retries": 0},
        **sections,
    }
    path = root.parent / f"{root.name}.json"
    path.write_text(json.dumps(settings))
    return load_config([path])


def make_run(root: Path, config: Config, reply: Reply, *, groups: int = 4, samples: int = 4, batch: int = 1) -> tuple[RolloutGroup, ...]:
    """Play groups of training in their order, one a policy version, and log them and what a learner would do with `batch` of them a step
    (0: it does nothing)."""
    identity = prepare_run(root)
    RunPaths(root=root).config.write_text(dump_config(config))
    mixture = build_tasks(config)
    tokenizer = load_tokenizer(Path(config.model.path))
    finished: list[RolloutGroup] = []

    async def play(writer: RolloutWriter) -> None:
        def keep(group: RolloutGroup) -> None:
            writer.write_group(group)
            finished.append(group)

        worker = RolloutWorker(config, renderer=Renderer(tokenizer), generators=[ScriptedGenerator(tokenizer, reply)], write_group=keep)
        try:
            for index in range(groups):
                sampling = Sampling(max_tokens=config.sampling.max_tokens)
                job = GroupJob(
                    group_id=f"{index:08d}",
                    index=index,
                    problem=mixture.at(index),
                    split="train",
                    n_samples=samples,
                    dispatch_version=index,
                    sampling=sampling,
                    seed=config.run.seed,
                )
                outcome = await worker.run_group(job)
                assert outcome.group is not None, outcome.dropped
        finally:
            await worker.close()

    with kept_settings(), RolloutWriter(root, run_id=identity.run_id, attempt=1, writer="w0", tokens=config.log.tokens) as writer:
        use_sandbox(config.sandbox)
        use_containers(config.containers)
        asyncio.run(play(writer))
    if batch:
        _train(root, config, [finished[start : start + batch] for start in range(0, len(finished), batch)])
    return tuple(finished)


def _train(root: Path, config: Config, batches: Sequence[Sequence[RolloutGroup]]) -> None:
    with LearnerWriter(root, attempt=1) as learner, MetricsWriter(RunPaths(root=root).metrics, attempt=1, restored_step=0) as metrics:
        for step, groups in enumerate(batches, start=1):
            values = advantages(config.objective, groups, max_tokens=config.sampling.max_tokens)
            samples = samples_of(groups, values)
            stats = make_stats(samples)
            learner.write_step(train_step=step, groups=groups, samples=samples, stats=[stats])
            metrics.step(summarize_step(step, groups=groups, samples=samples, stats=stats, seconds=1.0, phases={}, drops={}))
