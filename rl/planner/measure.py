"""Costs of this machine: the pieces are timed (`rl/planner/probes.py`, `rl/planner/rehearsal.py`) and the factors of `Costs` fitted to
the times."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from configs.schema import Config
from rl.plan import Plan, available_cores
from rl.planner.costs import Costs, DecodeCost, GroupCost, PassCost
from rl.planner.host_memory import HostMemory, at_rest
from rl.planner.probes import probe_generator
from rl.planner.rehearsal import rehearse
from rl.planner.shape import ModelShape
from rl.planner.timing import fit
from rl.planner.workload import Workload

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """This machine's costs for one model and one way of sharing its cores."""

    model: str
    learner_threads: int
    generator_threads: int
    cores: float
    """For the parts of a run: what the processes take while nothing is asked of them is not theirs."""
    beside: float
    """How many times longer work takes while another process computes, on cores of its own."""
    costs: Costs
    memory: HostMemory

    def to_json(self) -> dict[str, Any]:
        """For a file that `read_machine` reads."""
        return asdict(self)


def read_machine(path: Path) -> Machine:
    """What an earlier plan has measured. Raises ValueError when the file is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        costs = found.pop("costs")
        decode, prefill, train, group = (costs.pop(name) for name in ("decode", "prefill", "train", "group"))
        read = Costs(decode=DecodeCost(**decode), prefill=PassCost(**prefill), train=PassCost(**train), group=GroupCost(**group), **costs)
        return Machine(costs=read, memory=HostMemory(**found.pop("memory")), **found)
    except OSError as error:
        raise ValueError(f"--machine {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"--machine {path}: not the measurements of a machine ({type(error).__name__}: {error}); measure into a new file"
        ) from None


def measure_machine(config: Config, *, folder: Path, shape: ModelShape, plan: Plan, workload: Workload) -> Machine:
    """Time the engine alone, then everything in a rehearsal, with the plan's threads. Takes a minute or a few.

    `folder` has the checkpoint. Prompts and responses are as long as the workload's on average.
    """
    prompt, response = _typical(workload, samples=config.rollout.samples_per_prompt)
    given = {"folder": folder, "shape": shape, "prompt": prompt}
    generator = _alone(probe_generator, config, threads=plan.generator_threads, **given)
    seen = _alone(rehearse, config, threads=1, plan=plan, response=response, **given)
    decode, prefill = fit(generator.decode), fit(generator.prefill)
    once, micro_batch, token, pair, answer = fit(seen.train)
    costs = Costs(
        decode=DecodeCost(step=decode[0], sequence=decode[1], position=decode[2]),
        prefill=PassCost(call=prefill[0], token=prefill[1], pair=prefill[2], response=prefill[3]),
        train=PassCost(call=micro_batch, token=token, pair=pair, response=answer),
        train_step=0.0,
        optimizer=once,
        publish=seen.publish,
        load=seen.load,
        refresh=generator.refresh,
        group=seen.group,
        between=seen.between,
        covers_rows=True,
    )
    return Machine(
        model=shape.name,
        learner_threads=plan.learner_threads,
        generator_threads=plan.generator_threads,
        cores=max(0.5, available_cores() - seen.background),
        beside=seen.beside,
        costs=costs,
        memory=at_rest(config, shape=shape, seen=seen),
    )


def _typical(workload: Workload, *, samples: int) -> tuple[int, int]:
    """Mean tokens of a prompt and of a response."""
    episodes = [episode for index in range(32) for episode in workload.group(index, samples)]
    turns = [turn for episode in episodes for turn in episode.turns]
    prompt = sum(episode.turns[0].shown for episode in episodes) / len(episodes)
    return max(2, round(prompt)), max(2, round(sum(turn.sampled for turn in turns) / len(turns)))


def _alone(function: Callable[..., T], *arguments: Any, threads: int, **named: Any) -> T:
    """Call a function in a process of its own that has so many threads."""
    if "threads" in function.__code__.co_varnames:
        named["threads"] = threads
    with _threads(threads), ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Environment of the next process, as `rl/placement.py` sets it."""
    names = {name: str(count) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} | {"OMP_WAIT_POLICY": "PASSIVE"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
