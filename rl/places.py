"""What each process of a run asks of the cluster, and whether a node has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.schema import Config
from rl.plan import Plan

Amounts = Mapping[str, float]
"""Ray's name of a resource -> how much of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """For one process."""

    amounts: Amounts
    """`CPU` (one a thread), `GPU`, and names that nodes were started with."""
    neighbours: int = 1
    """Processes of its kind that must share a node, with this one."""

    @property
    def together(self) -> Amounts:
        """Of all that must share a node."""
        return {name: amount * self.neighbours for name, amount in self.amounts.items()}

    def told(self) -> str:
        """For a person: `1 GPU, 2 CPU`."""
        each = ", ".join(f"{amount:g} {name}" for name, amount in sorted(self.amounts.items(), key=lambda item: item[0] == "CPU"))
        return each if self.neighbours == 1 else f"{self.neighbours} x ({each}) on one node"


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One machine of the cluster."""

    total: Amounts
    free: Amounts


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Of all processes of a run, by kind."""

    rank: Place
    generator: Place
    worker: Place

    @staticmethod
    def of(config: Config, plan: Plan) -> "Places":
        """What the configuration says."""
        cluster = config.cluster
        rank: Amounts = {**cluster.learner_resources, "CPU": plan.learner_threads}
        generator: Amounts = {**cluster.generator_resources, "CPU": plan.generator_threads}
        if cluster.gpus:
            rank = {**rank, "GPU": 1}
            # The torch engine computes on CPUs. vLLM's processes on a replica's GPUs are children of one process, so on its node.
            generator = {**generator, **({"GPU": config.vllm.tensor_parallel_size} if config.generator.engine == "vllm" else {})}
        return Places(
            rank=Place(amounts=rank, neighbours=config.learner.sequence_parallel),
            generator=Place(amounts=generator),
            worker=Place(amounts={**cluster.worker_resources, "CPU": 1}),
        )

    def total(self, plan: Plan) -> Amounts:
        """Of the processes that the run begins with."""
        counts = ((self.rank, plan.ranks), (self.generator, plan.replicas), (self.worker, plan.workers))
        names = {name for place, count in counts if count for name in place.amounts}
        return {name: sum(place.amounts.get(name, 0) * count for place, count in counts) for name in names}


def check_machine(wanted: Amounts, there: Amounts) -> None:
    """Raise ValueError when this machine alone will never have what the run asks for. Its CPUs are counted as they are asked for."""
    for name, amount in sorted(wanted.items()):
        if name != "CPU" and there.get(name, 0) < amount:
            key = "cluster.gpus" if name == "GPU" else f"{name} in cluster.*_resources"
            raise ValueError(
                f"the run asks for {amount:g} {name} and this machine has {there.get(name, 0):g}: name a Ray cluster that has them in "
                f"RAY_ADDRESS, or change {key}"
            )


def lacking(place: Place, nodes: Sequence[Node]) -> str:
    """Why no node takes these processes now, for a person; empty when one can."""
    if any(_fits(place.together, node.free) for node in nodes):
        return ""
    if any(_fits(place.together, node.total) for node in nodes):
        return "no node has them free"
    return "no node has as much"


def _fits(wanted: Amounts, there: Amounts) -> bool:
    return all(there.get(name, 0.0) >= amount for name, amount in wanted.items())
