"""`rl eval`: pass rates of a model on held-out problems or a whole benchmark, by the generators and graders of training."""

import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from configs.schema import Config
from environments.records import Problem
from environments.sources.mixture import Mixture
from rl.actors import ActorContext
from rl.evaluate import EvalReport, PassRate, evaluate_heldout
from rl.log.runs import RunPaths, prepare_run
from rl.model_source import resolve_model
from rl.placement import start_cluster, start_ray, stop_ray, watch_parts, weight_bytes
from rl.places import Places
from rl.plan import make_plan
from rl.preflight import check_policy, checked_tasks, left_out, left_out_lines, with_absolute_paths
from rl.progress import redirect_library_noise
from rl.prompt import load_tokenizer
from rl.sampling import make_sampling
from rl.supervise import supervised


@dataclass(frozen=True, kw_only=True, slots=True)
class SeededReport:
    """The same evaluation with several sampling seeds."""

    seeds: tuple[int, ...]
    reports: tuple[EvalReport, ...]
    """One a seed."""
    left_out: Mapping[str, Mapping[str, int]]
    """Programs that make no task, by task source and reason."""

    def pooled(self, name: str) -> PassRate:
        """All seeds' samples of one task source together: a seed adds samples of the same problems."""
        total = PassRate(by_problem={})
        for report in self.reports:
            total = total + report.by_env[name]
        return total

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        sources = {
            name: {**self.pooled(name).to_json(), "by_seed": [report.by_env[name].value for report in self.reports]}
            for name in self.reports[0].by_env
        }
        for name, reasons in self.left_out.items():
            if name in sources:
                sources[name]["left_out"] = dict(reasons)
        return {"seeds": list(self.seeds), "sources": sources, "mean_tokens": fmean(report.mean_tokens for report in self.reports)}

    def table(self) -> str:
        """For a person."""
        lines = [f"held-out pass rate over seeds {', '.join(map(str, self.seeds))} (95% interval)"]
        for name in self.reports[0].by_env:
            lines += self.pooled(name).lines(name)
        return "\n".join([*lines, *left_out_lines(self.left_out)])


def evaluate_command(
    config: Config, *, model_path: Path | None, samples: int | None, seeds: Sequence[int], all_problems: bool = False
) -> SeededReport:
    """Evaluate `model_path` (default: the configured model) on the configuration's held-out problems.

    `all_problems`: on every problem of a source that can be counted, as of a benchmark's file. Raises ValueError when there are no
    such problems, or the model cannot be used.
    """
    if samples is not None:
        config = replace(config, evaluation=replace(config.evaluation, samples=samples))
    # Nothing is trained: the wave that starts together is the whole evaluation, and the generators get all the cores.
    config = with_absolute_paths(replace(config, rollout=replace(config.rollout, max_staleness=0)))
    mixture = checked_tasks(config)
    problems = every_problem(mixture) if all_problems else mixture.heldout()
    if not problems:
        raise ValueError(
            "no task source holds problems out: set tasks.NAME.heldout, for example tasks.NAME.heldout=100, or give --all to evaluate "
            "on all problems of the sources that can be counted"
        )
    gguf_file = None if model_path else config.model.gguf_file
    path = resolve_model(str(model_path or config.model.path), gguf_file=gguf_file).absolute()
    tokenizer = load_tokenizer(path)
    check_policy(config, path, tokenizer)
    sampling = make_sampling(config, tokenizer)

    async def run(folder: Path) -> SeededReport:
        identity = prepare_run(folder / "eval")
        paths = RunPaths(root=folder / "eval")
        redirect_library_noise(paths.library_log)
        plan = replace(make_plan(config), ranks=0)
        try:
            start_ray(plan, Places.of(config, plan), model_bytes=weight_bytes(path))
            watch = watch_parts(paths, run_id=identity.run_id, attempt=1)
            context = ActorContext(
                config=config, model_path=path, run_dir=paths.root, run_id=identity.run_id, attempt=1, weights_from_disk=True
            )

            def say(message: str) -> None:
                print(message, file=sys.stderr)

            async with supervised([watch.run]):
                cluster = await start_cluster(context, plan=plan, watch=watch, with_learner=False, say=say)
                try:
                    async with supervised(cluster.watches):
                        reports = [
                            await evaluate_heldout(
                                config, problems=problems, rollouts=cluster.rollouts, sampling=sampling, step=0, seed=seed
                            )
                            for seed in seeds
                        ]
                finally:
                    await cluster.close()
        finally:
            stop_ray(run_id=identity.run_id)
        return SeededReport(seeds=tuple(seeds), reports=tuple(reports), left_out=left_out(mixture))

    # The evaluation's own rollout log is scratch: what a run keeps is written by `rl train`.
    with tempfile.TemporaryDirectory(prefix="rl-eval-") as folder:
        return asyncio.run(run(Path(folder)))


def every_problem(mixture: Mixture) -> tuple[Problem, ...]:
    """Of the sources that can be counted, in their order."""
    return tuple(part.source.problem(index) for part in mixture.parts for index in range(part.size or 0))
