"""The forecast of a run: what fits, how long a step takes, what it waits for, and what to change."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.schema import Config
from rl.plan import containers_at_once
from rl.planner.memory import GIB, ProcessMemory
from rl.planner.simulate import Simulated, StepRecord

_BUSY = 0.8
"""Share of the time above which replicas count as the limit."""
_MUCH = 0.15
"""Share of a step above which something is worth a word although it is not the largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What is to be expected, means over the steps after the first ones, in which the ring fills."""

    model: str
    parameters: int
    hardware: str
    learner_devices: int
    generator_devices: int
    workload: str
    memory: tuple[ProcessMemory, ...]
    step_seconds: float
    phases: Mapping[str, float]
    """Seconds a step, with the log's names: rollout (the wait for a batch), train, sync, log."""
    optimizer_seconds: float
    """Of train."""
    sync_seconds: float
    """From the end of a step's training until the replicas sample with its weights."""
    tokens_per_s: float
    """Sampled tokens of the trained batches."""
    generator_busy: float
    """Share of the time in which a replica computes."""
    sequences: float
    """That decode together while a replica computes."""
    staleness: Mapping[int, float]
    """Versions between sampling and training: share of the trained tokens."""
    discard_rate: float
    """Of the finished groups: rejected at one of the buffer's doors."""
    rejected: Mapping[str, int]
    """Groups by reason."""
    bottleneck: str
    advice: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Cards, or cores, in all."""
        return self.learner_devices + self.generator_devices

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not fit, by how much, and what to change; empty when everything fits."""
        return tuple(problem for memory in self.memory if (problem := memory.problem()) is not None)

    def to_json(self) -> dict[str, Any]:
        """For `rl plan --json`."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "hardware": self.hardware,
            "learner_devices": self.learner_devices,
            "generator_devices": self.generator_devices,
            "workload": self.workload,
            "fits": not self.problems,
            "problems": list(self.problems),
            "memory": [
                {
                    "kind": memory.kind,
                    "count": memory.count,
                    "bytes": round(memory.total),
                    "available": round(memory.available),
                    "excess": round(memory.excess),
                    "parts": {part.name: round(part.bytes) for part in memory.parts},
                }
                for memory in self.memory
            ],
            "step_seconds": self.step_seconds,
            "phases": dict(self.phases),
            "optimizer_seconds": self.optimizer_seconds,
            "sync_seconds": self.sync_seconds,
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_per_device": self.tokens_per_s / self.devices,
            "generator_busy": self.generator_busy,
            "sequences": self.sequences,
            "staleness": {str(age): share for age, share in self.staleness.items()},
            "discard_rate": self.discard_rate,
            "rejected": dict(self.rejected),
            "bottleneck": self.bottleneck,
            "advice": list(self.advice),
        }

    def lines(self) -> list[str]:
        """For a person."""
        lines = [
            f"model       {self.model}, {self.parameters:,} parameters, on {self.hardware}",
            f"workload    {self.workload}",
        ]
        for memory in self.memory:
            parts = ", ".join(f"{part.name} {part.bytes / GIB:.2f}" for part in sorted(memory.parts, key=lambda part: -part.bytes))
            lines.append(
                f"memory      {memory.count} x {memory.kind}: {memory.total / GIB:.2f} of {memory.available / GIB:.2f} GiB ({parts})"
            )
        phases = ", ".join(f"{name} {seconds:.3g}" for name, seconds in self.phases.items())
        ages = ", ".join(f"{age}: {share:.0%}" for age, share in self.staleness.items())
        reasons = f" ({', '.join(f'{name} {count}' for name, count in self.rejected.items())})" if self.rejected else ""
        lines += [
            f"step        {self.step_seconds:.3g} s: {phases}; of train {self.optimizer_seconds:.3g} is the optimizer's",
            f"weights     {self.sync_seconds:.3g} s a version",
            f"speed       {self.tokens_per_s:,.0f} tokens/s, {self.tokens_per_s / self.devices:,.1f} a device",
            f"generators  busy {self.generator_busy:.0%} of the time with {self.sequences:.1f} sequences",
            f"staleness   {ages or 'nothing is trained'}",
            f"discarded   {self.discard_rate:.1%} of the groups{reasons}",
            f"bottleneck  {self.bottleneck}",
            *(f"change      {line}" for line in self.advice),
        ]
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is planned: names and counts that a forecast repeats."""

    model: str
    parameters: int
    hardware: str
    learner_devices: int
    generator_devices: int
    workload: str


