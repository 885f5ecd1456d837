"""The candidate's box, seen from outside: one question, one answer, whatever the code in the box does."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from environments.code_tests.records import Judging
from environments.code_tests.values import MAX_ITEMS, MAX_REPLY_BYTES
from environments.records import Json
from environments.sandbox.base import Execution, Limits, Sandbox, Session, SessionEnded


def source_of(name: str) -> bytes:
    """A file of this package, to be run or imported in a box."""
    return (Path(__file__).parent / name).read_bytes()


BOX_FILES = {
    f"environments/code_tests/{name}": source_of(name) for name in ("expressions.py", "shared_files.py", "unittest_run.py", "values.py")
}
"""What the programs in the boxes import."""
_BOX = source_of("candidate_box.py")
START_SECONDS = 5.0
"""Allowed for the start of a box, beside the time of the code in it."""
_OUTPUT_BYTES = 32 << 20
"""Of all replies of a box together."""
_MOST_PRINTED = 4_000
"""Characters."""
_MAX_CONTAINERS = MAX_ITEMS + 100_000
"""Opening brackets of one reply: more than any value has. The rest is for texts and tags."""


class CandidateFailed(Exception):
    """The candidate gave no usable answer; the message says why, in one line. Its box is of no more use."""


class Candidate:
    """One response's code in a box."""

    def __init__(self, session: Session, *, judging: Judging) -> None:
        self._session, self._judging = session, judging
        self._printed = ""

    async def ask(self, request: Json, *, extra_seconds: float = 0.0) -> dict[str, Any]:
        """The reply to one request. Raises CandidateFailed."""
        return json_object(await self.ask_line(json.dumps(request, allow_nan=False).encode(), extra_seconds=extra_seconds))

    async def ask_line(self, line: bytes, *, extra_seconds: float = 0.0) -> bytes:
        """The same, as they stand on the channel; the reply is JSON of an object. Raises CandidateFailed."""
        try:
            reply = await self._session.ask(line, seconds=self._judging.test_seconds + extra_seconds)
        except SessionEnded:
            raise CandidateFailed(why_ended(await self._session.close(), judging=self._judging)) from None
        check_size(reply)
        printed = json_object(reply).get("printed")
        if isinstance(printed, str):
            self._printed = (self._printed + printed)[:_MOST_PRINTED]
        return reply

    def take_printed(self) -> str:
        """What the code has printed since the last call of this, its beginning: for people, it may hold anything."""
        printed, self._printed = self._printed, ""
        return storable(printed)


@asynccontextmanager
async def open_candidate(sandbox: Sandbox, *, judging: Judging) -> AsyncIterator[Candidate]:
    """A box that waits for code; killed at the end."""
    session = await sandbox.open(_BOX, files=BOX_FILES, limits=box_limits(judging))
    try:
        yield Candidate(session, judging=judging)
    finally:
        await session.close()


def box_limits(judging: Judging) -> Limits:
    """The limits of each box of one response's tests."""
    return Limits(
        wall_seconds=judging.total_seconds + START_SECONDS,
        cpu_seconds=max(1, round(judging.total_seconds)),
        memory_mb=judging.memory_mb,
        output_bytes=_OUTPUT_BYTES,
    )


def check_size(reply: bytes) -> None:
    """Before a reply is parsed: as objects it may take 50 times its length. Raises CandidateFailed.

    The box keeps to the same limits, unless the code in it has taken it over.
    """
    if len(reply) > MAX_REPLY_BYTES:
        raise CandidateFailed(f"the code returned more than {MAX_REPLY_BYTES >> 20} MiB")
    if reply.count(b"[") + reply.count(b"{") > _MAX_CONTAINERS:
        raise CandidateFailed("the code returned a value with too many items")


def json_object(line: bytes) -> dict[str, Any]:
    """Parse one line of a box. Raises CandidateFailed for anything but an object."""
    try:
        reply = json.loads(line.decode("ascii"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise CandidateFailed("the code spoiled its results") from None
    if not isinstance(reply, dict):
        raise CandidateFailed("the code spoiled its results")
    return reply


def why_ended(execution: Execution, *, judging: Judging) -> str:
    """One line about a box that did not answer."""
    if execution.killed_by == "wall":
        whole = execution.wall_seconds >= judging.total_seconds
        return f"the code ran longer than {judging.total_seconds if whole else judging.test_seconds:g} s"
    if execution.killed_by == "cpu":
        return f"the code used more than {judging.total_seconds:g} s of processor time"
    if execution.killed_by == "memory":
        return f"the code used more than {judging.memory_mb} MiB of memory"
    if execution.killed_by == "output":
        return "the code produced too much output"
    if execution.killed_by == "kernel":
        return "the code used too much processor time or memory"
    return f"the code ended its process (exit code {execution.exit_code})"


def error_text(reply: dict[str, Any]) -> str:
    """The text of a reply's error."""
    error = reply.get("error")
    return one_line(error[-1]) if isinstance(error, list) and error and isinstance(error[-1], str) else "an error without a text"


def one_line(text: str) -> str:
    """Short, on one line, and safe to write as UTF-8."""
    line = " ".join(storable(text[:1000]).splitlines())
    return line if len(line) <= 160 else line[:157] + "..."


def storable(text: str) -> str:
    """Safe to write as UTF-8."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a value")
