"""`rl grade`: scores a file of responses with any grader, without a model and without training.

A task row has `id`, `prompt` and what its environment needs; a response row has `id`, `task_id`, `response` and, where it is known,
`n_tokens`. Both files are read and checked to the end before the first response is graded; then responses pass through one at a time,
a few in the hands of the grader.
"""

import asyncio
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.schema import TaskConfig
from environments.lookup import is_dotted, unknown
from environments.records import Episode, Message, Problem, StopReason
from environments.registry import check_environment
from environments.sources.jsonl import read_rows
from environments.sources.rows import RowMapper
from rewards.needs import FieldMissing, check_needs
from rewards.registry import make_grader
from rewards.score import Grader, Score, ScoreStatus
from rl.graders import check_reward
from rl.log.text import visible

RETRIES = 2
"""How often a response whose grading failed by infrastructure is graded again."""
_REASON_WIDTH = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """One row of the responses file."""

    id: str
    task_id: str
    text: str
    n_tokens: int | None
    """None where it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One graded response."""

    id: str
    score: Score
    seconds: float
    """Wall clock from the hand-over to the grader to its verdict, the wait for a free sandbox included."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order in which they are printed. JSON has no NaN: such a value of a part is null."""
        parts = {name: asdict(part) for name, part in self.score.parts.items()}
        return {
            "id": self.id,
            "reward": self.score.reward,
            "status": self.score.status.value,
            "reason": self.score.reason,
            "parts": {name: {key: _finite(value) for key, value in part.items()} for name, part in parts.items()},
            "seconds": round(self.seconds, 6),
        }

    def line(self) -> str:
        """For a person."""
        reward = "-" if self.score.reward is None else f"{self.score.reward:g}"
        reason = visible(self.score.reason, one_line=True)
        return f"{visible(self.id, one_line=True):<24} {self.score.status.value:<11} {reward:>7}  {reason[:_REASON_WIDTH]}"


class Summary:
    """Counts over all verdicts."""

    def __init__(self) -> None:
        self._statuses: Counter[ScoreStatus] = Counter()
        self._rewards = 0.0
        self._started = time.monotonic()

    def add(self, verdict: Verdict) -> None:
        """Count one more."""
        self._statuses[verdict.score.status] += 1
        self._rewards += verdict.score.reward or 0.0

    @property
    def exit_status(self) -> int:
        """1 when a response has no verdict because the infrastructure failed, else 0."""
        return 1 if self._statuses[ScoreStatus.INFRA] else 0

    def line(self) -> str:
        """For a person."""
        graded = self._statuses[ScoreStatus.OK] + self._statuses[ScoreStatus.POLICY_FAIL]
        counts = ", ".join(f"{status.value} {self._statuses[status]}" for status in ScoreStatus)
        mean = f"{self._rewards / graded:.3f}" if graded else "-"
        seconds = time.monotonic() - self._started
        return f"{self._statuses.total()} responses in {seconds:.1f} s: {counts}; mean reward {mean} over {graded} graded"


def grade_file(
    *, env: str, reward: str | None, tasks: Path, responses: Path, on_verdict: Callable[[Verdict], None], concurrency: int = 0
) -> Summary:
    """Grade every response, in the file's order; `on_verdict` is called as soon as the next one in order is there.

    `concurrency`: responses in the hands of the grader at once, 0 means two a processor. Raises ValueError for anything that is
    wrong with the arguments or the files, before anything is graded.
    """
    check_environment(env)
    reward = reward_for(env, reward)
    problems = load_tasks(tasks, env=env, reward=reward)
    needs_n_tokens = check_reward(reward)
    n_responses = 0
    for line, response in read_responses(responses, problems):
        n_responses += 1
        if needs_n_tokens and response.n_tokens is None:
            raise ValueError(f"{responses}:{line}: reward {reward!r} needs n_tokens, the number of sampled tokens: add it to every row")
    if not n_responses:
        raise ValueError(f"--responses: {responses} has no rows")
    grader = make_grader(reward)
    return asyncio.run(_grade_all(grader, problems, responses, on_verdict=on_verdict, concurrency=concurrency or 2 * (os.cpu_count() or 1)))


def reward_for(env: str, reward: str | None) -> str:
    """The reward to use: the given one, else that called like the environment. Raises ValueError for a dotted path without one."""
    if reward is None and is_dotted(env):
        raise ValueError(f"environment {env!r} is a dotted path, which names no reward: give --reward, for example my_pkg:my_reward")
    return reward or env


