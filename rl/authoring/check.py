"""`rl env check`: runs the jobs of the suite in worker processes and puts their findings together.

A worker that dies or hangs has shown something, too: it becomes a finding, and another worker does the jobs that are left.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rl.authoring.episodes import MAX_SLOW
from rl.authoring.jobs import JOBS, RULES_OF_JOBS, UNTRIED
from rl.authoring.records import Finding, Report, Request
from rl.authoring.subject import request_values, resolve

_START_SECONDS = 120.0
_GRACE_SECONDS = 5.0
"""Beyond the limit of a call, until a silent worker is killed."""
_FIRST = "transcripts"


@dataclass(kw_only=True)
class _Progress:
    """What the workers have found so far."""

    left: list[str]
    """Jobs that are not done."""
    findings: list[Finding] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    hangs: Counter[str] = field(default_factory=Counter)
    """How often a worker had to be killed, by the call in which it hung."""
    gave_up: str = ""
    """The call that was too slow too often."""


def check(request: Request) -> Report:
    """Run the suite. Raises ValueError when there is nothing to check or the request is wrong."""
    subject = resolve(request)
    progress, again = asyncio.run(_all_jobs(request))
    findings = progress.findings
    first, second = progress.data.get(_FIRST), again.data.get(_FIRST)
    skipped = {RULES_OF_JOBS[job]: f"{progress.gave_up} was too slow {MAX_SLOW} times" for job in progress.left}
    judged = {RULES_OF_JOBS[job] for job, result in progress.data.items() if result != UNTRIED}
    skipped |= {RULES_OF_JOBS[job]: UNTRIED for job in progress.data if RULES_OF_JOBS[job] not in judged}
    if not progress.gave_up and first != second:
        findings.append(Finding(rule="seeded", text=_differs(first, second)))
        skipped["resets_cleanly"] = "cannot be told when the messages are random"
        findings = [finding for finding in findings if finding.rule not in skipped]
    return Report(env=subject.env, reward=subject.reward, n_problems=len(subject.problems), findings=findings, skipped=skipped)


async def _all_jobs(request: Request) -> tuple[_Progress, _Progress]:
    """All jobs, and then the first one once more in a process of its own."""
    progress, again = _Progress(left=list(JOBS)), _Progress(left=[_FIRST])
    while progress.left and not progress.gave_up:
        await _worker(request, progress)
    if not progress.gave_up:
        await _worker(request, again)
    return progress, again


async def _worker(request: Request, progress: _Progress) -> None:
    """Run the jobs that are left in one process. When it dies or is killed, the job that did it counts as done."""
    process = await _start(request, progress.left)
    assert process.stdout is not None and process.stderr is not None
    errors = asyncio.create_task(_tail(process.stderr))
    where, call, hung, ended, limit = "", "", False, False, _START_SECONDS
    try:
        while not ended:
            try:
                async with asyncio.timeout(limit):
                    line = await process.stdout.readline()
            except TimeoutError:
                hung = True
                break
            if not line:
                break
            event = json.loads(line)
            if "at" in event:
                where, call, limit = event["at"], event["call"], request.timeout + _GRACE_SECONDS
            ended = _note(event, progress)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what the environment has left behind
        await process.wait()
        said = await errors
    if ended:
        return
    if not where:
        raise ValueError(f"the worker of rl env check did not start: {said or 'no message'}")
    if hung:
        text = f"{call} blocks the process for more than {request.timeout:g} s"
        progress.findings.append(Finding(rule="time_limits", where=where, text=text))
        progress.hangs[call] += 1
        if progress.hangs[call] == MAX_SLOW:
            progress.gave_up = call
    else:
        text = f"{call} ended the process (exit code {process.returncode}){said and f': {said}'}"
        progress.findings.append(Finding(rule="exceptions", where=where, text=text))
    if not progress.gave_up:
        progress.left = progress.left[1:]


def _note(event: dict[str, Any], progress: _Progress) -> bool:
    """Write down what a worker says; whether that was the last of it. Raises ValueError when there is no environment to check."""
    if "refused" in event:
        raise ValueError(event["refused"])
    progress.findings += [Finding(**finding) for finding in event.get("findings", ())]
    if "job" in event:
        progress.left.remove(event["job"])
        progress.data[event["job"]] = event["data"]
    progress.gave_up = event.get("gave_up", progress.gave_up)
    return "end" in event


async def _start(request: Request, jobs: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "rl.authoring.worker", json.dumps(request_values(request)), *jobs),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONHASHSEED": str(len(jobs)),
        },  # another one each time
        start_new_session=True,
        limit=1 << 26,
    )


async def _tail(stream: asyncio.StreamReader) -> str:
    """The last line of what a worker says on stderr."""
    last = b""
    while chunk := await stream.read(1 << 16):
        last = (last + chunk)[-4096:]
    return last.decode(errors="replace").strip().rpartition("\n")[2]


def _differs(first: Any, second: Any) -> str:
    if first is None or second is None:
        return "an episode of empty replies does not end in one process, and does in another"
    for one, other in zip(first, second, strict=False):
        for number, (left, right) in enumerate(zip(one, other, strict=False), start=1):
            if left != right:
                return f"message {number} is {str(left)[:120]} in one process and {str(right)[:120]} in another"
    return "an episode has more messages in one process than in another"
