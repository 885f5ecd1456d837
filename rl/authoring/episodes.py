"""Plays episodes with given replies, and writes down what an environment or a reward did that they must not do."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from environments.protocol import Environment
from environments.records import Episode, Json, Message, Problem, StepResult, StopReason
from rewards.functions import NotAScore
from rewards.registry import make_grader
from rewards.score import Score
from rl.authoring.records import Finding, Subject

MAX_TURNS = 6
T = TypeVar("T")
_FIX_FACTORY = "let it take every task of its source, and read only what all of them have"
_FIX_RESET = "return a tuple of messages from reset(), such as self.task.prompt"
_FIX_STEP = "return a StepResult from every path of step()"
_FIX_REWARD = "a reward returns a number or a Score, from every path"


MAX_SLOW = 3
"""Calls of one kind that may take too long before the check is given up: the others would, too."""


class TooSlow(Exception):
    """A call of one kind, which this names, took too long MAX_SLOW times."""


class Broken(Exception):
    """The call raised or took too long; the finding is written down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """One episode."""

    messages: tuple[Message, ...]
    """All of them, in order."""
    shown: tuple[Message, ...]
    """Those that the environment said."""
    score: Score | None
    """None when it was not graded or broke."""

    def told(self) -> list[list[str | None]]:
        """What was said, as JSON values."""
        return [[message.role, message.content, message.name] for message in self.messages]


@dataclass(kw_only=True)
class Stage:
    """Where episodes are played; one event loop, one grader."""

    subject: Subject
    timeout: float
    at: Callable[[str, str], None]
    """Told the episode and the call before every call, so that whoever watches knows where a process died or hangs."""
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._grader = make_grader(self.subject.reward)
        self._slow_calls: Counter[str] = Counter()

    async def play(self, problem: Problem, reply: str | Sequence[str], *, label: str, graded: bool = True) -> Played:
        """An episode in which the policy says `reply` in every turn, or one of several each turn and then the last one on. What goes
        wrong becomes findings, never an exception."""
        where = f"{label}, problem {problem.task.id}"
        messages: list[Message] = []
        shown: list[Message] = []
        environment: Environment | None = None
        outcome: Mapping[str, Json] | None = None
        try:
            environment = await self._call(where, "the factory", self._make(problem))
            opening = await self._reset(where, environment)
            shown += opening
            messages += opening
            replies = (reply,) if isinstance(reply, str) else tuple(reply)
            outcome = await self._turns(where, environment, replies, messages=messages, shown=shown)
        except Broken:
            pass
        finally:
            if environment is not None:
                await self.close(environment, where=where)
        score = await self._grade(where, problem, messages, outcome) if outcome is not None and graded else None
        return Played(messages=tuple(messages), shown=tuple(shown), score=score)

    async def made(self, problem: Problem, *, where: str) -> Environment | None:
        """An environment on which nothing was called yet; the caller closes it."""
        try:
            return await self._call(where, "the factory", self._make(problem))
        except Broken:
            return None

    async def opened(self, problem: Problem, *, label: str) -> tuple[Environment | None, tuple[Message, ...]]:
        """An environment after `reset()` and its opening messages; the caller closes it."""
        where = f"{label}, problem {problem.task.id}"
        try:
            environment = await self._call(where, "the factory", self._make(problem))
            return environment, await self._reset(where, environment)
        except Broken:
            return None, ()

    async def close(self, environment: Environment, *, where: str, rule: str = "exceptions") -> None:
        """Close an environment."""
        try:
            await self._call(where, "close()", environment.close(), rule=rule)
        except Broken:
            return

    async def end(self) -> None:
        """Close the grader."""
        await self._grader.close()

    async def _make(self, problem: Problem) -> Environment:
        return self.subject.factory(problem.task)

    async def _reset(self, where: str, environment: Environment) -> tuple[Message, ...]:
        opening = await self._call(where, "reset()", environment.reset())
        if not isinstance(opening, tuple | list) or not all(isinstance(message, Message) for message in opening):
            raise self._wrong(where, f"reset() returned {_short(opening)}, not a tuple of messages", fix=_FIX_RESET)
        return tuple(opening)

    async def _turns(
        self, where: str, environment: Environment, replies: Sequence[str], *, messages: list[Message], shown: list[Message]
    ) -> Mapping[str, Json]:
        """What the environment hands over at the end."""
        for turn in range(max(MAX_TURNS, len(replies))):
            action = Message(role="assistant", content=replies[min(turn, len(replies) - 1)])
            messages.append(action)
            result: StepResult = await self._call(where, "step()", environment.step(action))
            if not isinstance(result, StepResult):
                raise self._wrong(where, f"step() returned {_short(result)}, not a StepResult", fix=_FIX_STEP)
            if result.done:
                return result.outcome
            messages += result.messages
            shown += result.messages
        return {}

    async def _grade(self, where: str, problem: Problem, messages: list[Message], outcome: Mapping[str, Json]) -> Score | None:
        episode = Episode(messages=tuple(messages), stop_reason=StopReason.DONE, n_sampled_tokens=0, outcome=outcome)
        try:
            score = await self._call(where, "the reward", self._grader.grade(problem, episode))
            if not isinstance(score, Score):
                raise self._wrong(where, f"the reward returned {_short(score)}, not a Score", fix=_FIX_REWARD)
        except Broken:
            return None
        return score

    async def _call(self, where: str, what: str, call: Awaitable[T], *, rule: str = "exceptions") -> T:
        """Await one call. Raises Broken once the finding is written down."""
        self.at(where, what)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.timeout):
                result = await call
        except TimeoutError as error:
            if time.monotonic() - started >= self.timeout:
                self._slow(where, what)
            else:
                self._raised(where, what, error, rule)
            raise Broken from None
        except BaseException as error:  # SystemExit and its like would end a rollout worker
            self._raised(where, what, error, rule)
            raise Broken from None
        if time.monotonic() - started > self.timeout:
            self._slow(where, what)
        return result

    def _slow(self, where: str, what: str) -> None:
        self.findings.append(Finding(rule="time_limits", where=where, text=f"{what} took more than {self.timeout:g} s"))
        self._slow_calls[what] += 1
        if self._slow_calls[what] == MAX_SLOW:
            raise TooSlow(what)

    def _raised(self, where: str, what: str, error: BaseException, rule: str) -> None:
        if isinstance(error, NotAScore):
            self._wrong(where, str(error), fix=_FIX_REWARD)
            return
        text = f"{what} raised {type(error).__name__}: {str(error)[:200]}"
        self.findings.append(Finding(rule=rule, where=where, text=text, fix=_FIX_FACTORY if what == "the factory" else ""))

    def _wrong(self, where: str, text: str, *, fix: str) -> Broken:
        self.findings.append(Finding(rule="exceptions", where=where, text=text, fix=fix))
        return Broken()


def _short(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
