"""Small finished groups and metrics for the tests of the log."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from environments.records import Message, Problem, StopReason, Task
from rewards.score import Score, ScorePart, ScoreStatus
from rl.log.metrics import StepMetrics
from rl.records import Completion, Rollout, RolloutGroup, SampleStats, StepStats, TrainSample, Turn


def make_turn(*, context: Sequence[int], sampled: Sequence[int], version: int = 0, text: str = "4") -> Turn:
    n = len(sampled)
    completion = Completion(
        token_ids_T=np.asarray(sampled, np.int32),
        logprobs_T=-np.linspace(0.1, 1.0, n).astype(np.float32),
        versions_T=np.full(n, version, np.int32),
        stop_reason=StopReason.STOP_TOKEN,
    )
    return Turn(context_ids_P=np.asarray(context, np.int32), completion=completion, text=text, started=100.0, ended=101.5)


def make_rollout(
    rollout_id: str,
    *,
    sample: int = 0,
    turns: Sequence[Turn] | None = None,
    messages: Sequence[Message] | None = None,
    score: Score | None = None,
    outcome: Mapping[str, Any] | None = None,
    stop_reason: StopReason = StopReason.DONE,
) -> Rollout:
    turns = [make_turn(context=[1, 2, 3], sampled=[7, 8])] if turns is None else turns
    said = [Message(role="user", content="2+2?"), *(Message(role="assistant", content=turn.text) for turn in turns)]
    return Rollout(
        rollout_id=rollout_id,
        sample_index=sample,
        seed=2**64 - 1,
        turns=tuple(turns),
        messages=tuple(said if messages is None else messages),
        score=score or Score(reward=1.0, status=ScoreStatus.OK, parts={"answer": ScorePart(value=1.0, reason="4 is 4")}, reason="right"),
        stop_reason=stop_reason,
        outcome=outcome or {},
        timings={"generate": 1.5, "score": 0.25},
    )


def make_group(
    index: int = 0, *, version: int = 0, rollouts: Sequence[Rollout] | None = None, n: int = 2, split: str = "train"
) -> RolloutGroup:
    task = Task(id=f"task-{index}", env="math", prompt=(Message(role="user", content="2+2?"),))
    group_id = f"{index:08d}"
    return RolloutGroup(
        group_id=group_id,
        index=index,
        problem=Problem(task=task, reference={"answer": "4"}, source="sums"),
        split=split,
        dispatch_version=version,
        rollouts=tuple(rollouts if rollouts is not None else (make_rollout(f"{group_id}-{i}", sample=i) for i in range(n))),
    )


def make_sample(rollout: Rollout, *, group_index: int = 0, advantage: float = 0.5) -> TrainSample:
    """Single-turn rollouts only."""
    turn = rollout.turns[0]
    prompt, n = len(turn.context_ids_P), len(turn.completion.token_ids_T)
    return TrainSample(
        rollout_id=rollout.rollout_id,
        group_index=group_index,
        token_ids_T=np.concatenate([turn.context_ids_P, turn.completion.token_ids_T]),
        agent_mask_T=np.arange(prompt + n) >= prompt,
        behaviour_logprobs_T=np.concatenate([np.zeros(prompt, np.float32), turn.completion.logprobs_T]),
        versions_T=np.concatenate([np.full(prompt, -1, np.int32), turn.completion.versions_T]),
        advantage=advantage,
        prompt_len=prompt,
    )


def make_stats(samples: Sequence[TrainSample]) -> StepStats:
    seen = [
        SampleStats(
            rollout_id=sample.rollout_id,
            part=sample.part,
            logprobs_T=sample.behaviour_logprobs_T[sample.agent_mask_T] + np.float32(1e-3),
            entropies_T=np.full(int(sample.agent_mask_T.sum()), 0.75, np.float16),
            n_clipped=1,
            kl=1e-5,
        )
        for sample in samples
    ]
    return StepStats(
        loss=0.1, grad_norm=0.5, learning_rate=1e-6, entropy=0.75, kl=1e-5, clip_fraction=0.01, n_tokens=4, seconds=2.0, samples=tuple(seen)
    )


def make_metrics(step: int, **changes: Any) -> StepMetrics:
    values: Mapping[str, Any] = {
        "step": step,
        "version": step - 1,
        "time": 1000.0 + step,
        "seconds": 4.0,
        "reward_mean": 0.5,
        "pass_rate": {"sums": 0.5, "code": 0.25},
        "response_length": 12.5,
        "entropy": 0.9,
        "kl": 1e-5,
        "clip_fraction": 0.02,
        "grad_norm": 0.4,
        "learning_rate": 1e-6,
        "loss": 0.01,
        "staleness_mean": 0.5,
        "staleness_max": 2,
        "tokens": 400,
        "tokens_per_s": 100.0,
        "phases": {"rollout": 3.0, "train": 0.8, "sync": 0.2},
        "drops": {"zero_variance": 1},
        "groups_trained": 3,
        "groups_skipped": 1,
    }
    return StepMetrics(**{**values, **changes})
