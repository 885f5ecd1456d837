"""Stand-ins for tasks and rollouts of given lengths, in the product's own records: the planner's rehearsal trains on them."""

from pathlib import Path

import numpy as np

from environments.records import Message, Problem, StopReason, Task
from rewards.score import Score, ScoreStatus
from rl.records import Completion, Rollout, RolloutGroup, Sampling, Turn
from rl.rollout import GroupJob

_UNIT = "12+7="


def prompt_text(folder: Path, *, tokens: int) -> str:
    """A message that the model's chat template renders to about so many tokens, and no more than that unless the template alone does."""
    from rl.prompt import Renderer, load_tokenizer

    renderer = Renderer(load_tokenizer(folder))

    def length(units: int) -> int:
        return len(renderer.render_prompt((Message(role="user", content=_UNIT * units),)))

    units = 1
    while length(2 * units) <= tokens:
        units *= 2
    step = units
    while step > 1:
        step //= 2
        if length(units + step) <= tokens:
            units += step
    return _UNIT * units


def job_of(index: int, *, text: str, samples: int, tokens: int) -> GroupJob:
    """A group to be sampled: every sample has exactly `tokens` tokens."""
    task = Task(id=f"stand-in-{index}", env="math", prompt=(Message(role="user", content=text),))
    return GroupJob(
        group_id=f"{index:08d}",
        index=index,
        problem=Problem(task=task, reference={"answer": "1"}, source="stand-in"),
        split="train",
        n_samples=samples,
        dispatch_version=0,
        sampling=Sampling(max_tokens=tokens),
        seed=0,
    )


def group_of(index: int, *, samples: int, prompt: int, answer: int) -> RolloutGroup:
    """A finished group, of which every other sample was right."""
    job = job_of(index, text="", samples=samples, tokens=answer)
    ids_T, versions_T = np.full(answer, 3, dtype=np.int32), np.zeros(answer, dtype=np.int32)
    completion = Completion(
        token_ids_T=ids_T, logprobs_T=np.full(answer, -1.0, dtype=np.float32), versions_T=versions_T, stop_reason=StopReason.STOP_TOKEN
    )
    turn = Turn(context_ids_P=np.full(prompt, 3, dtype=np.int32), completion=completion, text="", started=0.0, ended=0.0)
    rollouts = tuple(
        Rollout(
            rollout_id=job.episodes[sample],
            sample_index=sample,
            seed=0,
            turns=(turn,),
            messages=(),
            score=Score(reward=float(sample % 2), status=ScoreStatus.OK if sample % 2 else ScoreStatus.POLICY_FAIL),
            stop_reason=StopReason.DONE,
        )
        for sample in range(samples)
    )
    return RolloutGroup(
        group_id=job.group_id,
        index=index,
        problem=job.problem,
        split=job.split,
        dispatch_version=0,
        rollouts=rollouts,
        sampling=job.sampling,
    )
