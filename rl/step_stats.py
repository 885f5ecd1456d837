"""Collects the statistics of one training step while its micro-batches pass through the learner."""

import numpy as np
import torch
from torch import Tensor

from rl.batch import PADDING_ROLLOUT
from rl.records import MicroBatch, SampleStats


class StepTotals:
    """Running sums over the micro-batches of one rank, in nats and tokens."""

    def __init__(self) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._samples: list[SampleStats] = []

    def add(self, micro_batch: MicroBatch, *, loss: Tensor, logprobs_N: Tensor, entropies_N: Tensor, clipped_N: Tensor) -> None:
        """Add one micro-batch: the objective's loss, and the learner's view of its N response tokens before the update.

        Micro-batches that only keep the ranks in step count for nothing.
        """
        if micro_batch.rollout_ids == (PADDING_ROLLOUT,):
            return
        logprobs = logprobs_N.detach().float().cpu().numpy()
        entropies = entropies_N.float().cpu().numpy()
        clipped = clipped_N.cpu().numpy()
        log_ratio = logprobs.astype(np.float64) - micro_batch.behaviour_logprobs_N
        k3 = np.expm1(log_ratio) - log_ratio
        self._sums += torch.tensor([float(loss.detach()), entropies.sum(dtype=np.float64), k3.sum(), clipped.sum(), len(logprobs)])
        for index, (rollout_id, part) in enumerate(zip(micro_batch.rollout_ids, micro_batch.parts, strict=True)):
            own = micro_batch.sample_N == index
            if own.any():
                self._samples.append(
                    SampleStats(
                        rollout_id=rollout_id,
                        part=part,
                        logprobs_T=logprobs[own],
                        entropies_T=entropies[own].astype(np.float16),
                        n_clipped=int(clipped[own].sum()),
                        kl=float(k3[own].mean()),
                    )
                )

    @property
    def sums(self) -> Tensor:
        """float64[5]: loss, entropy, k3 (Schulman's estimator of KL(behaviour || learner)), clipped tokens, tokens."""
        return self._sums

    @property
    def samples(self) -> tuple[SampleStats, ...]:
        """This rank's samples in the order in which they were trained."""
        return tuple(self._samples)
