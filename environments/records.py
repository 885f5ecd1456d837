"""Records that cross the environment boundary: what a task is, what is said, how an episode ends.

Everything here is a frozen, keyword-only dataclass. A `Problem` is the only place where a task and its hidden reference
meet; environments receive `problem.task`, graders receive both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

Json = Any
"""A value that `json.dumps` accepts: None, bool, int, float, str, list or dict of those."""
Role = Literal["system", "user", "assistant", "tool"]


class StopReason(Enum):
    """Why a completion or an episode ended."""

    STOP_TOKEN = "stop_token"
    """The model sampled one of its stop tokens."""
    MAX_TOKENS = "max_tokens"
    """The completion reached its token budget."""
    CONTEXT_FULL = "context_full"
    """Prompt plus completion reached the generator's context length."""
    DONE = "done"
    """The environment said that the episode is over."""
    MAX_TURNS = "max_turns"
    """The episode used all of its turns."""
    MAX_SECONDS = "max_seconds"
    """The episode used all of its seconds (`rollout.max_seconds`)."""
    SCRIPT_END = "script_end"
    """The script of the scripted generator has no reply for this turn."""
    ERROR = "error"
    """Infrastructure failed; the rollout carries an `error_type`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One chat message."""

    role: Role
    content: str
    name: str | None = None
    """Tool name for role `tool`."""
    exit_code: int | None = None
    """For role `tool`: of the program that was run, where the tool tells one. The policy does not see it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What the policy may see of a problem."""

    id: str
    """Unique within its source; stable across runs."""
    env: str
    """Name of the environment in the registry, for example `math`."""
    prompt: tuple[Message, ...]
    """Opening messages of the episode."""
    payload: Mapping[str, Json] = field(default_factory=dict)
    """Visible data for the environment (public tests, entry point); never gold answers or hidden tests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A task together with what only its grader may see."""

    task: Task
    reference: Mapping[str, Json]
    """Gold answer, hidden tests; by environment."""
    source: str
    """Name of the task source (a key of the config's `tasks`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What an episode may still use, as told to an environment that asks for it (`environments/protocol.py`)."""

    turns: int
    """Turns after the one being answered."""
    tokens: int
    """Of the context length, after the turn being answered."""
    seconds: float
    seconds_in_all: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """The environment's answer to one action of the policy."""

    messages: tuple[Message, ...] = ()
    """Messages to show to the policy before its next turn; empty when done."""
    done: bool
    stop_reason: StopReason | None = None
    """Set exactly when `done`."""
    outcome: Mapping[str, Json] = field(default_factory=dict)
    """With `done`: what the environment hands to the grader beside the messages, for example a submitted patch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxInfo:
    """Where programs of an episode ran."""

    image_digest: str = ""
    """`sha256:...` of the container image; empty outside containers."""
    refs: tuple[str, ...] = ()
    """Ids of the containers that were started for it, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """A finished conversation, as the grader sees it."""

    messages: tuple[Message, ...]
    """All messages in order, the prompt included."""
    stop_reason: StopReason
    n_sampled_tokens: int
    """Tokens sampled by the policy over all turns."""
    outcome: Mapping[str, Json] = field(default_factory=dict)
    """What the environment handed over at the end; empty when it was cut short by a limit."""
    policy_version: int = 0
    """Training steps behind the policy when the episode was started; 0 outside of training."""

    @property
    def response(self) -> str:
        """Text of the policy's last message; empty when it said nothing."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")
