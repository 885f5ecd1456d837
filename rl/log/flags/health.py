"""Rules on the health of the text itself, and of its statistics against those of earlier rollouts."""

import zlib

from environments.records import StopReason
from environments.reply import THINK_END
from rl.log.flags.base import History, RolloutView, flag

_LEAST_HISTORY = 64
"""Rollouts before statistics mean something."""
_SIGMAS = 6.0
_LEAST_NATS, _LEAST_TOKENS = 0.25, 32
"""Of so many tokens a single one that surprised the policy (5 nats) moves the mean by less than those nats."""
_LEAST_CHARS = 2_000
_RATIO = 15.0
"""Prose and code compress 3 to 6 times; a loop, 15 times and more."""
_PASSAGE, _LEAST_TIMES = 16, 5
_THINK = "<think>"


@flag("repetition")
def repetition(rollout: RolloutView) -> str | None:
    """A message repeats itself over and over."""
    for text in rollout.said:
        if len(text) < _LEAST_CHARS // 4 or not _recurs(text):
            continue
        data = text.encode("utf-8", "replace")
        if len(data) >= _LEAST_CHARS and (ratio := len(data) / len(zlib.compress(data, 1))) >= _RATIO:
            return f"{len(text)} characters that compress {ratio:.0f} times"
    return None


def _recurs(text: str) -> bool:
    """Whether a short passage from one of three places comes again and again; compressing everything would cost more than the rest."""
    places = (len(text) // 4, len(text) // 2, 3 * len(text) // 4)
    return any(text.count(text[at : at + _PASSAGE]) >= _LEAST_TIMES for at in places)


@flag("truncated_think")
def truncated_think(rollout: RolloutView) -> str | None:
    """A limit cut the reasoning: there is no answer behind it."""
    if rollout.stop_reason in (StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL):
        opened = _THINK in rollout.response or any(_THINK in message.content for message in rollout.task.prompt)
        if opened and THINK_END not in rollout.response:
            return f"the reasoning was cut by {rollout.stop_reason.value} after {rollout.n_sampled} tokens"
    return None


@flag("length_jump")
def length_jump(rollout: RolloutView) -> str | None:
    """Far longer than what this task source gave so far."""
    history = rollout.history
    limit = max(history.length_mean + _SIGMAS * history.length_std, 3.0 * history.length_mean)
    if _enough(history) and rollout.n_sampled > limit:
        return f"{rollout.n_sampled} sampled tokens; the running mean is {history.length_mean:.0f}"
    return None


@flag("entropy_jump")
def entropy_jump(rollout: RolloutView) -> str | None:
    """Far more, or far less, certain of its tokens than this task source was so far."""
    history = rollout.history
    away = abs(rollout.surprise - history.surprise_mean)
    if _enough(history) and rollout.n_sampled >= _LEAST_TOKENS and away > max(_SIGMAS * history.surprise_std, _LEAST_NATS):
        return f"mean -logprob {rollout.surprise:.2f} nats; the running mean is {history.surprise_mean:.2f}"
    return None


def _enough(history: History) -> bool:
    return history.count >= _LEAST_HISTORY
