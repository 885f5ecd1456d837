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
from typing import Any

from configs.schema import Config
from environments.records import Episode, Problem, StopReason
from environments.registry import load_plugins
from rewards.mix import parse_mix
from rewards.needs import FieldMissing, check_needs, grades_patches
from rewards.registry import grader_hash, make_grader
from rewards.score import Grader, Score, ScoreStatus
from rl.grade import grade_with_retries
from rl.graders import check_reward
from rl.history.appended import BY_SCORER, ScoreAppender, Scorer
from rl.history.problems import RunProblems, check_images, run_config
from rl.history.recorded import Played, Row, among, check_schema, episode_of, read_messages, read_played, read_rows
from rl.history.rescored import RatesCount, Rescored
from rl.history.signs import changed_signs, read_scored, total_signs
from rl.log.query import RunLog, json_line
from rl.log.runs import find_run
from rl.log.text import visible

_CHUNK = 128
"""Rollouts whose messages and outcomes are read from the log at once: they are the most of it."""
_ROWS_AT_ONCE = 4096
"""Rows without these."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The rollouts that a condition selects, which is asked only once: it may draw lots."""

    versions: Mapping[str, int]
    """Dispatch version of each, in the order of the log."""
    todo: Sequence[str]
    """Those to score now."""
    earlier: int
    """How many the scorer has scored before."""
    cut_off: int
    """How many have no end that could be graded."""

    def chunks(self, size: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Conditions, with their parameters, that select `todo` a few at a time."""
        for start in range(0, len(self.todo), size):
            yield among("rollout_id", {name: self.versions[name] for name in self.todo[start : start + size]})


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
        selection = _select(log, scorer, where=where)
        if not selection.versions:
            why = f" by --where {where!r}" if where != "true" else ": its log has none yet"
            raise ValueError(f"no rollout of {root} is selected{why}")
        counts.left_out[CUT_OFF] = selection.cut_off
        _check(log, selection, problems, reward=reward)

        def on_score(job: Job, score: Score) -> None:
            if score.status is ScoreStatus.INFRA:
                counts.failures[score.reason] += 1
                return
            appender.add(job.row, score)
            counts.scored += 1

        jobs = _jobs(log, selection, problems, counts=counts)
        asyncio.run(_grade_all(jobs, reward, total=len(selection.todo), on_score=on_score))
        for problem in log.problems:
            print(f"left out: {visible(problem, one_line=True)}", file=sys.stderr)
    result = summary(root, config, scorer=scorer, reward=reward, selection=selection, counts=counts)
    print(json_line(result.to_json()) if as_json else result.text())
    return 1 if counts.failures else 0


def summary(root: Path, config: Config, *, scorer: Scorer, reward: str, selection: Selection, counts: Counts) -> Rescored:
    """Pass rates, means and signs before and after, by the log as it is now."""
    rates, signs = RatesCount(), []
    with RunLog(root) as log:
        for scored in read_scored(config, log, scorer):
            for row in scored.rows:
                if row.rollout_id in selection.versions and row.rollout_id in scored.scores:
                    rates.add(row, scored.scores[row.rollout_id])
            signs.append(changed_signs(config, scored))
    return Rescored(
        run=str(root),
        scorer=scorer,
        reward=reward,
        objective=config.objective.name,
        scored=counts.scored,
        earlier=selection.earlier,
        failures=dict(counts.failures),
        left_out={why: n for why, n in counts.left_out.items() if n},
        rates=rates.rates(),
        signs=total_signs(signs),
    )


def _select(log: RunLog, scorer: Scorer, *, where: str) -> Selection:
    sql = (
        f"SELECT rollout_id, dispatch_version, stop_reason, rollout_id IN (SELECT rollout_id FROM scores WHERE {BY_SCORER}) "
        f"FROM (SELECT * FROM rollouts WHERE {where}\n) ORDER BY dispatch_version, group_index, rollout_id"
    )
    versions: dict[str, int] = {}
    todo: list[str] = []
    earlier = cut_off = 0
    for rollout_id, version, stop_reason, scored in log.query(sql, (scorer.name, scorer.hash)).rows:
        versions[rollout_id] = version
        earlier += scored
        if stop_reason == StopReason.ERROR.value:
            cut_off += 1
        elif not scored:
            todo.append(rollout_id)
    return Selection(versions=versions, todo=todo, earlier=earlier, cut_off=cut_off)


def _check(log: RunLog, selection: Selection, problems: RunProblems, *, reward: str) -> None:
    """See that the reward can grade every rollout, before the first one is graded."""
    images: dict[tuple[str, str | None], tuple[Problem, Played]] = {}
    patches = any(grades_patches(term.name) for term in parse_mix(reward))
    for row in (
        row for condition, parameters in selection.chunks(_ROWS_AT_ONCE) for row in read_played(log, where=condition, parameters=parameters)
    ):
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


def _jobs(log: RunLog, selection: Selection, problems: RunProblems, *, counts: Counts) -> Iterator[Job]:
    """The rollouts with all that a grader needs, a few at a time in memory."""
    for condition, parameters in selection.chunks(_CHUNK):
        rows = read_rows(log, where=condition, parameters=parameters)
        messages = read_messages(log, rows)
        for row in rows:
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
