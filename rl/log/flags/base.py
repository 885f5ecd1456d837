"""What a flag rule is: a name, a short explanation when it is raised, and an immutable view of a finished rollout."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from environments.records import Json, Message, StopReason, Task
from environments.registry import identity
from environments.reply import ToolCall, final_part
from environments.swe.inside.suite_worker_paths import is_setting_path
from rewards.score import Score
from rl.log.calls import tool_call
from rl.records import Rollout, RolloutGroup

_FENCED = re.compile(r"^```[^\n`]*\n(.*?)^```", re.M | re.S)
_MOST_CHARS = 200_000
"""Of a text that rules look at: the end counts."""
_LONGEST_PATH = 300
_TEST_FILE = re.compile(r"(?:^|/)(?:tests?|testing)/|(?:^|/)(?:test_[^/]*|[^/]*_test|conftest)\.py$")
_DIFF_FILE = re.compile(r"^(?:diff --git a/\S+ b/|\+\+\+ b/)(\S+)", re.M)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """Earlier rollouts of the same task source in this process, when this one ended."""

    count: int = 0
    length_mean: float = 0.0
    """Sampled tokens."""
    length_std: float = 0.0
    surprise_mean: float = 0.0
    """-logprob of the sampled tokens, nats: an estimate of the entropy."""
    surprise_std: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RolloutView:
    """A finished rollout, for rules. Nothing in it can be changed."""

    rollout_id: str
    group_id: str
    split: str
    """train or heldout."""
    source: str
    task: Task
    """What the policy could see; never the reference."""
    messages: Sequence[Message]
    """All messages in order, the prompt included."""
    score: Score
    stop_reason: StopReason
    outcome: Mapping[str, Json] = field(default_factory=dict)
    """What the environment handed over at the end, for example a patch."""
    n_sampled: int
    surprise: float
    """Mean -logprob of the sampled tokens, nats."""
    history: History

    @cached_property
    def said(self) -> tuple[str, ...]:
        """The policy's messages; what the prompt put into its mouth is not among them."""
        prompt = self.messages[: len(self.task.prompt)]
        shown = sum(1 for message in prompt if message.role == "assistant")
        return tuple(m.content[-_MOST_CHARS:] for m in self.messages if m.role == "assistant")[shown:]

    @cached_property
    def response(self) -> str:
        """The policy's last message; empty when it said nothing."""
        return self.said[-1] if self.said else ""

    @cached_property
    def calls(self) -> tuple[ToolCall, ...]:
        """Its tool calls."""
        return tuple(call for text in self.said if (call := tool_call(text)) is not None)

    @cached_property
    def code(self) -> tuple[str, ...]:
        """The fenced blocks of the last message, behind the reasoning."""
        return tuple(_FENCED.findall(final_part(self.response)))

    @cached_property
    def patch(self) -> str:
        """The patch that the environment handed over; empty when there is none."""
        patch = self.outcome.get("patch")
        return patch[-_MOST_CHARS:] if isinstance(patch, str) else ""

    @cached_property
    def patched_files(self) -> tuple[str, ...]:
        """Paths that the patch changes."""
        return tuple(dict.fromkeys(_DIFF_FILE.findall(self.patch)))

    @cached_property
    def added(self) -> str:
        """Everything that the policy wants to be run: its code, the added lines of its patch, and the bodies of its tool calls."""
        lines = [line[1:] for line in self.patch.split("\n") if line.startswith("+") and not line.startswith("+++")]
        return "\n".join([*self.code, *(call.body for call in self.calls), *lines])[-_MOST_CHARS:]


Rule = Callable[[RolloutView], str | None]
"""A short explanation when the flag is raised, else None."""
_rules: dict[str, Rule] = {}


def flag(name: str) -> Callable[[Rule], Rule]:
    """Register a rule: a function of a `RolloutView` that returns a short explanation, or None.

    It runs when a rollout is written; an exception is counted and raises no flag. Raises ValueError for a name that is empty or taken.
    """

    def register(rule: Rule) -> Rule:
        present = _rules.get(name)
        if not name or not name.isidentifier():
            raise ValueError(f"flag name {name!r} must be a word of letters, digits and _")
        if present is not None and identity(present) != identity(rule):
            raise ValueError(f"flag {name!r} is already registered by {identity(present)}; choose another name")
        _rules[name] = rule
        return rule

    return register


def known_rules() -> Mapping[str, Rule]:
    """All rules by name."""
    return MappingProxyType(_rules)


def is_test_file(path: str) -> bool:
    """Whether a path looks like one of a test suite."""
    return _TEST_FILE.search(path[-_LONGEST_PATH:]) is not None


def is_test_setting(path: str) -> bool:
    """Whether a path can change how tests are found and run, as the graders of repositories see it."""
    return is_setting_path(path[-_LONGEST_PATH:])


def view_of(group: RolloutGroup, rollout: Rollout, *, surprise: float, history: History) -> RolloutView:
    """The view of a rollout that rules get."""
    return RolloutView(
        rollout_id=rollout.rollout_id,
        group_id=group.group_id,
        split=group.split,
        source=group.problem.source,
        task=group.problem.task,
        messages=rollout.messages,
        score=rollout.score,
        stop_reason=rollout.stop_reason,
        outcome=MappingProxyType(dict(rollout.outcome)),
        n_sampled=rollout.n_sampled,
        surprise=surprise,
        history=history,
    )
