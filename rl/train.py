"""`rl train`: checks everything first, starts the parts, runs the ring, and leaves a checkpoint and a model behind."""

import asyncio
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.load import dump_config
from configs.schema import Config
from environments.records import Problem
from environments.sources.mixture import Mixture
from rl.actors import ActorContext
from rl.buffer import Buffer
from rl.checkpoint import Checkpoints, LoopState
from rl.corpus import corpus_examples
from rl.filters import get_door, put_door, unfit_rollout
from rl.log.runs import RunIdentity, RunPaths, prepare_run
from rl.loop import Loop
from rl.model_source import resolve_model
from rl.observer import RunObserver
from rl.placement import RENDEZVOUS, run_remotely, start_cluster, start_ray, stop_ray, watch_parts, weight_bytes
from rl.places import Places
from rl.plan import Plan, make_plan
from rl.preflight import check_policy, checked_run, left_out, left_out_lines, with_absolute_paths
from rl.progress import redirect_library_noise
from rl.prompt import load_tokenizer
from rl.records import Sampling, TokenExample
from rl.resume import check_same_settings, fingerprint
from rl.sampling import make_sampling
from rl.status.watch import Watch
from rl.supervise import supervised

if TYPE_CHECKING:
    from rl.warm_start import SftExample


def train(config: Config, *, resume: bool, clean: bool) -> int:
    """Run a training job to its end; the exit status (130 when it was interrupted and can be resumed).

    Raises ValueError for anything that is wrong with the configuration, the data or the model before something is
    written, and RunFailed when a part fails later.
    """
    plan = make_plan(config)
    config = with_absolute_paths(config)
    mixture = checked_run(config)
    model_path = resolve_model(config.model.path, gguf_file=config.model.gguf_file)
    tokenizer = load_tokenizer(model_path)
    check_policy(config, model_path, tokenizer)
    sampling = make_sampling(config, tokenizer)
    run = RunPaths(root=Path(config.run.dir) / config.run.name)
    if resume:
        check_same_settings(config, earlier=run.config)
    try:
        identity = prepare_run(run.root, resume=resume, clean=clean)
        run.config.write_text(dump_config(config))
    except OSError as error:
        raise ValueError(f"run.dir {config.run.dir}: cannot write the folder of the run, {run.root}: {error.strerror or error}") from error
    redirect_library_noise(run.library_log)
    job = _Job(
        config=config,
        plan=plan,
        places=Places.of(config, plan),
        mixture=mixture,
        model_path=model_path,
        sampling=sampling,
        vocab_size=tokenizer.vocab_size,
        run=run,
        identity=identity,
    )
    return asyncio.run(_train(job, resume=resume))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """A checked configuration and everything made from it."""

    config: Config
    plan: Plan
    places: Places
    mixture: Mixture
    model_path: Path
    sampling: Sampling
    vocab_size: int
    run: RunPaths
    identity: RunIdentity


async def _train(job: _Job, *, resume: bool) -> int:
    config, run = job.config, job.run
    checkpoints = Checkpoints(run.checkpoints, keep=config.checkpoint.keep)
    notes = left_out_lines(left_out(job.mixture))
    restored = checkpoints.newest(say=notes.append) if resume else None
    if restored is not None:
        job.mixture.restore(restored[1].mixture)  # other data is told before the processes start
    if resume and restored is None:
        notes.append("no usable checkpoint: starting again from step 0")
    observer = RunObserver(config, run=run, identity=job.identity, restored_step=restored[1].version if restored else 0)
    with observer:
        for note in notes:
            observer.say(note)
        try:
            start_ray(job.plan, job.places, model_bytes=weight_bytes(job.model_path))
            watch = watch_parts(run, run_id=job.identity.run_id, attempt=job.identity.attempt)
            async with supervised([watch.run]):
                model_path = await _starting_model(job, observer, watch=watch)
                interrupted = await _ring(job, observer, model_path=model_path, watch=watch, checkpoints=checkpoints, restored=restored)
        finally:
            stop_ray(run_id=job.identity.run_id)
            for rendezvous in run.root.glob(f"{RENDEZVOUS}*"):
                rendezvous.unlink(missing_ok=True)
        for line in observer.summary():
            observer.say(line)
        if interrupted:
            observer.say("stopped cleanly; the same command with --resume goes on")
    return 130 if interrupted else 0


