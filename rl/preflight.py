"""Everything that can be wrong with a run, checked before anything is started or written; `rl train --dry-run` does this alone."""

import asyncio
import collections
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from configs.schema import Config
from environments.containers.base import ImageMissing
from environments.containers.make import make_containers, use_containers
from environments.sandbox.make import use_sandbox
from environments.sources.build import build_tasks
from environments.sources.mixture import Mixture
from environments.sources.swe_tasks import SweSource
from environments.sources.traces import TraceFileSource
from rl.corpus import read_corpus
from rl.engines.vllm_environment import check_vllm
from rl.graders import check_problems, check_rewards
from rl.model_folder import PACKAGE_PREFIX, check_model, check_shards, check_vocabulary, read_settings
from rl.plan import uses_containers
from rl.prompt import ChatTokenizer, load_tokenizer
from rl.scripted import check_script, encode_script, read_script


def checked_run(config: Config) -> Mixture:
    """`checked_tasks`, and that the configured model is there. Raises as that does; what is missing is named all at once."""
    if len(missing := _missing(config)) > 1:
        raise ValueError(f"missing: {', '.join(missing)}; put them there, or set these paths to where they are")
    mixture = checked_tasks(config)
    if config.warm_start.steps:
        collections.deque(read_corpus(config.warm_start.corpus), maxlen=0)
    model = config.model
    check_model(model.path, gguf_file=model.gguf_file, sequence_parallel=config.learner.sequence_parallel)
    if (Path(config.model.path) / "tokenizer.json").is_file():  # else it is known once the model has been converted
        check_policy(config, Path(config.model.path), load_tokenizer(config.model.path))
    return mixture


def with_absolute_paths(config: Config) -> Config:
    """Plugin files, the script and the run folder by absolute path: on a cluster the other processes have other working directories."""
    plugins = tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in config.run.plugins)
    script = config.generator.script and str(Path(config.generator.script).expanduser().resolve())
    return replace(
        config,
        run=replace(config.run, plugins=plugins, dir=str(Path(config.run.dir).resolve())),
        generator=replace(config.generator, script=script),
    )


def _missing(config: Config) -> list[str]:
    """Files and folders that the configuration names and that are not there."""
    paths = {f"tasks.{name}.path": task.path for name, task in config.tasks.items() if task.kind in ("jsonl", "swe", "traces")}
    if not config.model.path.startswith(PACKAGE_PREFIX):
        paths = {"model.path": config.model.path, **paths}
    return [f"{key} {path}" for key, path in paths.items() if path and not Path(path).expanduser().exists()]


def checked_tasks(config: Config) -> Mixture:
    """The mixture of a configuration whose data, environments and rewards are there and go together.

    Raises ValueError that names what is not, SandboxUnavailable when the sandbox of a reward cannot work here,
    or no container engine answers, or it lacks an image.
    """
    use_sandbox(config.sandbox)  # first: programs of trace tasks are recorded in it
    mixture = build_tasks(config)
    use_containers(config.containers)
    check_rewards(config.tasks)
    check_problems(config.tasks, mixture)
    if config.generator.engine == "vllm":
        check_vllm(config.vllm)
    if config.generator.engine == "scripted":
        check_script(config.generator.script or "", mixture)
    if uses_containers(config):
        asyncio.run(check_images(mixture))
    return mixture


def left_out(mixture: Mixture) -> dict[str, dict[str, int]]:
    """Programs of trace sources that make no task, by source and reason."""
    sources = {part.name: part.source for part in mixture.parts}
    return {name: dict(source.left_out) for name, source in sources.items() if isinstance(source, TraceFileSource) and source.left_out}


def left_out_lines(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """For a person."""
    return [
        f"tasks.{name}: programs left out because they make no task: {'; '.join(f'{count} x {why}' for why, count in reasons.items())}"
        for name, reasons in found.items()
    ]


async def check_images(mixture: Mixture) -> None:
    """See that the container engine answers and has the images of all tasks. Raises EngineUnavailable, ImageMissing."""
    images = {
        image: f"tasks.{part.name}: task {task}"
        for part in mixture.parts
        if isinstance(part.source, SweSource)
        for image, task in part.source.images.items()
    }
    containers = make_containers()
    try:
        for image, where in images.items():
            try:
                await containers.image_id(image)
            except ImageMissing as error:
                raise ImageMissing(f"{where}: {error}") from None
    finally:
        await containers.close()


def check_policy(config: Config, folder: Path, tokenizer: ChatTokenizer) -> None:
    """See that generators and learner agree about the model's tokens, and that the engine can serve it.

    Raises ValueError that names what does not fit, for a scripted generator the task whose replies the tokenizer cannot represent.
    """
    check_vocabulary(folder, largest_id=tokenizer.largest_id)
    if config.generator.engine == "vllm":
        check_shards(folder, processes=config.vllm.tensor_parallel_size)
        length = config.model.context_length
        positions = read_settings(folder).get("max_position_embeddings", length)
        if length > positions:
            raise ValueError(
                f"model.context_length is {length}, and the model in {folder} has {positions} positions, more than which vLLM does not "
                f"serve: set model.context_length={positions}"
            )
    if config.generator.engine == "scripted":
        encode_script(read_script(config.generator.script or ""), tokenizer=tokenizer)