def load_tasks(path: Path, *, env: str, reward: str) -> dict[str, Problem]:
    """Problems by id, checked as the rows of `kind: jsonl` are. Raises ValueError that names file, line and field."""
    config = TaskConfig(kind="jsonl", path=str(path), env=env, reward=reward, prompt="{prompt}")
    mapper = RowMapper.of("grade", config=config, configurable=False)
    problems: dict[str, Problem] = {}
    lines: dict[str, int] = {}
    for line, row in read_rows(path, field="--tasks"):
        where = f"{path}:{line}"
        if row.get("id") is None:
            raise ValueError(f"{where}: no field 'id' (or it is null); a response names its task by it")
        problem = mapper.problem(row, where=where, default_id="")
        try:
            check_needs(reward, problem)
        except FieldMissing as error:
            raise ValueError(f"{where}: {error}: add the field {error.field!r} to the rows of --tasks") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        first = lines.setdefault(problem.task.id, line)
        if first != line:
            raise ValueError(f"{where}: id {problem.task.id!r} is already used on line {first}; ids must be unique")
        problems[problem.task.id] = problem
    if not problems:
        raise ValueError(f"--tasks: {path} has no rows")
    return problems


def read_responses(path: Path, problems: Mapping[str, Problem]) -> Iterator[tuple[int, Response]]:
    """Line number and row of the responses, one at a time. Raises ValueError that names file and line for one that cannot be graded."""
    if path.exists() and not path.is_file():
        raise ValueError(f"--responses: {path} is not a file: it is read twice, so save the responses first")
    lines: dict[str, int] = {}
    for line, row in read_rows(path, field="--responses", lone_surrogates=True):
        where = f"{path}:{line}"
        key, task_id = _id(row, "id", where=where), _id(row, "task_id", where=where)
        first = lines.setdefault(key, line)
        if first != line:
            raise ValueError(f"{where}: id {key!r} is already used on line {first}; ids must be unique")
        if task_id not in problems:
            near = unknown("task", task_id, problems) if len(problems) <= 20 else ValueError(f"unknown task {task_id!r}")
            raise ValueError(f"{where}: field 'task_id': {near} (ids of --tasks)")
        text, n_tokens = row.get("response"), row.get("n_tokens")
        if not isinstance(text, str):
            raise ValueError(f"{where}: field 'response' is of type {type(text).__name__}; it must be the model's whole text")
        if n_tokens is not None and (isinstance(n_tokens, bool) or not isinstance(n_tokens, int) or n_tokens < 0):
            raise ValueError(f"{where}: field 'n_tokens' is {n_tokens!r}; it must be the number of sampled tokens")
        yield line, Response(id=key, task_id=task_id, text=text, n_tokens=n_tokens)


async def _grade_all(
    grader: Grader, problems: Mapping[str, Problem], path: Path, *, on_verdict: Callable[[Verdict], None], concurrency: int
) -> Summary:
    summary = Summary()
    running: deque[asyncio.Task[Verdict]] = deque()

    async def report_first() -> None:
        verdict = await running[0]
        running.popleft()
        summary.add(verdict)
        on_verdict(verdict)

    try:
        for _, response in read_responses(path, problems):
            running.append(asyncio.create_task(_grade_one(grader, problems[response.task_id], response)))
            if len(running) >= concurrency:
                await report_first()
        while running:
            await report_first()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await grader.close()
    return summary


async def _grade_one(grader: Grader, problem: Problem, response: Response) -> Verdict:
    started = time.monotonic()
    # A lone surrogate is no character: what a tokenizer would have decoded in its place is U+FFFD.
    text = response.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    messages = (*problem.task.prompt, Message(role="assistant", content=text))
    episode = Episode(messages=messages, stop_reason=StopReason.DONE, n_sampled_tokens=response.n_tokens or 0)
    score = await grade_with_retries(grader, problem, episode)
    return Verdict(id=response.id, score=score, seconds=time.monotonic() - started)


async def grade_with_retries(grader: Grader, problem: Problem, episode: Episode) -> Score:
    """The verdict on an episode; one that failed by infrastructure is asked for RETRIES times more."""
    for _ in range(RETRIES + 1):
        try:
            score = await grader.grade(problem, episode)
        except Exception as error:
            score = Score(reward=None, status=ScoreStatus.INFRA, reason=f"{type(error).__name__}: {error}"[:500])
        if score.status is not ScoreStatus.INFRA:
            break
    return score


def _id(row: Mapping[str, Any], key: str, *, where: str) -> str:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{where}: field {key!r} is {value!r}; an id is a non-empty string or an integer")
    return str(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
