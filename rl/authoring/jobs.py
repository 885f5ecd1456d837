"""The jobs of `rl env check`: each plays episodes and says which rules were broken. They run in a worker process."""

import asyncio
import gc
import os
import pickle
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import psutil

from environments.records import Problem
from rewards.score import ScoreStatus
from rl.authoring.episodes import Played, Stage
from rl.authoring.gold import gold_reply
from rl.authoring.probes import PROBES
from rl.authoring.records import Finding
from rl.authoring.secrets import held_by_environment, said_by_environment, shown_by_data, shown_everywhere

Job = Callable[[Stage], Awaitable[Any]]
"""Adds findings to the stage; what it returns goes back to the parent as JSON."""
UNTRIED = "no episode came to a verdict"
"""What a job returns that could judge nothing."""
_EPISODES = 3
_SHORT = 3
"""With a single problem, an answer of fewer characters may turn up by chance."""


async def transcripts(stage: Stage) -> list[Any]:
    """What is said in an episode of empty replies, problem by problem: must be equal in every process."""
    return [(await stage.play(problem, "", label="an empty reply", graded=False)).told() for problem in stage.subject.tried]


async def picklable(stage: Stage) -> None:
    """The factory comes back as itself, the problems come back equal."""
    for what, thing in (("the factory", stage.subject.factory), *((f"problem {p.task.id}", p) for p in stage.subject.tried)):
        try:
            same = pickle.loads(pickle.dumps(thing))
            problem = "" if same == thing else "comes back from pickle as something else"
        except Exception as error:
            problem = f"cannot be pickled: {type(error).__name__}: {error}"
        if problem:
            stage.findings.append(Finding(rule="picklable", text=f"{what} {problem}"))


async def resets_cleanly(stage: Stage) -> None:
    """The same replies get the same answers and the same verdict before and after other episodes."""
    first = stage.subject.problems[0]
    reply = gold_reply(first) or "an attempt"
    before = await stage.play(first, reply, label="the first episode")
    for problem in stage.subject.tried:
        await stage.play(problem, "something else", label="an episode between")
    after = await stage.play(first, reply, label="the same episode again")
    if before.told() != after.told():
        stage.findings.append(Finding(rule="resets_cleanly", text=f"problem {first.task.id}: {_difference(before, after)}"))
    elif before.score is not None and after.score is not None and before.score.reward != after.score.reward:
        text = f"problem {first.task.id}: the same reply scores {before.score.reward} at first and {after.score.reward} later"
        stage.findings.append(Finding(rule="resets_cleanly", text=text))


async def gold_passes(stage: Stage) -> str | None:
    """Reference solutions pass, those of all problems."""
    known = [(problem, reply) for problem in stage.subject.problems if (reply := gold_reply(problem)) is not None]
    if not known:
        stage.findings.append(
            Finding(rule="gold_passes", text="no problem has reference['solution'] or ['replies'], so nothing shows that one can pass")
        )
    graded = False
    for problem, reply in known:
        played = await stage.play(problem, reply, label="the reference solution")
        graded = graded or played.score is not None
        if played.score is not None and played.score.status is not ScoreStatus.OK:
            text = f"the reference solution gets {played.score.status.value}: {played.score.reason[:200]}"
            stage.findings.append(Finding(rule="gold_passes", where=f"problem {problem.task.id}", text=text))
    return None if graded else UNTRIED


async def fails(stage: Stage, *, rule: str, label: str, reply: Callable[[Problem], str]) -> str | None:
    """A reply that solves nothing must fail: not pass, and not leave the baseline either."""
    graded = False
    for problem in stage.subject.tried:
        said = reply(problem)
        if said == gold_reply(problem):
            continue
        played = await stage.play(problem, said, label=label)
        graded = graded or played.score is not None
        if played.score is not None and played.score.status is not ScoreStatus.POLICY_FAIL:
            verdict = f"{played.score.status.value} with reward {played.score.reward}: {played.score.reason[:200]}"
            stage.findings.append(Finding(rule=rule, text=f"{label}, problem {problem.task.id}: gets {verdict}"))
    return None if graded else UNTRIED


