"""`rl rescore`: a new reward over the rollouts of a run, appended as a new scorer, and what it would have changed.

Rollouts are graded a few at a time as `rl grade` grades responses: those of repository tasks by their patch, in a fresh container of
the original image. What failed by infrastructure is graded again, then left for the next invocation; it never becomes a 0.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config
from environments.records import Episode, Problem
from environments.registry import load_plugins
from rewards.mix import parse_mix
from rewards.needs import FieldMissing, check_needs, grades_patches
from rewards.registry import grader_hash, make_grader
from rewards.score import Grader, Score, ScoreStatus
from rl.grade import grade_with_retries
from rl.graders import check_reward
from rl.history.appended import ScoreAppender, Scorer, Value, read_scores
from rl.history.problems import RunProblems, check_images, run_config
from rl.history.recorded import Row, check_schema, episode_of, read_messages, read_rows
from rl.history.rescored import Rate, Rescored, SourceRates
from rl.history.signs import IN_SCORED_GROUPS, changed_signs, read_learned
from rl.log.query import RunLog, json_line
from rl.log.runs import find_run
from rl.log.text import visible

_CHUNK = 128
"""Rollouts whose messages are read from the log at once."""
_SAY_SECONDS = 10.0
CUT_OFF = "the infrastructure cut the episode off"
NOT_WHOLE = "the log has not kept a long text of it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A rollout to grade."""

    row: Row
    problem: Problem
    episode: Episode


@dataclass(kw_only=True, slots=True)
class Counts:
    """What became of the rollouts so far."""

    scored: int = 0
    failures: "Counter[str]"
    """Rollouts whose grading failed by infrastructure every time, by reason."""
    left_out: "Counter[str]"


def rescore_command(run: str, *, reward: str, name: str | None, where: str, plugins: Sequence[str], as_json: bool) -> int:
    """Score what is not scored yet and print what changes. Exit status: 1 when infrastructure kept some from being scored, else 0.

    Raises ValueError for an unknown run, a wrong reward or condition, a run whose log or tasks no longer have what the reward needs;
    SandboxUnavailable where this machine lacks the sandbox, the engine or the image.
    """
    root = find_run(run)
    check_schema(root)
    config = run_config(root)
    load_plugins(plugins, field="--plugin")
    problems = RunProblems(config)
    check_reward(reward)
    scorer = Scorer(name=name or reward, hash=grader_hash(reward))
    counts = Counts(failures=Counter(), left_out=Counter())
    with ScoreAppender(root, scorer) as appender, RunLog(root) as log:
        rows = read_rows(log, where=where)
        if not rows:
            why = f" by --where {where!r}" if where != "true" else ": its log has none yet"
            raise ValueError(f"no rollout of {root} is selected{why}")
        done = read_scores(log, scorer)
        todo = [row for row in rows if row.finished and row.rollout_id not in done]
        counts.left_out[CUT_OFF] = sum(not row.finished for row in rows)
        _check(todo, problems, reward=reward)

        def on_score(job: Job, score: Score) -> None:
            if score.status is ScoreStatus.INFRA:
                counts.failures[score.reason] += 1
                return
            appender.add(job.row, score)
            counts.scored += 1

        asyncio.run(_grade_all(_jobs(log, todo, problems, counts=counts), reward, total=len(todo), on_score=on_score))
        for problem in log.problems:
            print(f"left out: {visible(problem, one_line=True)}", file=sys.stderr)
    selected = [row.rollout_id for row in rows]
    result = summary(root, config, scorer=scorer, reward=reward, selected=selected, counts=counts, before=len(done.keys() & set(selected)))
    print(json_line(result.to_json()) if as_json else result.text())
    return 1 if counts.failures else 0