def warm_up(config: Config) -> int:
    """Steps until the ring has filled: the first batches were sampled while nothing else was under way."""
    return min(config.rollout.max_staleness, 4) + 1


def forecast(config: Config, *, subject: Subject, simulated: Simulated, memory: Sequence[ProcessMemory]) -> Forecast:
    """Sum a simulated run up."""
    steps = simulated.steps[warm_up(config) :] or simulated.steps
    seconds = sum(step.seconds for step in steps) / len(steps)
    phases = {name: sum(step.phases[name] for step in steps) / len(steps) for name in steps[0].phases}
    ages: Counter[int] = Counter()
    rejected: Counter[str] = Counter()
    for step in steps:
        ages.update(step.staleness)
        rejected.update(step.rejected)
    bottleneck, advice = _limit(config, phases=phases, seconds=seconds, simulated=simulated, steps=steps)
    finished = rejected.total() + sum(step.groups for step in steps)
    return Forecast(
        model=subject.model,
        parameters=subject.parameters,
        hardware=subject.hardware,
        learner_devices=subject.learner_devices,
        generator_devices=subject.generator_devices,
        workload=subject.workload,
        memory=tuple(memory),
        step_seconds=seconds,
        phases=phases,
        optimizer_seconds=sum(step.optimizer_seconds for step in steps) / len(steps),
        sync_seconds=phases["sync"],
        tokens_per_s=sum(step.sampled_tokens for step in steps) / (seconds * len(steps)),
        generator_busy=simulated.busy,
        sequences=simulated.occupancy,
        staleness={age: ages[age] / ages.total() for age in sorted(ages)},
        discard_rate=rejected.total() / finished,
        rejected=dict(rejected),
        bottleneck=bottleneck,
        advice=advice,
    )


def _limit(
    config: Config, *, phases: Mapping[str, float], seconds: float, simulated: Simulated, steps: Sequence[StepRecord]
) -> tuple[str, tuple[str, ...]]:
    """What the ring waits for, and what shortens it."""
    shares = {name: value / seconds for name, value in phases.items()}
    largest = max(("rollout", "train", "sync"), key=lambda name: shares[name])
    staleness = config.rollout.max_staleness
    # Of the time in which they may sample: while weights are loaded they cannot.
    busy = min(1.0, simulated.busy / max(1e-9, 1 - shares["sync"]))
    if largest == "train":
        advice = ["raise learner.ranks"]
        if busy < 0.5 and staleness > 0:
            advice.append(f"the generators are busy {busy:.0%} of the time: lower generator.replicas")
        if steps and max(step.optimizer_seconds for step in steps) > 0.3 * phases["train"]:
            advice.append("the optimizer takes much of it: lower learner.optimizer_steps_per_batch, or set learner.offload_optimizer=false")
        return f"the learner: {shares['train']:.0%} of a step is training", tuple(advice)
    if largest == "sync":
        advice = ["raise learner.bucket_mb"] if config.learner.weight_sync == "delta" else ["set learner.weight_sync=delta"]
        return f"weight sync: {shares['sync']:.0%} of a step", (
            *advice,
            "raise rollout.prompts_per_step: fewer versions for the same tokens",
        )
    waits = f"{shares['rollout']:.0%} of a step waits for rollouts"
    sync = f"weight sync takes {shares['sync']:.0%} of a step: set learner.weight_sync=delta"
    also = [sync] if shares["sync"] > _MUCH and config.learner.weight_sync == "full" else []
    first = "rollout.max_staleness is 0: raise it, so that rollouts go on while the learner trains"
    if busy >= _BUSY:
        more = ["raise generator.replicas"]
        if simulated.occupancy > 0.9 * config.generator.slots:
            more.append("all slots are in use: raise generator.slots where memory allows")
        advice = [*([first] if not staleness else []), *more, *also]
        return f"the generators: {waits}, and they are busy {busy:.0%} of the time that weight sync leaves them", tuple(advice)
    if simulated.held_back > 0.5:
        room = f"{simulated.held_back:.0%} of the groups wait until other episodes have ended: raise containers.at_once"
        if not config.containers.at_once:
            room += f" (0 means four a processor of the machine that starts the run: {containers_at_once(config)} here)"
        return f"room for episodes: {waits}, and the generators are busy only {busy:.0%} of the time", (room, *also)
    advice = [first] if not staleness else [f"raise rollout.max_staleness above {staleness}: more episodes run at a time"]
    return f"the environment's latency: {waits}, and the generators are busy only {busy:.0%} of the time", (*advice, *also)
