"""Tests that are Python source: one box runs them, another one the candidate, and the calls between them pass through here.

    test box  --{"request"}-->  here  --request-->  candidate's box
    test box  <--{"reply"}---   here  <--reply----  candidate's box

The test box says at the end what passed, with a nonce that only it and this side know.
"""

import asyncio
import json
import secrets
from typing import Any

from environments.code_tests.calls import load
from environments.code_tests.candidate import (
    BOX_FILES,
    START_SECONDS,
    Candidate,
    CandidateFailed,
    box_limits,
    json_object,
    one_line,
    open_candidate,
    source_of,
    storable,
    why_ended,
)
from environments.code_tests.case_log import CaseLog
from environments.code_tests.records import Report, SourceTests
from environments.sandbox.base import Sandbox, SandboxError, Session, SessionEnded

_TEST_BOX = source_of("test_box.py")


async def run_source_tests(code: str, tests: SourceTests, *, sandbox: Sandbox) -> Report:
    """Run the tests against `code`. A program that ends or hangs fails the tests from there on."""
    async with open_candidate(sandbox, judging=tests.judging) as candidate:
        try:
            names = await load(candidate, code, context=tests.context, names=tests.names, share_files=tests.shares_files)
        except CandidateFailed as error:
            return _ended(str(error), candidate, tests=tests)
        session = await _open_second(sandbox, tests=tests)
        try:
            verdict = await _relay(session, candidate, tests=tests, names=names)
        except SessionEnded:
            reason = why_ended(await session.close(), judging=tests.judging).replace("the code", "the tests of what the code returned", 1)
            return _ended(reason, candidate, tests=tests)
        finally:
            await session.close()
        return _report(verdict, tests=tests, printed=candidate.take_printed())


async def _open_second(sandbox: Sandbox, *, tests: SourceTests) -> Session:
    """The test box. Its wait must not count against the candidate: a crowd that holds one box each and waits for another is our failure."""
    try:
        async with asyncio.timeout(START_SECONDS):
            return await sandbox.open(_TEST_BOX, files=BOX_FILES, limits=box_limits(tests.judging))
    except TimeoutError:
        raise SandboxError(f"no second box within {START_SECONDS:g} s: too many gradings at once on this machine") from None


async def _relay(session: Session, candidate: Candidate, *, tests: SourceTests, names: dict[str, Any]) -> dict[str, Any]:
    """Carry calls to and fro until the test box gives its verdict. Raises SessionEnded when it ends without one."""
    nonce = secrets.token_hex(16)
    line = json.dumps(_start(tests, names=names, nonce=nonce)).encode()
    while True:
        answer = await session.ask(line, seconds=tests.judging.total_seconds + START_SECONDS)
        request, is_verdict = _from_tests(answer, nonce=nonce)
        if is_verdict:
            return request
        try:
            reply = await candidate.ask_line(json.dumps(request).encode())
            line = b'{"reply": ' + reply + b"}"
        except CandidateFailed as error:
            line = json.dumps({"ended": str(error)}).encode()


def _start(tests: SourceTests, *, names: dict[str, Any], nonce: str) -> dict[str, Any]:
    return {
        "nonce": nonce,
        "source": tests.source,
        "unittest": tests.unittest,
        "n_tests": tests.n_tests,
        "check": tests.check,
        "support": tests.support,
        "names": {name: names[name] for name in tests.names},
        "objects": tests.objects.value,
        "answer_type": tests.answer_type,
        "share_files": tests.shares_files,
        "mutated_arguments": tests.judging.mutated_arguments,
        "keep_going": tests.judging.partial_credit,
    }


def _from_tests(line: bytes, *, nonce: str) -> tuple[dict[str, Any], bool]:
    """(verdict, True) or (request, False)."""
    try:
        message = json_object(line)
    except CandidateFailed:
        message = {}
    if isinstance(message.get("request"), dict):
        return message["request"], False
    if message.get("nonce") == nonce and isinstance(message.get("verdict"), dict):
        return message["verdict"], True
    return {"broken": "they spoiled their verdict"}, True


def _ended(why: str, candidate: Candidate, *, tests: SourceTests) -> Report:
    """The report when there is no verdict."""
    log = CaseLog()
    log.note("ended", why)
    log.note("printed before", candidate.take_printed())
    return Report(passed=0, total=tests.n_tests, failures=(why,), log=log.text())


def _report(verdict: dict[str, Any], *, tests: SourceTests, printed: str) -> Report:
    log = CaseLog()
    if "broken" in verdict:
        log.note("the tests cannot be used", storable(str(verdict["broken"])))
        return Report(passed=0, total=tests.n_tests, broken=f"field 'tests': {one_line(str(verdict['broken']))}", log=log.text())
    passed = tests.n_tests if verdict["complete"] else min(int(verdict["passed"]), tests.n_tests - 1)
    log.note("tests", f"{passed} of {tests.n_tests} passed" if passed == tests.n_tests or tests.judging.partial_credit else "one failed")
    failures = tuple(str(text) for text in verdict["failures"]) or ("some tests did not run",)
    for text in failures if passed < tests.n_tests else ():
        log.note("failed", storable(text))
    log.note("printed", printed)
    if passed == tests.n_tests:
        return Report(passed=passed, total=passed, log=log.text())
    return Report(passed=passed, total=tests.n_tests, failures=tuple(map(one_line, failures)), log=log.text())
