"""Speed over numbers of cards: the same batch on more cards, and a batch that grows with them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from configs.schema import Config
from rl.planner.forecast import warm_up
from rl.planner.hardware import Card
from rl.planner.layout import replica_cards, sequence_ranks
from rl.planner.roofline import card_costs
from rl.planner.shape import ModelShape
from rl.planner.simulate import Setup, simulate
from rl.planner.workload import Workload

TOTALS = (8, 16, 32, 64, 128, 256, 512, 1000)
"""Numbers of cards that are simulated."""
_STEPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingPoint:
    """One number of cards."""

    ranks: int
    replicas: int
    cards: int
    step_seconds: float
    tokens_per_s: float
    phases: Mapping[str, float]
    """Seconds a step, with the log's names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """Two curves over the same numbers of cards, shared between learner and generators as in the configuration."""

    card: str
    configured: int
    """Cards that the configuration asks for."""
    same_batch: tuple[ScalingPoint, ...]
    grown_batch: tuple[ScalingPoint, ...]
    """`rollout.prompts_per_step` in proportion to the cards."""


def scaling(config: Config, *, shape: ModelShape, card: Card, workload: Workload) -> Scaling:
    """Simulate every number of cards that a rank and a replica fit into; whether their memory suffices is another question."""
    cards, sharers = replica_cards(config), sequence_ranks(config)
    configured = config.learner.ranks + config.generator.replicas * cards
    same, grown = [], []
    for total in TOTALS:
        if total < sharers + cards:
            continue
        replicas = max(1, round(total * config.generator.replicas / configured))
        replicas = min(replicas, (total - sharers) // cards)
        ranks = (total - replicas * cards) // sharers * sharers
        sized = replace(config, learner=replace(config.learner, ranks=ranks), generator=replace(config.generator, replicas=replicas))
        costs = card_costs(sized, shape=shape, card=card)
        setup = Setup(config=sized, shape=shape, costs=costs, workload=workload)
        same.append(_point(setup, times=1, of=sized, cards=total))
        # Ranks and replicas that have as much to do each as in the configuration: one such ring stands for the larger one, at the
        # larger one's costs of collectives and weight sync.
        grown.append(_point(replace(setup, config=config), times=total / configured, of=sized, cards=total))
    return Scaling(card=card.name, configured=configured, same_batch=tuple(same), grown_batch=tuple(grown))


def _point(setup: Setup, *, times: float, of: Config, cards: int) -> ScalingPoint:
    first = warm_up(setup.config)
    steps = simulate(setup, steps=first + _STEPS).steps[first:]
    seconds = sum(step.seconds for step in steps)
    return ScalingPoint(
        ranks=of.learner.ranks,
        replicas=of.generator.replicas,
        cards=cards,
        step_seconds=seconds / len(steps),
        tokens_per_s=times * sum(step.sampled_tokens for step in steps) / seconds,
        phases={name: sum(step.phases[name] for step in steps) / len(steps) for name in steps[0].phases},
    )
