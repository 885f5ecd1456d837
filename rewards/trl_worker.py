"""Rewards of `trl.rewards` in a process of their own, so that a reply that costs too much can be killed.

`python -m rewards.trl_worker NAME` writes {"ready": true}, then answers each line {"prompts", "completions", "columns", "tokens"}
with {"reward", "notes", "metrics"} or {"failed": text}. It ends at the end of its input. The only file that knows what TRL offers.
"""

import inspect
import json
import logging
import os
import resource
import signal
import sys
from typing import Any, TextIO

from environments.lookup import unknown
from rewards.trl_functions import Told, takes_completions

REQUEST_SECONDS = 40
"""math-verify's own time limits for one reply add up to 25 s."""
_MEMORY_BYTES = 3 << 30
_PREFIX = "get_"


def reward_function(name: str) -> Any:
    """The function of `trl.rewards`. Raises ValueError for a name that is not there, and for one that makes functions."""
    try:
        from trl import rewards
    except Exception as error:
        raise ValueError(f"reward 'trl:{name}': cannot import trl.rewards: {type(error).__name__}: {error}") from error
    known = [other for other in dir(rewards) if other.endswith("_reward") and not other.startswith(_PREFIX)]
    makers = [other for other in dir(rewards) if other.startswith(_PREFIX)]
    if name in makers:
        raise ValueError(
            f"reward 'trl:{name}' makes rewards and needs arguments: call it in a module of yours, my_reward = {name}(...), and name that: "
            "my_pkg.rewards:my_reward"
        )
    if name not in known:
        raise ValueError(str(unknown("reward of trl.rewards", name, known)))
    function = getattr(rewards, name)
    assert takes_completions(inspect.signature(function)), f"trl.rewards.{name} is a reward"
    return function


def main(name: str) -> None:
    """Serve requests until stdin ends."""
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # libraries may print; nobody reads it
    function = reward_function(name)
    os.dup2(null, 2)
    _send(replies, {"ready": True})
    for line in sys.stdin:
        _send(replies, _answer(function, json.loads(line)))


def _answer(function: Any, request: dict[str, Any]) -> dict[str, Any]:
    told = Told()
    try:
        rewards = function(
            prompts=request["prompts"],
            completions=request["completions"],
            completion_ids=[[-1] * request["tokens"]],
            log_extra=told.log_extra,
            log_metric=told.log_metric,
            **request["columns"],
        )
        return {"reward": rewards[0], "notes": told.notes, "metrics": told.metrics}
    except (Exception, RecursionError) as error:
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    finally:
        signal.alarm(0)  # math-verify's, in case it was left on


def _send(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
