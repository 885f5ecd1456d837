"""Tests that call a function and compare its result here: JSON values, and the prediction of an input."""

import json
from dataclasses import dataclass
from typing import Any

from environments.code_tests.candidate import START_SECONDS, Candidate, CandidateFailed, error_text, one_line, open_candidate, storable
from environments.code_tests.case_log import CaseLog
from environments.code_tests.compare import brief, plain_json, same_json, same_literal
from environments.code_tests.records import FunctionTests, InputTest, Report
from environments.code_tests.values import NotAValue, encode
from environments.log_text import FIELD_CHARS
from environments.sandbox.base import Sandbox

_MAX_FAILURES = 20
_REPR_OF_F = "\n\n\ndef __repr_of_f__(*args, **kwargs):\n    return repr({}(*args, **kwargs))\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Called:
    """One call of the function under test."""

    call: str
    failure: str = ""
    """Empty when the test passes, else what happened, in one line."""
    got: str = ""
    """The value that it returned instead of the expected one."""


async def run_function_tests(code: str, tests: FunctionTests, *, sandbox: Sandbox) -> Report:
    """Call the function once a test, each call within its time limit. A program that ends fails the tests from there on."""
    total = len(tests.inputs)
    failures: list[str] = []
    passed, log = 0, CaseLog()
    async with open_candidate(sandbox, judging=tests.judging) as candidate:
        try:
            target = await load_function(candidate, code, context=tests.context, name=tests.entry_point)
            log.note("printed while the code was loaded", candidate.take_printed())
            for number in range(total):
                called = await _one_call(candidate, target, number=number, tests=tests)
                if not called.failure:
                    passed += 1
                    log.passed(number + 1, called.call)
                    candidate.take_printed()
                    continue
                failures.append(called.failure)
                _log_failure(log, called, number=number, tests=tests, printed=candidate.take_printed())
                if not tests.judging.partial_credit:
                    break
        except CandidateFailed as error:
            failures.append(str(error))
            log.note("ended", str(error))
            log.note("printed before", candidate.take_printed())
    return Report(passed=passed, total=total, failures=tuple(failures[:_MAX_FAILURES]), log=log.text())


async def run_input_test(code: str, test: InputTest, *, sandbox: Sandbox) -> Report:
    """`code` is what stands between the parentheses of the call. It is evaluated in a box of its own, and only values leave it."""
    if test.known_input and code.strip() == test.known_input.strip():
        return _input_report(test, code)
    try:
        async with open_candidate(sandbox, judging=test.judging) as predicted:
            arguments = await predicted.ask({"op": "evaluate", "code": code}, extra_seconds=START_SECONDS)
        if "error" in arguments:
            raise CandidateFailed(f"the input cannot be evaluated: {error_text(arguments)}")
        args, kwargs = arguments.get("args"), arguments.get("kwargs")
        if not isinstance(args, list) or not isinstance(kwargs, dict) or _names_objects([args, *kwargs.values()]):
            raise CandidateFailed("the input has a value that is no plain one")
    except (CandidateFailed, RecursionError) as error:
        return _input_report(test, code, failure=one_line(str(error)))
    async with open_candidate(sandbox, judging=test.judging) as function:
        try:
            target = await load_function(function, test.code + _REPR_OF_F.format(test.entry), context="", name="__repr_of_f__")
        except CandidateFailed as error:
            return Report(passed=0, total=1, broken=f"field 'code': {error}")
        try:
            output = await function.ask({"op": "call", "target": target, "want_args": False, "args": args, "kwargs": kwargs})
        except CandidateFailed as error:
            return _input_report(test, code, failure=str(error))
    if "error" in output:
        return _input_report(test, code, failure=f"{test.entry} raised {error_text(output)}")
    value = output.get("value")
    if not isinstance(value, str):
        return _input_report(test, code, failure="the code spoiled its results")
    if same_literal(value, test.output):
        return _input_report(test, code)
    return _input_report(test, code, failure=one_line(f"{test.entry} returned {value[:200]}, not {test.output}"), got=value)