async def hidden_data(stage: Stage) -> None:
    """The reference is neither in the task, nor said by the environment, nor held by it."""
    seen = [(f"problem {problem.task.id}", text) for problem in stage.subject.problems for text in shown_by_data(problem)]
    everywhere = [text for text in shown_everywhere(stage.subject.problems) if text not in {told for _, told in seen}]
    seen += [("every problem", text) for text in everywhere]
    stage.findings += [Finding(rule="hidden_data", where=where, text=text) for where, text in seen]
    said: list[set[str]] = []
    held: list[set[str]] = []
    problems = stage.subject.tried
    for problem in problems:
        played = await stage.play(problem, "", label="the search for hidden data", graded=False)
        said.append(said_by_environment(problem, played.shown))
        environment, _ = await stage.opened(problem, label="the search for hidden data")
        if environment is not None:
            held.append(held_by_environment(problem, environment))
            await stage.close(environment, where="the search for hidden data")
    # A short answer may occur anywhere once: it was shown when it is there every time.
    for found, what in ((said, "the environment's messages tell"), (held, "the environment holds")):
        for key in sorted(set.intersection(*found)) if found else []:
            if len(problems) > 1 or len(str(problems[0].reference[key])) >= _SHORT:
                stage.findings.append(Finding(rule="hidden_data", text=f"{what} reference[{key!r}] of every problem"))


async def closes(stage: Stage) -> None:
    """Some episodes leave nothing open; closing before `reset` works."""
    first = stage.subject.problems[0]
    await stage.play(first, "", label="a first episode", graded=False)  # what is shared by all episodes is opened here
    before = _open_things()
    for _ in range(_EPISODES):
        await stage.play(first, "an attempt", label="an episode that is closed", graded=False)
    after = _open_things()
    for what, count in after.items():
        if count - before[what] >= _EPISODES:
            text = f"{_EPISODES} episodes of problem {first.task.id} left {count - before[what]} {what}"
            stage.findings.append(Finding(rule="closes", text=text))
    unopened = await stage.made(first, where="closing without reset()")
    if unopened is not None:
        await stage.close(unopened, where="closing without reset()", rule="closes")


def _open_things() -> dict[str, int]:
    gc.collect()
    process = psutil.Process()
    return {
        "open files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else process.num_fds(),
        "child processes": len(process.children(recursive=True)),
        "threads": threading.active_count(),
        "asyncio tasks": len(asyncio.all_tasks()),
    }


def _difference(before: Played, after: Played) -> str:
    for number, (one, other) in enumerate(zip(before.told(), after.told(), strict=False), start=1):
        if one != other:
            return f"message {number} is {str(other)[:120]} after other episodes, and {str(one)[:120]} before"
    return f"{len(after.messages)} messages after other episodes, and {len(before.messages)} before"


def _probe(name: str) -> Job:
    async def probe(stage: Stage) -> str | None:
        return await fails(stage, rule="cheats_fail", label=f"cheat {name!r}", reply=PROBES[name])

    return probe


async def _noop(stage: Stage) -> str | None:
    return await fails(stage, rule="noop_fails", label="an empty reply", reply=lambda problem: "")


JOBS: Mapping[str, Job] = {
    "transcripts": transcripts,
    "picklable": picklable,
    "resets_cleanly": resets_cleanly,
    "gold_passes": gold_passes,
    "noop_fails": _noop,
    "hidden_data": hidden_data,
    "closes": closes,
    **{f"cheat {name}": _probe(name) for name in PROBES},
}
"""In the order in which they run; `transcripts` comes first, in a process that has done nothing else."""

RULES_OF_JOBS: Mapping[str, str] = {name: "cheats_fail" if name.startswith("cheat ") else name for name in JOBS} | {"transcripts": "seeded"}
"""The rule that a job is about."""
