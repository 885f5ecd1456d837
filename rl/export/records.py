"""What an exporter gets of the log: a rollout with all that is known of it, and a span. Fields are the log's columns (rl/log/schema.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Segment = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedMessage:
    """One message, its text whole."""

    message_index: int
    role: str
    name: str | None
    text: str
    tool: str | None
    arguments: str | None
    exit_code: int | None
    turn: int | None
    """None unless the policy sampled the message."""
    started: float | None
    ended: float | None
    token_start: int | None
    token_end: int | None
    finish_reason: str | None
    policy_version: int | None
    left_out: int
    """Characters that the log has lost, because the blob of a long text is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedTokens:
    """The token stream of one rollout."""

    token_ids: Sequence[int]
    """T of them."""
    segments: Sequence[Segment]
    """`start`, `len` and `kind`; they tile the stream."""
    behaviour_logprob: Sequence[float]
    """One for each of the N sampled tokens, nats."""
    logprob_kind: str | None
    version_segments: Sequence[Segment]
    """`start` (index of a sampled token) and `version`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """What one training step did with the rollout."""

    train_step: int
    admitted: bool
    drop_reason: str | None
    advantage: float | None
    n_tokens: int | None
    n_clipped: int | None
    n_masked: int | None
    staleness_mean: float | None
    staleness_max: int | None
    kl: float | None
    worst_index: int | None
    worst_token: int | None
    worst_behaviour: float | None
    worst_learner: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedTokens:
    """What the learner computed for each of the N sampled tokens."""

    learner_logprob: Sequence[float] | None
    entropy: Sequence[float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRow:
    """The narrow row of one rollout."""

    run_id: str
    rollout_id: str
    attempt: int
    logged: float
    group_id: str
    group_index: int
    sample_index: int
    seed: str | None
    task_id: str
    task_hash: str | None
    source: str | None
    env: str
    env_version: str | None
    image_digest: str | None
    split: str
    policy_min: int | None
    policy_max: int | None
    status: str
    stop_reason: str | None
    error_type: str | None
    n_turns: int | None
    prompt_tokens: int | None
    sampled_tokens: int | None
    env_tokens: int | None
    reward: float | None
    parts: Mapping[str, Mapping[str, Any]] | None
    reason: str | None
    scorer: str | None
    scorer_hash: str | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    max_tokens: int | None
    tokenizer_hash: str | None
    template_hash: str | None
    flags: Sequence[str] | None
    flag_reasons: Mapping[str, str] | None
    timings: Mapping[str, float] | None
    started: float | None
    ended: float | None
    outcome: str | None
    dispatch_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRollout:
    """One rollout with its messages and what became of it."""

    row: RolloutRow
    messages: Sequence[LoggedMessage]
    learned: Sequence[Learned]
    """By training step."""
    tokens: LoggedTokens | None
    """None where the log has none, or nobody asked for them."""
    learned_tokens: LearnedTokens | None
    """Of the last training step that has some."""

    @property
    def uid(self) -> str:
        """Unique among all runs."""
        return f"{self.row.run_id}-{self.row.rollout_id}"

    @property
    def graded(self) -> bool:
        """Whether there is a reward: neither the infrastructure nor the task failed."""
        return self.row.reward is not None

    @property
    def began(self) -> float:
        """Unix seconds; when it was logged, where nothing was sampled."""
        return self.row.started if self.row.started is not None else self.row.logged

    @property
    def finished(self) -> float:
        """Unix seconds, not before it began."""
        return max(self.began, self.row.ended if self.row.ended is not None else self.row.logged)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedSpan:
    """Something an actor did."""

    actor: str
    name: str
    started: float
    ended: float
    train_step: int | None
    group_id: str | None
    rollout_id: str | None
    turn: int | None
    attempt: int
    dispatch_version: int
    first: float
    """When the span's rollout began on this actor; `started` for a phase of the loop."""
    last: float
    """When it ended."""
