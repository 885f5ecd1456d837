"""`trl:NAME`, a reward of `trl.rewards`: graded in a worker process that is started on first use and killed when it takes too long.

`accuracy_reward` and `reasoning_accuracy_reward` hand the reply to math-verify, which has no guard against costly or ambiguous
answers: for math prefer the grader `math`. A reply that TRL's function cannot digest fails with the reward 0, TRL's for a wrong one.
"""

import inspect

from environments.records import Episode, Problem
from rewards.score import Score, ScoreStatus
from rewards.trl_functions import Told, columns_of, conversation, missing_column, missing_score, score_of
from rewards.trl_worker import REQUEST_SECONDS, reward_function
from rewards.warm_worker import DiedTwice, TookTooLong, WarmWorker

PREFIX = "trl:"
_FAILED = 0.0


class TrlNamedGrader:
    """Grader around one function of `trl.rewards`: one process, one reply at a time. One instance serves one event loop."""

    def __init__(self, name: str, *, timeout_seconds: float = REQUEST_SECONDS) -> None:
        """`name` without the prefix. Raises ValueError when `trl.rewards` has no such reward."""
        self._name = name
        self._signature = inspect.signature(reward_function(name))
        self._timeout = timeout_seconds
        self._worker = WarmWorker("rewards.trl_worker", name, what=f"the worker of {PREFIX}{name}")

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        columns = columns_of(problem)
        if missing := missing_column(self._signature, columns):
            return missing_score(PREFIX + self._name, missing, problem, columns)
        asked = {
            **conversation(problem, episode, as_text={"prompts": False, "completions": False}),
            "columns": columns,
            "tokens": episode.n_sampled_tokens,
        }
        try:
            answer = await self._worker.ask(asked, seconds=self._timeout)
        except (TookTooLong, DiedTwice) as error:
            answer = {"failed": str(error)}
        if "failed" in answer:
            return Score(reward=_FAILED, status=ScoreStatus.POLICY_FAIL, reason=f"{self._name} cannot judge the reply: {answer['failed']}")
        return score_of(PREFIX + self._name, [answer["reward"]], told=Told(notes=answer["notes"], metrics=answer["metrics"]))

    async def close(self) -> None:
        await self._worker.close()