async def _ring(
    job: _Job,
    observer: RunObserver,
    *,
    model_path: Path,
    watch: Watch,
    checkpoints: Checkpoints,
    restored: tuple[Path, LoopState] | None,
) -> bool:
    """Start the parts, go round the ring, export the model. Returns whether it was interrupted."""
    config, plan = job.config, job.plan
    context = _context(job, model_path=model_path)
    observer.say(f"starting {plan.ranks} learner rank(s), {plan.replicas} generator(s), {plan.workers} rollout worker(s)")
    cluster = await start_cluster(context, plan=plan, watch=watch, with_learner=True, say=observer.say)
    try:
        assert cluster.learner is not None
        loop = Loop(
            config,
            mixture=job.mixture,
            sampling=job.sampling,
            learner=cluster.learner,
            generators=cluster.generators,
            rollouts=cluster.rollouts,
            buffer=Buffer(
                batch_size=config.rollout.prompts_per_step,
                max_staleness=config.rollout.max_staleness,
                put_door=put_door(config, vocab_size=job.vocab_size),
                get_door=get_door(config),
            ),
            checkpoints=checkpoints,
            observer=observer,
            unfit=unfit_rollout(config.filters, vocab_size=job.vocab_size),
            config_fingerprint=fingerprint(config),
        )
        watch.own = loop.parts
        async with supervised(cluster.watches):
            if restored is not None:
                loop.restore(restored[1])
                await cluster.learner.load(restored[0] / "learner")
                observer.say(f"resumed after step {restored[1].version}")
            interrupted = _stop_on_signals(loop, observer)
            await loop.run()
            if not interrupted.is_set():
                await cluster.learner.export(job.run.root / "model")
    finally:
        await cluster.close()
    return interrupted.is_set()


def _context(job: _Job, *, model_path: Path) -> ActorContext:
    return ActorContext(
        config=job.config, model_path=model_path, run_dir=job.run.root, run_id=job.identity.run_id, attempt=job.identity.attempt
    )


def _stop_on_signals(loop: Loop, observer: RunObserver) -> asyncio.Event:
    """First Ctrl-C or SIGTERM: finish the step, save, stop. A second one ends the process at once."""
    interrupted = asyncio.Event()
    events = asyncio.get_running_loop()

    def stop() -> None:
        observer.say("stopping after this step and saving a checkpoint; press Ctrl-C again to stop at once")
        interrupted.set()
        loop.stop()
        for name in (signal.SIGINT, signal.SIGTERM):
            events.remove_signal_handler(name)

    for name in (signal.SIGINT, signal.SIGTERM):
        events.add_signal_handler(name, stop)
    return interrupted


async def _starting_model(job: _Job, observer: RunObserver, *, watch: Watch) -> Path:
    """The configured model, or what the warm start makes of it: supervised on the problems' own solutions, once a run."""
    settings, done = job.config.warm_start, job.run.root / "warm_start"
    if not settings.steps:
        return job.model_path
    if done.is_dir():
        return done
    # Only now: TRL costs seconds and hundreds of megabytes.
    from rl.warm_start import warm_start

    examples = await _warm_start_examples(job, observer)
    observer.say(f"warm start: {settings.steps} supervised steps on {len(examples)} examples")
    work = done.with_suffix(".tmp")
    await run_remotely(
        warm_start,
        part="warm-start",
        context=_context(job, model_path=job.model_path),
        watch=watch,
        place=replace(job.places.rank, neighbours=1),
        model_path=job.model_path,
        examples=examples,
        out=work,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        seed=job.config.run.seed,
        dtype=job.config.model.dtype,
    )
    return work.rename(done)


async def _warm_start_examples(job: _Job, observer: RunObserver) -> "list[SftExample | TokenExample]":
    """The corpus, or the first problems with their solutions; those that are solved in several turns are played, each once."""
    from rl.demonstrations import REPLIES, play_demonstrations
    from rl.warm_start import SftExample

    if job.config.warm_start.corpus:
        return _corpus_examples(job, observer)
    examples: list[SftExample | TokenExample] = []
    played: dict[tuple[str, str], Problem] = {}
    for index in range(job.config.warm_start.n_examples):
        problem = job.mixture.at(index)
        solution = problem.reference.get("solution")
        if isinstance(problem.reference.get(REPLIES), list):
            played.setdefault((problem.source, problem.task.id), problem)
        elif isinstance(solution, str):
            examples.append(SftExample(prompt=problem.task.prompt, answer=solution))
        else:
            raise ValueError(
                f"warm_start.steps is {job.config.warm_start.steps}, but problem {problem.task.id} of tasks.{problem.source} has no "
                "solution to learn from: set tasks.*.solution, or warm_start.steps=0"
            )
    if played:
        observer.say(f"warm start: playing {len(played)} demonstrations")
        done = await play_demonstrations(
            job.config, tuple(played.values()), tokenizer=load_tokenizer(job.model_path), sampling=job.sampling, say=observer.say
        )
        if told := done.told():
            observer.say(f"warm start: demonstrations {told}")
        examples += done.examples
    return examples


def _corpus_examples(job: _Job, observer: RunObserver) -> "list[SftExample | TokenExample]":
    found = corpus_examples(
        job.config.warm_start.corpus,
        tokenizer=load_tokenizer(job.model_path),
        n_examples=job.config.warm_start.n_examples,
        context_length=job.config.model.context_length,
        seed=job.config.run.seed,
    )
    tokens = sum(len(example.token_ids) for example in found.examples)
    left_out = f", {found.too_long} longer than the context left out" if found.too_long else ""
    observer.say(f"warm start: {len(found.examples)} of the corpus's {found.n_rows} rows, {tokens} tokens{left_out}")
    return list(found.examples)
