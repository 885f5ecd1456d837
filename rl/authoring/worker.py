"""The process in which the episodes of `rl env check` are played: what they break, they break here.

`python -m rl.authoring.worker REQUEST JOB...` writes JSON lines: {"at": text} before every call of the environment or the reward,
{"job": name, "findings": [...], "data": ...} after each job, and {"end": true} when all is closed.
"""

import asyncio
import json
import os
import sys
from dataclasses import asdict
from typing import Any, TextIO

from rl.authoring.episodes import Stage
from rl.authoring.jobs import JOBS
from rl.authoring.subject import request_from, resolve


def main(request_text: str, jobs: list[str]) -> None:
    """Run the jobs."""
    events = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # an environment may print
    request = request_from(json.loads(request_text))
    asyncio.run(_run(events, Stage(subject=resolve(request), timeout=request.timeout, at=lambda text: _send(events, {"at": text})), jobs))


async def _run(events: TextIO, stage: Stage, jobs: list[str]) -> None:
    try:
        for name in jobs:
            stage.at(name)
            data = await JOBS[name](stage)
            findings, stage.findings = stage.findings, []
            _send(events, {"job": name, "findings": [asdict(finding) for finding in findings], "data": data})
    finally:
        stage.at("closing the reward")
        await stage.end()
    _send(events, {"end": True})


def _send(events: TextIO, event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
