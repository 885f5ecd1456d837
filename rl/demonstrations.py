"""Demonstrations of several turns for a warm start: a script's replies, played through the real environment and graded.

A problem may carry `reference['replies']`, the texts of the assistant's messages of an episode that solves it. Each is a rollout of the
scripted engine like any other, so what the supervised stage learns are the very tokens that RL will see: those of the environment as
context, those of the replies with a loss on them. Only rollouts that the grader passes are kept.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from configs.schema import Config
from environments.records import Problem
from rewards.score import ScoreStatus
from rl.generator import Generator
from rl.plan import containers_at_once
from rl.prompt import ChatTokenizer, Renderer
from rl.records import Rollout, Sampling, TokenExample, unbroken
from rl.rollout import GroupJob, RolloutWorker
from rl.samples import to_sample
from rl.scripted import ScriptedEngine
from rl.weight_sync import DiscardedWeights

REPLIES = "replies"
"""Key of `Problem.reference`."""
_SHOWN, _REASON_CHARS = 3, 200
"""Reasons that are told, and how much of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstrations:
    """What came of playing them."""

    examples: tuple[TokenExample, ...]
    dropped: tuple[tuple[str, int], ...]
    """Why the others are left out, and how many, the most frequent first."""

    def told(self) -> str:
        """For a person: how many were dropped and why; empty when none was."""
        number = sum(count for _, count in self.dropped)
        more = "" if len(self.dropped) <= _SHOWN else f" and {len(self.dropped) - _SHOWN} more reasons"
        return f"{number} left out: " + "; ".join(f"{count} x {why}" for why, count in self.dropped[:_SHOWN]) + more if number else ""


async def play_demonstrations(
    config: Config, problems: Sequence[Problem], *, tokenizer: ChatTokenizer, sampling: Sampling, say: Callable[[str], None]
) -> Demonstrations:
    """Play every problem's replies once, many at a time. Raises ValueError when none passes."""
    script = {problem.task.id: problem.reference[REPLIES] for problem in problems}
    engine = ScriptedEngine(script, tokenizer=tokenizer, context_length=config.model.context_length)
    generator = Generator(engine, lockstep=False, receiver=DiscardedWeights())
    asynchronous = replace(config, rollout=replace(config.rollout, max_staleness=1))
    worker = RolloutWorker(asynchronous, renderer=Renderer(tokenizer), generators=[generator], write_group=lambda group: None)
    room = asyncio.Semaphore(containers_at_once(config))
    examples: list[TokenExample] = []
    dropped: Counter[str] = Counter()
    n_done = 0

    async def play(index: int, problem: Problem) -> tuple[Rollout | None, str]:
        nonlocal n_done
        job = GroupJob(
            group_id=f"demonstration-{index:06d}",
            index=index,
            problem=problem,
            split="train",
            n_samples=1,
            dispatch_version=0,
            sampling=sampling,
            seed=config.run.seed,
        )
        async with room:
            outcome = await worker.run_group(job)
        n_done += 1
        if n_done % 100 == 0:
            say(f"warm start: {n_done} of {len(problems)} demonstrations played")
        return (outcome.group.rollouts[0], "") if outcome.group else (None, outcome.dropped)

    try:
        for rollout, why in await asyncio.gather(*(play(index, problem) for index, problem in enumerate(problems))):
            if rollout is not None and rollout.score.status is ScoreStatus.OK:
                examples += _examples(rollout)
            else:
                dropped[why if rollout is None else _why(rollout)] += 1
    finally:
        generator.close()
        await worker.close()
    played = Demonstrations(examples=tuple(examples), dropped=tuple(dropped.most_common()))
    if not examples:
        raise ValueError(f"warm_start: no demonstration passed; {played.told()}")
    return played


def _why(rollout: Rollout) -> str:
    return f"{rollout.score.status.value}, ended by {rollout.stop_reason.value}: {rollout.score.reason[:_REASON_CHARS]}"


def _examples(rollout: Rollout) -> list[TokenExample]:
    """One, and one more for each time that the chat template made the policy's view start anew."""
    made = []
    for part, turns in enumerate(unbroken(rollout.turns)):
        sample = to_sample(turns, rollout_id=rollout.rollout_id, part=part, group_index=0, advantage=0.0)
        made.append(TokenExample(token_ids=tuple(sample.token_ids_T.tolist()), mask=tuple(map(int, sample.agent_mask_T))))
    return made
