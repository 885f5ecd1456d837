"""`rl plan`: puts the pieces together and prints the forecast."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from configs.schema import Config
from rl.model_folder import check_model
from rl.plan import containers_at_once, make_plan, uses_containers
from rl.planner.forecast import Forecast, Subject, forecast, warm_up
from rl.planner.hardware import CARDS, Card
from rl.planner.host_memory import host_memory
from rl.planner.layout import replica_cards
from rl.planner.measure import Machine, measure_machine, read_machine
from rl.planner.memory import card_memory
from rl.planner.roofline import card_costs
from rl.planner.shape import ModelShape, model_shape
from rl.planner.simulate import Setup, simulate
from rl.planner.workload import Workload, assumed, recorded


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the command line asks for; see `rl/planner/arguments.py`."""

    config: Config
    model: str | None = None
    gpus: str | None = None
    machine: Path | None = None
    log: str | None = None
    assumptions: Mapping[str, str]
    steps: int = 8
    plot: Path | None = None


def plan_command(request: Request, *, as_json: bool) -> int:
    """Print the forecast; 1 when it does not fit. Raises ValueError for what cannot be planned."""
    if request.steps < 1:
        raise ValueError(f"--steps {request.steps}: simulate at least one step")
    if request.plot is not None and request.gpus is None:
        raise ValueError("--plot draws speed over numbers of cards: name the cards with --gpus")
    if request.log and request.assumptions:
        raise ValueError("--assume says what to assume without a log: give either --log or --assume")
    config = request.config
    shape = model_shape(request.model or config.model.path)
    workload = recorded(request.log) if request.log else assumed(config, settings=request.assumptions)
    if request.gpus is not None:
        found = on_cards(config, shape=shape, card=CARDS[request.gpus], workload=workload, steps=request.steps)
    else:
        found = _here(request, shape=shape, workload=workload)
    if request.plot is not None:
        from rl.planner.plot import draw_scaling
        from rl.planner.scaling import scaling

        curves = scaling(config, shape=shape, card=CARDS[request.gpus or ""], workload=workload)
        draw_scaling(curves, title=shape.name, out=request.plot)
    plan = make_plan(config)
    if as_json:
        print(json.dumps({"plan": plan.to_json(), "forecast": found.to_json()}))
    else:
        print("\n".join([*(plan.lines() if request.gpus is None else []), *found.lines()]))
    for problem in found.problems:
        print(f"does not fit: {problem}", file=sys.stderr if as_json else sys.stdout)
    return 1 if found.problems else 0


def on_cards(config: Config, *, shape: ModelShape, card: Card, workload: Workload, steps: int) -> Forecast:
    """The forecast for cards: a rank has one, a replica `vllm.tensor_parallel_size`."""
    cards = replica_cards(config)
    costs = card_costs(config, shape=shape, card=card)
    setup = Setup(config=config, shape=shape, costs=costs, workload=workload, live_episodes=_live_episodes(config))
    simulated = simulate(setup, steps=steps + warm_up(config))
    memory = card_memory(config, shape=shape, simulated=simulated, card=card)
    subject = Subject(
        model=shape.name,
        parameters=shape.parameters,
        hardware=f"{config.learner.ranks} + {config.generator.replicas * cards} {card.name.upper()}",
        learner_devices=config.learner.ranks,
        generator_devices=config.generator.replicas * cards,
        workload=workload.told(),
    )
    return forecast(config, subject=subject, simulated=simulated, memory=memory)


def _live_episodes(config: Config) -> int | None:
    return containers_at_once(config) if uses_containers(config) else None


def _here(request: Request, *, shape: ModelShape, workload: Workload) -> Forecast:
    """The forecast for this machine, measured with the configuration's own model."""
    config, plan = request.config, make_plan(request.config)
    if request.machine is not None and request.machine.exists():
        machine = read_machine(request.machine)
        now = (shape.name, plan.learner_threads, plan.generator_threads)
        then = (machine.model, machine.learner_threads, machine.generator_threads)
        if now != then:
            raise ValueError(
                f"--machine {request.machine} holds measurements of {then[0]} with {then[1]} + {then[2]} threads, and this plan is of "
                f"{now[0]} with {now[1]} + {now[2]}: measure into a new file"
            )
    else:
        machine = measure_machine(config, folder=_folder(request), shape=shape, plan=plan, workload=workload)
        if request.machine is not None:
            request.machine.write_text(json.dumps(machine.to_json(), indent=1) + "\n")
    return on_machine(config, shape=shape, machine=machine, workload=workload, steps=request.steps)


def machine_setup(config: Config, *, shape: ModelShape, machine: Machine, workload: Workload) -> Setup:
    """The ring on a machine that was measured, whose cores all processes share."""
    plan = make_plan(config)
    return Setup(
        config=config,
        shape=shape,
        costs=machine.costs,
        workload=workload,
        live_episodes=_live_episodes(config),
        cores=machine.cores,
        beside=machine.beside,
        learner_threads=plan.ranks * plan.learner_threads,
        generator_threads=plan.generator_threads,
    )


def on_machine(config: Config, *, shape: ModelShape, machine: Machine, workload: Workload, steps: int) -> Forecast:
    """The forecast for the machine that was measured, which has this machine's memory."""
    plan = make_plan(config)
    simulated = simulate(machine_setup(config, shape=shape, machine=machine, workload=workload), steps=steps + warm_up(config))
    subject = Subject(
        model=shape.name,
        parameters=shape.parameters,
        hardware=f"this machine, {plan.cores} of its cores",
        learner_devices=plan.cores if plan.alternating else plan.ranks * plan.learner_threads,
        generator_devices=0 if plan.alternating else plan.replicas * plan.generator_threads,
        workload=workload.told(),
    )
    memory = host_memory(config, shape=shape, simulated=simulated, at_rest=machine.memory, available=psutil.virtual_memory().total)
    return forecast(config, subject=subject, simulated=simulated, memory=(memory,))


def _folder(request: Request) -> Path:
    """The checkpoint that is measured."""
    from rl.model_source import resolve_model

    path = request.model or request.config.model.path
    try:
        check_model(path, gguf_file=request.config.model.gguf_file)
    except ValueError as error:
        raise ValueError(f"{error}. Without a checkpoint this machine cannot be measured: plan for cards with --gpus") from None
    return resolve_model(path, gguf_file=request.config.model.gguf_file)