def summary(root: Path, config: Config, *, scorer: Scorer, reward: str, selected: Sequence[str], counts: Counts, before: int) -> Rescored:
    """Pass rates, means and signs before and after, by the log as it is now."""
    with RunLog(root) as log:
        scores = read_scores(log, scorer)
        chosen = set(selected) & scores.keys()
        grouped = read_rows(log, where=IN_SCORED_GROUPS, parameters=(scorer.name, scorer.hash))
        rows = [row for row in grouped if row.rollout_id in chosen]
        signs = changed_signs(config, grouped, scores=scores, learned=read_learned(log, scorer))
    return Rescored(
        run=str(root),
        scorer=scorer,
        reward=reward,
        objective=config.objective.name,
        scored=counts.scored,
        earlier=before,
        failures=dict(counts.failures),
        left_out={why: n for why, n in counts.left_out.items() if n},
        rates=rates(rows, scores),
        signs=signs,
    )


def rates(rows: Sequence[Row], scores: Mapping[str, Value]) -> tuple[SourceRates, ...]:
    """By task source and split, before and after."""
    parted: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        parted.setdefault((row.source, row.split), {}).setdefault(row.task_id, []).append(row)
    return tuple(
        SourceRates(
            source=source,
            split=split,
            n=sum(map(len, by_task.values())),
            before=Rate.of([Value(reward=row.reward, status=row.status) for row in own] for own in by_task.values()),
            after=Rate.of([scores[row.rollout_id] for row in own] for own in by_task.values()),
        )
        for (source, split), by_task in sorted(parted.items())
    )


def _check(rows: Sequence[Row], problems: RunProblems, *, reward: str) -> None:
    """See that the reward can grade every rollout, before the first one is graded."""
    images: dict[tuple[str, str | None], tuple[Problem, Row]] = {}
    patches = any(grades_patches(term.name) for term in parse_mix(reward))
    for row in rows:
        problem = problems.of(row)
        try:
            check_needs(reward, problem)
        except FieldMissing as error:
            raise ValueError(
                f"--reward: {error} (rollout {row.rollout_id}, tasks.{row.source}): the run's tasks lack the field {error.field!r}; "
                "choose the rollouts that have it by --where, or another reward"
            ) from None
        except ValueError as error:
            raise ValueError(f"--reward: {error} (rollout {row.rollout_id}, tasks.{row.source})") from None
        if patches:
            images.setdefault((row.task_id, row.image_digest), (problem, row))
    if images:
        asyncio.run(check_images(list(images.values())))


def _jobs(log: RunLog, rows: Sequence[Row], problems: RunProblems, *, counts: Counts) -> Iterator[Job]:
    """The rollouts with all that a grader needs, a few at a time in memory."""
    for start in range(0, len(rows), _CHUNK):
        some = rows[start : start + _CHUNK]
        messages = read_messages(log, some)
        for row in some:
            said = messages[row.rollout_id]
            if not all(one.whole for one in said):
                counts.left_out[NOT_WHOLE] += 1
                continue
            yield Job(row=row, problem=problems.of(row), episode=episode_of(row, said))


async def _grade_all(jobs: Iterator[Job], reward: str, *, total: int, on_score: Callable[[Job, Score], None]) -> None:
    """Grade all jobs, two a processor at a time; `on_score` hears of each when it is done."""
    if not total:
        return
    grader = make_grader(reward)
    at_once = 2 * (os.cpu_count() or 1)
    running: dict[asyncio.Task[Score], Job] = {}
    done, said = 0, time.monotonic()

    async def collect(until: int) -> None:
        nonlocal done, said
        while len(running) > until:
            finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                on_score(running.pop(task), task.result())
                done += 1
            if time.monotonic() - said >= _SAY_SECONDS:
                said = time.monotonic()
                print(f"{done} of {total} rollouts", file=sys.stderr, flush=True)

    try:
        for job in jobs:
            running[asyncio.create_task(_grade(grader, job))] = job
            await collect(at_once - 1)
        await collect(0)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await grader.close()


async def _grade(grader: Grader, job: Job) -> Score:
    return await grade_with_retries(grader, job.problem, job.episode)
