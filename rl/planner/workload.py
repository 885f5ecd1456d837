"""What rollouts look like: tokens, turns and seconds of the environment, drawn from a run's log or from assumed distributions.

A group's draws depend on its index and on nothing else, so two plans of one workload see the same rollouts in another order of events.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from configs.schema import Config
from rl.log.query import RunLog
from rl.log.runs import find_run


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnDraw:
    """One turn of an episode."""

    shown: int
    """Tokens that the policy has not seen before: the prompt, or the environment's answer."""
    sampled: int
    """Tokens that it samples, at least one."""
    seconds: float
    """What the environment takes to answer; with the last turn, the grader too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeDraw:
    """One episode: at least one turn."""

    turns: tuple[TurnDraw, ...]
    reward: float | None
    """None: without a verdict."""
    passed: bool


class Workload(Protocol):
    """Where episodes come from."""

    def group(self, index: int, samples: int) -> tuple[EpisodeDraw, ...]:
        """The episodes of the group with this index."""
        ...

    def told(self) -> str:
        """What it is, for a person."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumed:
    """Log-normal lengths and latencies. A spread is the standard deviation of the logarithm; 0 means that all are equal."""

    seed: int = 0
    turns: float = 1.0
    """Median turns of an episode."""
    turns_spread: float = 0.5
    most_turns: int = 1
    prompt_tokens: float = 512.0
    """Median tokens of a prompt; all samples of a group share it."""
    prompt_spread: float = 0.5
    most_prompt: int = 8192
    response_tokens: float = 256.0
    """Median tokens sampled a turn."""
    response_spread: float = 0.8
    most_response: int = 1024
    answer_tokens: float = 256.0
    """Median tokens of the environment's answer between two turns."""
    answer_spread: float = 1.0
    environment_seconds: float = 1.0
    """Median seconds of the environment a turn."""
    environment_spread: float = 1.0
    score_seconds: float = 0.5
    """Median seconds of the grader."""
    score_spread: float = 1.0
    shared: float = 0.5
    """Of the variance of lengths and latencies, what the problem decides and all samples of a group have in common."""
    solve_rate: float = 0.5
    """Mean over problems of how often the policy solves one."""
    solve_spread: float = 1.5
    """Spread between problems, in log odds."""
    context_length: int = 131_072
    """Episodes end when they have filled it."""

    def group(self, index: int, samples: int) -> tuple[EpisodeDraw, ...]:
        """See Workload."""
        rng = np.random.default_rng((self.seed, index))
        common = rng.standard_normal(4)
        prompt = _whole(self.prompt_tokens * math.exp(self.prompt_spread * common[0]), most=self.most_prompt)
        odds = math.log(self.solve_rate / (1 - self.solve_rate)) if 0 < self.solve_rate < 1 else (2 * self.solve_rate - 1) * 1e3
        passes = 1 / (1 + math.exp(-max(-700.0, min(700.0, odds + self.solve_spread * rng.standard_normal()))))
        return tuple(self._episode(rng, common, prompt=prompt, passes=passes) for _ in range(samples))

    def told(self) -> str:
        """See Workload."""
        return (
            f"assumed: {self.turns:g} turns of {self.response_tokens:g} tokens (spread {self.response_spread:g}), prompts of "
            f"{self.prompt_tokens:g}, {self.environment_seconds:g} s of environment a turn (spread {self.environment_spread:g})"
        )

    def _episode(self, rng: np.random.Generator, common: np.ndarray, *, prompt: int, passes: float) -> EpisodeDraw:
        own = rng.standard_normal(4)
        mixed = math.sqrt(self.shared) * common + math.sqrt(1 - self.shared) * own
        count = _whole(self.turns * math.exp(self.turns_spread * mixed[1]), most=self.most_turns)
        noise = rng.standard_normal((count, 3))
        turns, length = [], 0
        for number in range(count):
            answer = self.answer_tokens * math.exp(self.answer_spread * noise[number, 0])
            shown = prompt if number == 0 else _whole(answer, most=self.context_length)
            room = self.context_length - length - shown
            if number and room < 1:
                break
            deviation = mixed[2] if count == 1 else (mixed[2] + noise[number, 1]) / math.sqrt(2)
            wanted = self.response_tokens * math.exp(self.response_spread * deviation)
            sampled = _whole(wanted, most=max(1, min(self.most_response, room)))
            delay = mixed[3] if count == 1 else noise[number, 2]
            seconds = self.environment_seconds * math.exp(self.environment_spread * delay)
            turns.append(TurnDraw(shown=shown, sampled=sampled, seconds=seconds))
            length += shown + sampled
        score = self.score_seconds * math.exp(self.score_spread * rng.standard_normal())
        turns[-1] = replace(turns[-1], seconds=turns[-1].seconds + score)
        passed = bool(rng.random() < passes)
        return EpisodeDraw(turns=tuple(turns), reward=1.0 if passed else -1.0, passed=passed)


