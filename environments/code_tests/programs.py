"""Tests of a whole program: text on stdin, text expected on stdout. One box; each run is a process of its own in it."""

import base64
from dataclasses import dataclass
from typing import Any

from environments.code_tests.candidate import (
    START_SECONDS,
    Candidate,
    CandidateFailed,
    error_text,
    one_line,
    open_candidate,
    storable,
)
from environments.code_tests.case_log import CaseLog
from environments.code_tests.compare import output_difference
from environments.code_tests.records import Report, StdioTests
from environments.code_tests.values import MAX_STDOUT_BYTES
from environments.sandbox.base import Sandbox

_MAX_FAILURES = 20
_SAID_CHARS = 300
"""Of the end of stderr, in the reason; the log has more."""
_GRACE_SECONDS = 2.0
"""A run is ended in the box when its time is over; the box is ended this much later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ran:
    """One run of the program."""

    failure: str
    """Empty when the test passes, else what happened, in one line."""
    printed: str = ""
    errors: str = ""
    """The end of stderr."""


async def run_stdio_tests(code: str, tests: StdioTests, *, sandbox: Sandbox) -> Report:
    """Run the program once a test, each run within its time limit. A program that ends the whole box fails the tests from there on."""
    total = len(tests.stdin)
    failures: list[str] = []
    passed, log = 0, CaseLog()
    async with open_candidate(sandbox, judging=tests.judging) as candidate:
        try:
            reply = await candidate.ask({"op": "prepare", "code": code}, extra_seconds=START_SECONDS)
            if "error" in reply:
                raise CandidateFailed(f"the code failed: {error_text(reply)}")
            for number in range(total):
                ran = await _one_run(candidate, number=number, tests=tests)
                what = f"input {one_line(repr(tests.stdin[number][:1000]))}"
                if not ran.failure:
                    passed += 1
                    log.passed(number + 1, what)
                    continue
                failures.append(f"{what}: {ran.failure}")
                stdin, stdout = tests.stdin[number], tests.stdout[number]
                log.failed(number + 1, ran.failure, stdin=stdin, expected=stdout, stdout=ran.printed, stderr=ran.errors)
                if not tests.judging.partial_credit:
                    break
        except CandidateFailed as error:
            failures.append(str(error))
            log.note("ended", str(error))
    return Report(passed=passed, total=total, failures=tuple(failures[:_MAX_FAILURES]), log=log.text())


async def _one_run(candidate: Candidate, *, number: int, tests: StdioTests) -> _Ran:
    seconds = tests.judging.test_seconds
    reply = await candidate.ask({"op": "run", "stdin": tests.stdin[number], "seconds": seconds}, extra_seconds=_GRACE_SECONDS)
    if "error" in reply:
        return _Ran(failure=f"the program could not be run: {error_text(reply)}")
    printed, errors = _decoded(reply.get("stdout")), reply.get("stderr")
    if reply.get("timeout") is not False:
        failure = f"the program ran longer than {seconds:g} s"
    elif reply.get("too_much") is not False:
        failure = f"the program wrote more than {MAX_STDOUT_BYTES >> 20} MiB"
    elif reply.get("exit") != 0:
        failure = _how_it_ended(reply)
    elif printed is None:
        failure = "the program printed bytes that are no UTF-8"
    else:
        failure = output_difference(printed, tests.stdout[number], tolerance=tests.judging.float_tolerance)
    return _Ran(failure=failure, printed=storable(printed or ""), errors=storable(errors) if isinstance(errors, str) else "")


def _how_it_ended(reply: dict[str, Any]) -> str:
    code, stderr = reply.get("exit"), reply.get("stderr")
    if type(code) is not int or not -64 <= code <= 255 or not isinstance(stderr, str):
        return "the program spoiled its results"
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    said = one_line(stderr[-_SAID_CHARS:])
    return f"the program {how}: {said}" if said else f"the program {how}"


def _decoded(encoded: Any) -> str | None:
    """None for anything but base64 of UTF-8."""
    try:
        return base64.b64decode(encoded, validate=True).decode() if isinstance(encoded, str) else None
    except ValueError:
        return None
