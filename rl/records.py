"""Records of the ring, in the order in which data goes round it.

Axis suffixes: T tokens of one sequence, P prompt tokens, G samples of a group, B rows of a micro-batch, L row length,
N response tokens of a micro-batch. Arrays are numpy; torch appears only from the learner on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from environments.records import Json, Message, Problem, SandboxInfo, StopReason
from rewards.score import Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means off."""
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenerateRequest:
    """One prompt and n samples of it: the generator prefills the prompt once."""

    key: str
    """Orders requests of one round deterministically, for example `00000012.0` (group index, turn)."""
    episodes: tuple[str, ...]
    """One rollout id a sample, in the order of `seeds`."""
    prompt_ids_P: np.ndarray
    """int32[P]: the whole context so far."""
    seeds: tuple[int, ...]
    """One 64-bit seed a sample, from (run seed, task, sample, turn)."""
    sampling: Sampling
    task_id: str = ""
    """What the prompt comes from; a model does not need to know."""
    turn: int = 0
    """Earlier turns of these episodes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Completion:
    """What the generator sampled for one request and seed."""

    token_ids_T: np.ndarray
    """int32[T], the stop token included when one was sampled."""
    logprobs_T: np.ndarray
    """float32[T]: log softmax of the raw logits (before temperature, top-k and top-p) at the sampled token, in nats."""
    versions_T: np.ndarray
    """int32[T]: policy version that produced each token."""
    stop_reason: StopReason


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Turn:
    """One action of the policy: the tokens it was shown since its last action, and those it sampled."""

    context_ids_P: np.ndarray
    """int32[P]: environment tokens since the previous turn; the whole rendered conversation for the first one and after a restart."""
    completion: Completion
    text: str
    """The completion decoded, without special tokens other than those of execution traces: what the environment saw."""
    restarts: bool = False
    """The chat template could not continue the tokens before this turn, so the policy saw the conversation rendered anew: a new
    training sample starts here."""
    started: float
    """Unix seconds."""
    ended: float


def unbroken(turns: Sequence[Turn]) -> list[tuple[Turn, ...]]:
    """Runs of turns whose tokens continue each other."""
    starts = [i for i, turn in enumerate(turns) if i == 0 or turn.restarts]
    return [tuple(turns[start:end]) for start, end in zip(starts, [*starts[1:], len(turns)], strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rollout:
    """One finished episode. Written to the log once, where it ends."""

    rollout_id: str
    """`<group_id>-<sample_index>`; the same in every attempt of a run."""
    sample_index: int
    seed: int
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    """All messages in order, the prompt included."""
    score: Score
    stop_reason: StopReason
    outcome: Mapping[str, Json] = field(default_factory=dict)
    """What the environment handed over at the end, for example a submitted patch; empty when a limit cut the episode short."""
    error_type: str = ""
    """Class name of the exception when `stop_reason` is error."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase: generate, environment, score."""
    sandbox: SandboxInfo = field(default_factory=SandboxInfo)
    """Where its programs ran, of an environment that tells."""

    @property
    def n_sampled(self) -> int:
        """Tokens sampled by the policy over all turns."""
        return sum(len(turn.completion.token_ids_T) for turn in self.turns)

    @property
    def policy_min(self) -> int:
        """Oldest policy version among the sampled tokens; -1 when none was sampled."""
        return min((int(t.completion.versions_T.min()) for t in self.turns if len(t.completion.versions_T)), default=-1)

    @property
    def policy_max(self) -> int:
        """Newest policy version among the sampled tokens; -1 when none was sampled."""
        return max((int(t.completion.versions_T.max()) for t in self.turns if len(t.completion.versions_T)), default=-1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RolloutGroup:
    """All G samples of one problem."""

    group_id: str
    """Zero-padded `index`, prefixed by the split for held-out groups."""
    index: int
    """Position in the task source's order; orders groups everywhere."""
    problem: Problem
    split: str
    """`train` or `heldout`."""
    dispatch_version: int
    """Policy version when the group was started."""
    rollouts: tuple[Rollout, ...]
    sampling: Sampling | None = None
    """How its tokens were drawn; None when nobody knows any more."""
    env_version: str = ""
    """Of the code that played the episodes (`environments.provenance`)."""
    scorer: str = ""
    """What graded: the reward, as the configuration names it."""
    scorer_hash: str = ""
    """Of the reward's name and source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenExample:
    """A conversation for supervised learning."""

    token_ids: tuple[int, ...]
    """T: every token, prompt first."""
    mask: tuple[int, ...]
    """T: 1 on what is learned, 0 elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Something that an actor did, for the timeline."""

    name: str
    """generate, environment and score of a rollout; a phase of the loop."""
    started: float
    """Unix seconds."""
    ended: float
    version: int
    """Policy version at the time: the group's dispatch version, or the loop's."""
    train_step: int | None = None
    """1-based; for phases of the loop."""
    group_id: str | None = None
    rollout_id: str | None = None
    turn: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainSample:
    """One rollout as the learner sees it; several where the chat template made it start anew."""

    rollout_id: str
    part: int = 0
    """Position among the samples of its rollout."""
    group_index: int
    token_ids_T: np.ndarray
    """int32[T]: every token of the rollout, prompt first."""
    agent_mask_T: np.ndarray
    """bool[T]: True on tokens that the policy sampled."""
    behaviour_logprobs_T: np.ndarray
    """float32[T]: raw behaviour logprobs on agent tokens, 0 elsewhere."""
    versions_T: np.ndarray
    """int32[T]: policy version on agent tokens, -1 elsewhere."""
    advantage: float
    prompt_len: int
    """Tokens of the first turn's context: shared by all samples of a group."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """Rows that go through the model together.

    A row is one document or several, end to end; no token sees another document. A document is one shared prompt followed by
    the remainders of one or more of its group's samples. A token sees its document's prompt (segment 0) and earlier tokens of
    its own segment; positions start at 0 in every document and continue from the prompt in every segment.
    A remainder's last token predicts nothing, so it is a target only and takes no place in the row.
    The N response tokens are flattened over rows; logits that predict token `index_N[i]` come from `source_N[i]`.
    """

    token_ids_BL: np.ndarray
    """int64[B, L], padded with 0."""
    positions_BL: np.ndarray
    """int64[B, L]: position of each token in its own sequence."""
    segments_BL: np.ndarray
    """int32[B, L]: 0 prompt, 1.. sample within the document, -1 padding."""
    documents_BL: np.ndarray
    """int32[B, L]: document within the row, -1 padding."""
    source_N: np.ndarray
    """int64[N]: flat index into B*L of the hidden state that predicts each response token."""
    targets_N: np.ndarray
    """int64[N]: the response token ids."""
    behaviour_logprobs_N: np.ndarray
    """float32[N]"""
    advantages_N: np.ndarray
    """float32[N]"""
    weights_N: np.ndarray
    """float32[N]: loss weight of each token; the objective's aggregation and global denominator are already in it."""
    sample_N: np.ndarray
    """int32[N]: index into `rollout_ids` of the sample each token belongs to."""
    rollout_ids: tuple[str, ...]
    """One a sample; the samples of one rollout share it."""
    parts: tuple[int, ...]
    """`TrainSample.part` of each sample."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Everything one optimizer step of one rank consumes. All ranks hold the same number of micro-batches."""

    micro_batches: tuple[MicroBatch, ...]
    n_tokens: int
    """Global count of response tokens over all ranks."""
    n_samples: int
    """Global count of training samples over all ranks."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleStats:
    """What the learner saw on one training sample; those of a rollout become a row of the `learner` dataset."""

    rollout_id: str
    part: int = 0
    """`TrainSample.part`."""
    logprobs_T: np.ndarray
    """float32[agent tokens]: the learner's own raw logprobs before the update."""
    entropies_T: np.ndarray
    """float16[agent tokens], nats."""
    n_clipped: int
    """Tokens whose gradient the objective cut."""
    kl: float
    """Mean over tokens of the k3 estimator between behaviour and learner policy, nats: the engine mismatch when on-policy."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepStats:
    """Result of one training step over all optimizer steps of a batch, reduced over ranks."""

    loss: float
    grad_norm: float
    learning_rate: float
    entropy: float
    """Mean over trained tokens, nats."""
    kl: float
    """Mean k3 over trained tokens between behaviour and learner policy, nats."""
    clip_fraction: float
    n_tokens: int
    seconds: float
    samples: tuple[SampleStats, ...]
    """This rank's samples."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightSlice:
    """A contiguous piece of one flattened parameter: all of its elements, or those that have changed since another version."""

    name: str
    """Hugging Face state-dict name."""
    start: int
    """First element in the flattened parameter."""
    values: np.ndarray
    """uint8[bytes]: raw little-endian bytes of elements of the sync dtype: of all `count`, or of the changed ones."""
    count: int
    """Elements that the slice is about."""
    gaps: np.ndarray | None = None
    """uint8[bytes]: which elements have changed (`rl.weight_delta.pack_gaps`); None when `values` has all of them."""
    digest: int | None = None
    """xxh3_64 over the bytes of all `count` elements as they are after the change; None when `values` has all of them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightBucket:
    """What one rank ships at a time."""

    version: int
    rank: int
    index: int
    last: bool
    """True on the rank's last bucket of this version."""
    dtype: str
    """`float32` or `bfloat16`."""
    slices: tuple[WeightSlice, ...]
    checksum: int
    """xxh3_64 over names, starts and bytes of the slices in order."""
    base: int | None = None
    """Version that the receiver must hold, on which this one is told; None for a bucket that needs none."""

    @property
    def nbytes(self) -> int:
        """Of what is shipped for its slices."""
        return sum(piece.values.nbytes + (0 if piece.gaps is None else piece.gaps.nbytes) for piece in self.slices)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Publication:
    """One version of the weights, as the learner hands it over."""

    version: int
    base: int | None
    """Version that a generator must hold to take it; None: it needs none."""
    buckets: tuple[Any, ...]
    """References to the buckets of all ranks."""
    nbytes: int
    """Of the buckets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """One version of the weights, as all generators have it."""

    checksum: str
    broadcasts_failed: int
    """Broadcasts that did not come to their end on the way."""