def _whole(value: float, *, most: int) -> int:
    return max(1, min(most, round(value)))


def assumed(config: Config, *, settings: Mapping[str, str]) -> Assumed:
    """What is assumed of a configuration without a log; `settings` override fields by name.

    Responses take a quarter of `sampling.max_tokens`, episodes a quarter of `rollout.max_turns`, prompts a quarter of their limit or of
    what the context leaves. Raises ValueError for a field that is not there or a value that is no number in its range.
    """
    many = config.rollout.max_turns > 1
    base = Assumed(
        seed=config.run.seed,
        turns=max(1.0, config.rollout.max_turns / 4),
        most_turns=config.rollout.max_turns,
        prompt_tokens=max(1.0, config.model.max_prompt_tokens / 4),
        most_prompt=config.model.max_prompt_tokens,
        response_tokens=max(1.0, config.sampling.max_tokens / (16 if many else 4)),
        most_response=config.sampling.max_tokens,
        context_length=config.model.context_length,
    )
    known = {field.name: field.type for field in fields(Assumed)}
    values: dict[str, float] = {}
    for name, text in settings.items():
        if name not in known:
            raise ValueError(f"--assume {name}={text}: there is no {name}; there are {', '.join(known)}")
        values[name] = _number(name, text, whole=known[name] is int)
    return replace(base, **values)  # type: ignore[arg-type]  # mypy does not know the fields' names


def _number(name: str, text: str, *, whole: bool) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise ValueError(f"--assume {name}={text}: {text!r} is not a {'whole ' if whole else ''}number") from None
    upper = 1.0 if name in ("shared", "solve_rate") else math.inf
    if not math.isfinite(value) or not 0 <= value <= upper:
        raise ValueError(f"--assume {name}={text}: it must be a finite number >= 0{' and <= 1' if upper == 1.0 else ''}")
    return value


_QUERY = """
SELECT group_id, n_turns, prompt_tokens, sampled_tokens, env_tokens, reward, status = 'ok' AS passed,
       coalesce(timings['environment'], 0) AS environment, coalesce(timings['score'], 0) AS score
FROM rollouts WHERE split = 'train' AND n_turns > 0 AND sampled_tokens > 0 ORDER BY group_index, sample_index
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """The groups of a run's log, in their order and over again."""

    run: str
    groups: tuple[tuple[EpisodeDraw, ...], ...]

    def group(self, index: int, samples: int) -> tuple[EpisodeDraw, ...]:
        """See Workload. A group of another size is repeated or cut."""
        group = self.groups[index % len(self.groups)]
        return tuple(group[sample % len(group)] for sample in range(samples))

    def told(self) -> str:
        """See Workload."""
        episodes = [episode for group in self.groups for episode in group]
        sampled = sum(turn.sampled for episode in episodes for turn in episode.turns) / len(episodes)
        seconds = sum(turn.seconds for episode in episodes for turn in episode.turns) / len(episodes)
        return f"log of {self.run}: {len(episodes)} rollouts, {sampled:.0f} sampled tokens and {seconds:.2g} s of environment each"


def recorded(run: str) -> Recorded:
    """Lengths, turns, rewards and environment seconds of a run's training rollouts.

    Tokens and seconds of an episode are shared out evenly over its turns. Raises ValueError for an unknown run and for one without any
    finished training rollout.
    """
    with RunLog(find_run(run)) as log:
        rows = log.table(_QUERY).rows
    if not rows:
        raise ValueError(f"--log {run}: no training rollout has been logged there; name a run that has trained, or leave --log out")
    groups: dict[str, list[EpisodeDraw]] = {}
    for group_id, *row in rows:
        groups.setdefault(group_id, []).append(_episode(row))
    return Recorded(run=run, groups=tuple(tuple(group) for group in groups.values()))


def _episode(row: Sequence[Any]) -> EpisodeDraw:
    n_turns, prompt, sampled, answers, reward, passed, environment, score = row
    count = min(int(n_turns), int(sampled))
    shown = [int(prompt), *_shares(int(answers or 0), count - 1)]
    seconds = [environment / count] * (count - 1) + [environment / count + score]
    turns = zip(shown, _shares(int(sampled), count), seconds, strict=True)
    return EpisodeDraw(turns=tuple(TurnDraw(shown=a, sampled=b, seconds=float(c)) for a, b, c in turns), reward=reward, passed=passed)


def _shares(total: int, count: int) -> list[int]:
    """`total` in `count` whole parts that differ by one at most."""
    return [total // count + (part < total % count) for part in range(count)]
