"""Seconds of the pieces of a step, as sums of a fixed part and of parts that grow with the work.

One form serves every machine. For cards the factors come from the table of hardware (`rl/planner/roofline.py`), for this machine from a
measurement (`rl/planner/measure.py`).
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCost:
    """One decode step of a replica: a token for each running sequence."""

    step: float
    """Seconds of any step: the weights are read, the layers are started."""
    sequence: float
    """More for each running sequence."""
    position: float
    """More for each cached position of one layer that a sequence attends to."""

    def seconds(self, *, sequences: float, positions: float) -> float:
        """`positions`: summed over sequences and layers."""
        return self.step + self.sequence * sequences + self.position * positions


@dataclass(frozen=True, kw_only=True, slots=True)
class PassCost:
    """A pass of whole sequences through the model: a prefill, or forward and backward of a micro-batch."""

    call: float
    """Seconds of any pass."""
    token: float
    """More for each token, padding included."""
    pair: float
    """More for each pair of query and key that is computed, summed over layers."""
    response: float
    """More for each token that the output head scores."""
    beside: float = 0.0
    """Seconds of transfers that run beside the arithmetic: the longer of the two counts."""

    def seconds(self, *, tokens: float, pairs: float, responses: float) -> float:
        """For one rank's or replica's own share of the work."""
        return self.call + max(self.beside, self.token * tokens + self.pair * pairs + self.response * responses)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCost:
    """Processor seconds of one group outside the engine: messages, rendering, decoding, records, the log."""

    driver_start: float = 0.0
    """Of the driver, to send the group on its way."""
    driver_end: float = 0.0
    """To take it in."""
    worker_start: float = 0.0
    """Of its rollout worker, until it has asked for the first tokens."""
    worker_end: float = 0.0
    """From the first tokens until the group is handed over. A worker does one thing at a time."""
    worker_log: float = 0.0
    """Afterwards, beside its other work: the rows of the log."""
    driver_log: float = 0.0
    """Of the driver, beside its other work: the learner's rows of the log."""
    generator: float = 0.0
    """Of the replica, to take the request in, and as much again to answer it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Everything that takes time in a step."""

    decode: DecodeCost
    prefill: PassCost
    train: PassCost
    """Of one rank; all ranks run their micro-batches in step."""
    train_step: float
    """Seconds of a training step besides its micro-batches and optimizer steps: of the batch on its way to the learner and back."""
    optimizer: float
    """Seconds of one optimizer step: reduce, clip, update, and what the ranks send each other after it."""
    publish: float
    """Seconds until the weights of a version have left the learner."""
    load: float
    """Seconds in which a replica takes a version in and samples nothing."""
    refresh: float
    """More, before its first step with that version."""
    group: GroupCost
    between: float
    """Seconds of the loop between the end of one step and the next batch: the log, metrics, counters."""
    covers_rows: bool
    """Attention computes whole rows and masks what is not seen; otherwise it skips it."""
