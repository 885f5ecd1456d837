"""Tests of a whole program: text on stdin, text expected on stdout. One box; each run is a process of its own in it."""

import base64
from typing import Any

from environments.code_tests.candidate import START_SECONDS, Candidate, CandidateFailed, error_text, one_line, open_candidate
from environments.code_tests.compare import output_difference
from environments.code_tests.records import Report, StdioTests
from environments.code_tests.values import MAX_STDOUT_BYTES
from environments.sandbox.base import Sandbox

_MAX_FAILURES = 20
_GRACE_SECONDS = 2.0
"""A run is ended in the box when its time is over; the box is ended this much later."""


async def run_stdio_tests(code: str, tests: StdioTests, *, sandbox: Sandbox) -> Report:
    """Run the program once a test, each run within its time limit. A program that ends the whole box fails the tests from there on."""
    total = len(tests.stdin)
    failures: list[str] = []
    passed = 0
    async with open_candidate(sandbox, judging=tests.judging) as candidate:
        try:
            reply = await candidate.ask({"op": "prepare", "code": code}, extra_seconds=START_SECONDS)
            if "error" in reply:
                raise CandidateFailed(f"the code failed: {error_text(reply)}")
            for number in range(total):
                failure = await _one_run(candidate, number=number, tests=tests)
                if not failure:
                    passed += 1
                    continue
                failures.append(f"input {one_line(repr(tests.stdin[number]))}: {failure}")
                if not tests.judging.partial_credit:
                    break
        except CandidateFailed as error:
            failures.append(str(error))
    return Report(passed=passed, total=total, failures=tuple(failures[:_MAX_FAILURES]))


async def _one_run(candidate: Candidate, *, number: int, tests: StdioTests) -> str:
    """Empty when the test passes, else what happened."""
    seconds = tests.judging.test_seconds
    reply = await candidate.ask({"op": "run", "stdin": tests.stdin[number], "seconds": seconds}, extra_seconds=_GRACE_SECONDS)
    if "error" in reply:
        return f"the program could not be run: {error_text(reply)}"
    if reply.get("timeout") is not False:
        return f"the program ran longer than {seconds:g} s"
    if reply.get("too_much") is not False:
        return f"the program wrote more than {MAX_STDOUT_BYTES >> 20} MiB"
    if reply.get("exit") != 0:
        return _how_it_ended(reply)
    try:
        printed = _text(reply.get("stdout"))
    except ValueError:
        return "the program printed bytes that are no UTF-8"
    return output_difference(printed, tests.stdout[number], tolerance=tests.judging.float_tolerance)


def _how_it_ended(reply: dict[str, Any]) -> str:
    code, stderr = reply.get("exit"), reply.get("stderr")
    if type(code) is not int or not -64 <= code <= 255 or not isinstance(stderr, str):
        return "the program spoiled its results"
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    said = one_line(stderr)
    return f"the program {how}: {said}" if said else f"the program {how}"


def _text(encoded: Any) -> str:
    if not isinstance(encoded, str):
        raise ValueError("no text")
    return base64.b64decode(encoded, validate=True).decode()
