"""Reward functions of TRL's shape, `f(prompts=..., completions=..., **columns) -> list[float | None]`, as graders.

The shape is TRL's (huggingface.co/docs/trl, GRPO, "Using a custom reward function"). A function has it when a parameter is called
`completions`, or when it takes keywords only (`**kwargs`). It is called with lists of one item:

- `prompts`, `completions`: lists of messages, `{"role": ..., "content": ...}`; texts where the parameter is annotated `list[str]`
- a column for every field of the reference and of the payload (`answer`, `tests`, `solution`, ...) and for those of `tasks.*.columns`
- `completion_ids`: as many as were sampled, all -1: their number is known here, the tokens are not
- `log_extra`, `log_metric`: what they are told becomes the score's reason, log and parts

None and NaN mean what they mean in TRL: the reward does not apply here. The score is `ungradable` and has no reward.
"""

import asyncio
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from environments.log_text import FIELD_CHARS, labelled, shortened
from environments.records import Episode, Json, Message, Problem
from rewards.score import Score, ScorePart, ScoreStatus

_ABSENT = ("trainer_state", "environments")
"""Of TRL's trainer; a grader has neither."""
_OWN = ("prompts", "completions", "completion_ids", "log_extra", "log_metric")
_REASON_CHARS = 300


@dataclass(kw_only=True, slots=True)
class Told:
    """What a function said through `log_extra` and `log_metric`."""

    notes: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """TRL's callback for a column of one item."""
        self.notes[column] = shortened(str(values[0])) if values else ""

    def log_metric(self, name: str, value: float) -> None:
        """TRL's callback for a number."""
        self.metrics[name] = float(value)


class TrlGrader:
    """Grader around one function; a synchronous one runs in a thread of its own, one call at a time, as in TRL's trainer."""

    def __init__(self, function: Any, *, name: str) -> None:
        """Raises ValueError when the function needs something that only TRL's trainer has."""
        self._function = function
        self._name = name
        self._signature = inspect.signature(function)
        self._as_text = {key: _wants_text(function, key) for key in ("prompts", "completions")}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trl-reward")
        for key in required(self._signature):
            if key in _ABSENT:
                raise ValueError(f"reward {name!r} needs {key}, which TRL's trainer has and a grader has not: give it a default")

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        columns = columns_of(problem)
        if missing := missing_column(self._signature, columns):
            return missing_score(self._name, missing, problem, columns)
        told = Told()
        arguments: dict[str, Any] = {
            **columns,
            **conversation(problem, episode, as_text=self._as_text),
            "completion_ids": [[-1] * episode.n_sampled_tokens],
            "log_extra": told.log_extra,
            "log_metric": told.log_metric,
        }
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in self._signature.parameters.values()):
            arguments = {key: value for key, value in arguments.items() if key in self._signature.parameters}
        if _is_async(self._function):
            rewards = await self._function(**arguments)
        else:
            call = functools.partial(self._function, **arguments)
            rewards = await asyncio.get_running_loop().run_in_executor(self._thread, call)
        return score_of(self._name, rewards, told=told)

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def takes_completions(signature: inspect.Signature) -> bool:
    """Whether a function has TRL's shape."""
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    return "completions" in signature.parameters or (bool(kinds) and all(kind is inspect.Parameter.VAR_KEYWORD for kind in kinds))


def required(signature: inspect.Signature) -> list[str]:
    """Parameters that must be given."""
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [key for key, one in signature.parameters.items() if one.default is inspect.Parameter.empty and one.kind not in variadic]


def columns_of(problem: Problem) -> dict[str, list[Json]]:
    """The problem's fields as TRL's columns: lists of one item."""
    more = problem.reference.get("columns")
    fields = {**problem.task.payload, **problem.reference, **(more if isinstance(more, dict) else {})}
    fields.pop("columns", None)
    return {key: [value] for key, value in fields.items() if key not in (*_OWN, *_ABSENT)}


def missing_column(signature: inspect.Signature, columns: Mapping[str, Json]) -> str:
    """A column that the function asks for and the problem has not; empty when there is none."""
    return next((key for key in required(signature) if key not in columns and key not in _OWN), "")


def missing_score(name: str, column: str, problem: Problem, columns: Mapping[str, Json]) -> Score:
    """The reward cannot be told for this problem."""
    solution = "set tasks.*.solution, for example '\\boxed{{{answer}}}'"
    hint = f"; in a configuration {solution if column == 'solution' else 'tasks.*.columns names more fields of the rows'}"
    reason = f"problem {problem.task.id}: {name} asks for the column {column!r}; there are {', '.join(columns) or 'none'}{hint}"
    return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason=reason)


def conversation(problem: Problem, episode: Episode, *, as_text: Mapping[str, bool]) -> dict[str, list[Any]]:
    """`prompts` and `completions`: what came before the policy's first message, and all from there on."""
    messages = episode.messages
    first = next((number for number, message in enumerate(messages) if message.role == "assistant"), len(messages))
    prompt, completion = messages[:first], messages[first:]
    return {
        "prompts": ["\n".join(message.content for message in prompt) if as_text["prompts"] else _plain(prompt)],
        # An episode without a reply is an empty one: functions look at the first message.
        "completions": [episode.response if as_text["completions"] else _plain(completion or (Message(role="assistant", content=""),))],
    }


def score_of(name: str, rewards: Any, *, told: Told) -> Score:
    """TRL's list of one number or None as a score. Raises ValueError when it is something else."""
    if not isinstance(rewards, Sequence) or len(rewards) != 1:
        raise ValueError(f"reward {name!r} returned {str(rewards)[:80]}; it must be a list with one number for the one completion")
    value = None if rewards[0] is None else float(rewards[0])
    parts = {key: ScorePart(value=number, weight=0.0, reason="metric") for key, number in told.metrics.items()}
    notes = ", ".join(f"{key} {text}" for key, text in told.notes.items())[:_REASON_CHARS]
    log = "".join(labelled(key, text, chars=2 * FIELD_CHARS) for key, text in told.notes.items())
    if value is None or math.isnan(value):
        reason = f"{name} does not apply to this problem (it returned {'None' if value is None else 'NaN'})"
        return Score(reward=None, status=ScoreStatus.UNGRADABLE, parts=parts, reason=f"{reason}: {notes}" if notes else reason, log=log)
    return Score(reward=value, status=ScoreStatus.OK if value > 0 else ScoreStatus.POLICY_FAIL, parts=parts, reason=notes, log=log)


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} | ({"name": m.name} if m.name else {}) for m in messages]


def _wants_text(function: Any, key: str) -> bool:
    """Whether the parameter is annotated as a list of texts; messages otherwise, as TRL gives them for a chat."""
    try:
        hint = get_type_hints(function if inspect.isroutine(function) else type(function).__call__).get(key)
    except Exception:  # an annotation may name anything, and says nothing then
        return False
    return get_origin(hint) is not None and get_args(hint) == (str,)


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
