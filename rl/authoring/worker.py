"""The process in which the episodes of `rl env check` are played: what they break, they break here.

`python -m rl.authoring.worker REQUEST JOB...` writes JSON lines: {"at": episode, "call": text} before every call of the environment or
the reward, {"job": name, "findings": [...], "data": ...} after each job, and {"end": true} when all is closed. {"refused": text} says
that there is no environment to check; {"gave_up": call, "findings": [...]} that a call was too slow too often.
"""

import asyncio
import json
import os
import sys
from dataclasses import asdict
from typing import Any, TextIO

from environments.shape import check_factory, check_object
from rl.authoring.episodes import Stage, TooSlow
from rl.authoring.jobs import JOBS
from rl.authoring.subject import request_from, resolve


def main(request_text: str, jobs: list[str]) -> None:
    """Run the jobs."""
    events = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # an environment may print
    request = request_from(json.loads(request_text))
    stage = Stage(subject=resolve(request), timeout=request.timeout, at=lambda where, call: _send(events, {"at": where, "call": call}))
    asyncio.run(_run(events, stage, jobs))


async def _run(events: TextIO, stage: Stage, jobs: list[str]) -> None:
    if refused := await _first_look(stage):
        _send(events, {"refused": refused})
        return
    try:
        for name in jobs:
            stage.at(name, "its preparation")
            data = await JOBS[name](stage)
            _send(events, {"job": name, "findings": _taken(stage), "data": data})
    except TooSlow as error:
        _send(events, {"gave_up": str(error), "findings": _taken(stage)})
    stage.at("the end", "closing the reward")
    await stage.end()
    _send(events, {"end": True})


async def _first_look(stage: Stage) -> str:
    """Why this is no environment at all; empty when it is one, and when it cannot be made, which the jobs will say."""
    subject = stage.subject
    task = subject.problems[0].task
    stage.at(f"problem {task.id}", "the factory")
    try:
        check_factory(subject.env, subject.factory)
    except ValueError as error:
        return str(error)
    try:
        made = subject.factory(task)
    except BaseException:
        return ""
    try:
        check_object(subject.env, made)
    except ValueError as error:
        return str(error)
    await stage.close(made, where="a first look")
    stage.findings.clear()  # the job `closes` says it
    return ""


def _taken(stage: Stage) -> list[dict[str, Any]]:
    findings, stage.findings = stage.findings, []
    return [asdict(finding) for finding in findings]


def _send(events: TextIO, event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
