"""How many processes a run may come to have, what they ask of Ray, and how long they may be silent."""

from dataclasses import dataclass, field
from typing import ClassVar

from configs.checked import Checked, bounded


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Checked):
    """Processes that come and go."""

    section: ClassVar[str] = "cluster"
    most_generators: int = bounded(0, low=0)
    """Generators that are used when the cluster comes to have room for them; the run begins with `generator.replicas`. 0: never more."""
    most_workers: int = bounded(0, low=0)
    """Rollout workers that are used when the cluster comes to have room for them; the run begins with `rollout.workers`. 0: never more."""
    gpus: bool = False
    """Whether the learner and vLLM run on GPUs: each rank asks Ray for one, each generator for `vllm.tensor_parallel_size` of one node."""
    learner_resources: dict[str, float] = field(default_factory=dict)
    """What Ray must have for one rank beside a CPU a thread and a GPU: names that nodes were started with."""
    generator_resources: dict[str, float] = field(default_factory=dict)
    """The same for one generator."""
    worker_resources: dict[str, float] = field(default_factory=dict)
    """The same for one rollout worker; `GPU` is Ray's own word, for a reward that computes on one."""
    start_timeout: float = bounded(600.0, above=0)
    """Seconds in which a process must have found a place and loaded its model, and in which a generator and a rollout worker must be there
    again after the last one was lost."""
    part_timeout: float = bounded(60.0, low=10.0)
    """Seconds without a sign of life after which a process counts as lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in ("learner", "generator", "worker"):
            for name, amount in getattr(self, f"{part}_resources").items():
                if not amount > 0:
                    raise ValueError(f"cluster.{part}_resources.{name} is {amount}; it must be > 0: leave out what is not needed")
                if name == "CPU":
                    raise ValueError(f"cluster.{part}_resources.CPU: a process asks for a CPU a thread by itself; set run.threads")
                if name == "GPU" and part != "worker":
                    raise ValueError(f"cluster.{part}_resources.GPU: set cluster.gpus=true, and each process asks for what it uses")

    def check(self, *, replicas: int, workers: int, max_staleness: int) -> None:
        """Compare with the numbers that the run begins with. Raises ValueError."""
        for key, most, first_key, first in (
            ("most_generators", self.most_generators, "generator.replicas", replicas),
            ("most_workers", self.most_workers, "rollout.workers", workers),
        ):
            if 0 < most < first:
                raise ValueError(f"cluster.{key} is {most}, less than {first_key}={first}: raise it, or set 0 to use no more than those")
        if self.most_generators > replicas and max_staleness == 0:
            raise ValueError(
                f"cluster.most_generators is {self.most_generators}, more than generator.replicas={replicas}, and rollout.max_staleness is "
                "0: the number of generators decides the bits of a strictly on-policy run; raise it, or set most_generators=0"
            )
