"""`rl env check`: runs the jobs of the suite in worker processes and puts their findings together.

A worker that dies or hangs has shown something, too: it becomes a finding, and another worker does the jobs that are left.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from rl.authoring.jobs import JOBS
from rl.authoring.records import Finding, Report, Request
from rl.authoring.subject import request_values, resolve

_START_SECONDS = 120.0
_GRACE_SECONDS = 5.0
"""Beyond the limit of a call, until a silent worker is killed."""
_FIRST = "transcripts"


def check(request: Request) -> Report:
    """Run the suite. Raises ValueError when there is nothing to check or the request is wrong."""
    subject = resolve(request)
    findings, first, second = asyncio.run(_all_jobs(request))
    skipped = {}
    if first != second:
        findings.append(Finding(rule="seeded", text=_differs(first, second)))
        skipped["resets_cleanly"] = "cannot be told when the messages are random"
        findings = [finding for finding in findings if finding.rule not in skipped]
    return Report(env=subject.env, reward=subject.reward, findings=list(dict.fromkeys(findings)), skipped=skipped)


async def _all_jobs(request: Request) -> tuple[list[Finding], Any, Any]:
    findings: list[Finding] = []
    data: dict[str, Any] = {}
    left = list(JOBS)
    while left:
        left = await _worker(request, left, findings=findings, data=data)
    again: dict[str, Any] = {}
    await _worker(request, [_FIRST], findings=findings, data=again)
    return findings, data.get(_FIRST), again.get(_FIRST)


async def _worker(request: Request, jobs: Sequence[str], *, findings: list[Finding], data: dict[str, Any]) -> list[str]:
    """Run jobs in one process; those that are left when it died or was killed, without the one that did it."""
    left = list(jobs)
    process = await asyncio.create_subprocess_exec(
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
    assert process.stdout is not None and process.stderr is not None
    errors = asyncio.create_task(_tail(process.stderr))
    at, hung, ended, limit = "", False, False, _START_SECONDS
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
            if "end" in event:
                ended = True
            elif "job" in event:
                left.remove(event["job"])
                findings += [Finding(**finding) for finding in event["findings"]]
                data[event["job"]] = event["data"]
            else:
                at, limit = event["at"], request.timeout + _GRACE_SECONDS
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what the environment has left behind
        await process.wait()
        said = await errors
    if ended:
        return []
    if not at:
        raise ValueError(f"the worker of rl env check did not start: {said or 'no message'}")
    if hung:
        findings.append(Finding(rule="time_limits", text=f"{at} blocks the process for more than {request.timeout:g} s"))
    else:
        findings.append(Finding(rule="exceptions", text=f"{at} ended the process (exit code {process.returncode}){said and f': {said}'}"))
    return left[1:]


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
