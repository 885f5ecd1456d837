"""What a run will look like on this machine, before anything is started: processes, threads, batch arithmetic."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.schema import Config


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Processes and their threads, and how a training step is cut up."""

    cores: int
    """CPU cores that learner and generators share."""
    alternating: bool
    """True for strictly on-policy runs: learner and generators take turns, so each gets all the cores."""
    ranks: int
    """Learner processes (ZeRO ranks)."""
    learner_threads: int
    """Threads of one rank."""
    replicas: int
    """Generator processes."""
    generator_threads: int
    """Threads of one replica."""
    workers: int
    """Rollout worker processes; they wait for the others most of the time and get no cores of their own."""
    prompts_per_step: int
    samples_per_prompt: int
    optimizer_steps_per_batch: int
    micro_batch_tokens: int
    """Token budget of one forward and backward pass of one rank."""
    max_staleness: int

    @property
    def rollouts_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def busy_threads(self) -> int:
        """Most threads that compute at the same time."""
        sides = (self.ranks * self.learner_threads, self.replicas * self.generator_threads)
        return max(sides) if self.alternating else sum(sides)

    def to_json(self) -> dict[str, Any]:
        """All figures, for `rl train --dry-run --json`."""
        return asdict(self) | {"rollouts_per_step": self.rollouts_per_step, "busy_threads": self.busy_threads}

    def lines(self) -> list[str]:
        """The plan for a person, one line a fact."""
        turns = "take turns on all cores" if self.alternating else "run side by side on split cores"
        kind = {0: "strictly on-policy", 1: "one step off-policy"}.get(
            self.max_staleness, f"asynchronous, up to {self.max_staleness} steps stale"
        )
        lines = [
            f"cores      {self.cores}; learner and generators {turns} ({kind})",
            f"learner    {_count(self.ranks, 'rank')} x {_count(self.learner_threads, 'thread')}",
            f"generators {_count(self.replicas, 'replica')} x {_count(self.generator_threads, 'thread')}",
            f"rollouts   {_count(self.workers, 'worker')}",
            f"batch      {_count(self.prompts_per_step, 'prompt')} a step x {_count(self.samples_per_prompt, 'sample')} a prompt "
            f"= {_count(self.rollouts_per_step, 'rollout')}, in {_count(self.optimizer_steps_per_batch, 'optimizer step')} "
            f"of micro-batches up to {_count(self.micro_batch_tokens, 'token')}",
        ]
        if self.busy_threads > self.cores:
            lines.append(
                f"warning    {self.busy_threads} busy threads on {_count(self.cores, 'core')} is slow: use fewer ranks or replicas"
            )
        return lines


def make_plan(config: Config, *, cores: int | None = None) -> Plan:
    """Share the cores. `cores` is what the machine has (default: what this process may use); `run.threads` overrides it.

    With `max_staleness` 0 each side gets all cores, divided by its processes. Otherwise the generators get half (rounded
    down) and the learner the rest. No process gets less than one thread.
    """
    total = config.run.threads or cores or available_cores()
    ranks, replicas = config.learner.ranks, config.generator.replicas
    alternating = config.rollout.max_staleness == 0
    generator_cores = total if alternating else total // 2
    learner_cores = total if alternating else total - generator_cores
    return Plan(
        cores=total,
        alternating=alternating,
        ranks=ranks,
        learner_threads=max(1, learner_cores // ranks),
        replicas=replicas,
        generator_threads=max(1, generator_cores // replicas),
        workers=config.rollout.workers,
        prompts_per_step=config.rollout.prompts_per_step,
        samples_per_prompt=config.rollout.samples_per_prompt,
        optimizer_steps_per_batch=config.learner.optimizer_steps_per_batch,
        micro_batch_tokens=config.learner.micro_batch_tokens,
        max_staleness=config.rollout.max_staleness,
    )


def uses_containers(config: Config) -> bool:
    """Whether episodes keep containers."""
    return any(task.env == "swe" or task.kind == "swe" for task in config.tasks.values())


def containers_at_once(config: Config) -> int:
    """Containers of one process alive at a time."""
    return config.containers.at_once or 4 * available_cores()


def available_cores() -> int:
    """Cores this process may use: its CPU affinity, or fewer under a container's CPU quota (cgroup v2, then v1)."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """CPU quota in cores, None without a limit."""
    try:
        if (root / "cpu.max").is_file():
            allowed, period = (root / "cpu.max").read_text().split()
        else:
            allowed, period = ((root / "cpu" / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    except (OSError, ValueError):
        return None
    return None if allowed in ("max", "-1") else int(allowed) / int(period)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