def _input_report(test: InputTest, code: str, *, failure: str = "", got: str = "") -> Report:
    """The report on a predicted input; `failure` is empty when it is right."""
    log = CaseLog()
    if failure:
        log.failed(1, failure, input=storable(code), expected=test.output, got=storable(got))
    else:
        log.passed(1, f"{test.entry}({one_line(code)}) is {one_line(test.output)}")
    return Report(passed=int(not failure), total=1, failures=(failure,) if failure else (), log=log.text())


async def load_function(candidate: Candidate, code: str, *, context: str, name: str) -> int:
    """Load `code`; the number of the function `name`. Raises CandidateFailed."""
    names = await load(candidate, code, context=context, names=(name,), share_files=False)
    number: int = names[name]["handle"][0]
    return number


async def load(candidate: Candidate, code: str, *, context: str, names: tuple[str, ...], share_files: bool) -> dict[str, Any]:
    """Load `code`; {"handle": [number, name of its type]} for each of `names`, made here: nothing else of the reply goes on.

    Raises CandidateFailed when the code fails, or one of them is no object of it.
    """
    request = {"op": "load", "code": code, "context": context, "names": names, "share_files": share_files}
    reply = await candidate.ask(request, extra_seconds=START_SECONDS)
    if "error" in reply:
        raise CandidateFailed(f"the code failed: {error_text(reply)}")
    defined = reply.get("names")
    if not isinstance(defined, dict):
        raise CandidateFailed("the code spoiled its results")
    handles = {}
    for name in names:
        if name not in defined:
            raise CandidateFailed(f"the code defines no {name}")
        handle = defined[name].get("handle") if isinstance(defined[name], dict) else None
        if not isinstance(handle, list) or len(handle) != 2 or type(handle[0]) is not int or not isinstance(handle[1], str):
            raise CandidateFailed(f"{name} is no function or class")
        handles[name] = {"handle": [handle[0], handle[1][:60]]}
    return handles


def _log_failure(log: CaseLog, called: _Called, *, number: int, tests: FunctionTests, printed: str) -> None:
    log.failed(
        number + 1,
        called.failure,
        arguments=tests.inputs[number][1:-1],
        expected=brief(tests.expected[number], chars=FIELD_CHARS),
        got=called.got,
        printed=printed,
    )


async def _one_call(candidate: Candidate, target: int, *, number: int, tests: FunctionTests) -> _Called:
    args = [encode(item, opaque=_refuse) for item in json.loads(tests.inputs[number])]
    reply = await candidate.ask({"op": "call", "target": target, "args": args, "kwargs": {}, "want_args": False})
    call = f"{tests.entry_point}({one_line(tests.inputs[number][1:-1])})"
    if "error" in reply:
        return _Called(call=call, failure=f"{call} raised {error_text(reply)}")
    if "value" not in reply:
        raise CandidateFailed("the code spoiled its results")
    expected = tests.expected[number]
    try:
        value = plain_json(reply["value"])
        if same_json(value, expected, tolerance=tests.judging.float_tolerance):
            return _Called(call=call)
        got, whole = one_line(brief(value)), storable(brief(value, chars=FIELD_CHARS))
    except NotAValue as error:
        got = whole = str(error)
    except RecursionError:
        got = whole = "a value that is too deep"
    return _Called(call=call, failure=f"{call} returned {got}, expected {one_line(brief(expected))}", got=whole)


def _names_objects(data: Any) -> bool:
    """Whether encoded values name an object of a box: it would be another object in the next box."""
    if isinstance(data, list):
        return any(_names_objects(item) for item in data)
    return isinstance(data, dict) and ("handle" in data or "foreign" in data or any(_names_objects(item) for item in data.values()))


def _refuse(value: Any) -> Any:
    raise NotAValue(f"a value of type {type(value).__name__}")
