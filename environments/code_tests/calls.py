"""Tests that call a function and compare its result here: JSON values, and the prediction of an input."""

import json
from typing import Any

from environments.code_tests.candidate import START_SECONDS, Candidate, CandidateFailed, error_text, one_line, open_candidate
from environments.code_tests.compare import brief, plain_json, same_json, same_literal
from environments.code_tests.records import FunctionTests, InputTest, Report
from environments.code_tests.values import NotAValue, encode
from environments.sandbox.base import Sandbox

_MAX_FAILURES = 20
_REPR_OF_F = "\n\n\ndef __repr_of_f__(*args, **kwargs):\n    return repr(f(*args, **kwargs))\n"


async def run_function_tests(code: str, tests: FunctionTests, *, sandbox: Sandbox) -> Report:
    """Call the function once a test, each call within its time limit. A program that ends fails the tests from there on."""
    total = len(tests.inputs)
    failures: list[str] = []
    passed = 0
    async with open_candidate(sandbox, judging=tests.judging) as candidate:
        try:
            target = await load_function(candidate, code, context=tests.context, name=tests.entry_point)
            for number in range(total):
                failure = await _one_call(candidate, target, number=number, tests=tests)
                if not failure:
                    passed += 1
                    continue
                failures.append(failure)
                if not tests.judging.partial_credit:
                    break
        except CandidateFailed as error:
            failures.append(str(error))
    return Report(passed=passed, total=total, failures=tuple(failures[:_MAX_FAILURES]))


async def run_input_test(code: str, test: InputTest, *, sandbox: Sandbox) -> Report:
    """`code` is what stands between the parentheses of the call. It is evaluated in a box of its own, and only values leave it."""
    if test.known_input and code.strip() == test.known_input.strip():
        return Report(passed=1, total=1)
    try:
        async with open_candidate(sandbox, judging=test.judging) as predicted:
            arguments = await predicted.ask({"op": "evaluate", "code": code}, extra_seconds=START_SECONDS)
        if "error" in arguments:
            raise CandidateFailed(f"the input cannot be evaluated: {error_text(arguments)}")
        args, kwargs = arguments.get("args"), arguments.get("kwargs")
        if not isinstance(args, list) or not isinstance(kwargs, dict) or _names_objects([args, *kwargs.values()]):
            raise CandidateFailed("the input has a value that is no plain one")
    except (CandidateFailed, RecursionError) as error:
        return Report(passed=0, total=1, failures=(one_line(str(error)),))
    async with open_candidate(sandbox, judging=test.judging) as function:
        try:
            target = await load_function(function, test.code + _REPR_OF_F, context="", name="__repr_of_f__")
        except CandidateFailed as error:
            return Report(passed=0, total=1, broken=f"field 'code': {error}")
        try:
            output = await function.ask({"op": "call", "target": target, "want_args": False, "args": args, "kwargs": kwargs})
        except CandidateFailed as error:
            return Report(passed=0, total=1, failures=(str(error),))
    if "error" in output:
        return Report(passed=0, total=1, failures=(f"f raised {error_text(output)}",))
    value = output.get("value")
    if not isinstance(value, str):
        return Report(passed=0, total=1, failures=("the code spoiled its results",))
    if same_literal(value, test.output):
        return Report(passed=1, total=1)
    return Report(passed=0, total=1, failures=(one_line(f"f returned {value[:200]}, not {test.output}"),))


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


async def _one_call(candidate: Candidate, target: int, *, number: int, tests: FunctionTests) -> str:
    """Empty when the test passes, else what happened."""
    args = [encode(item, opaque=_refuse) for item in json.loads(tests.inputs[number])]
    reply = await candidate.ask({"op": "call", "target": target, "args": args, "kwargs": {}, "want_args": False})
    call = f"{tests.entry_point}({one_line(tests.inputs[number][1:-1])})"
    if "error" in reply:
        return f"{call} raised {error_text(reply)}"
    if "value" not in reply:
        raise CandidateFailed("the code spoiled its results")
    expected = tests.expected[number]
    try:
        value = plain_json(reply["value"])
        if same_json(value, expected, tolerance=tests.judging.float_tolerance):
            return ""
        got = one_line(brief(value))
    except NotAValue as error:
        got = str(error)
    except RecursionError:
        got = "a value that is too deep"
    return f"{call} returned {got}, expected {one_line(brief(expected))}"


def _names_objects(data: Any) -> bool:
    """Whether encoded values name an object of a box: it would be another object in the next box."""
    if isinstance(data, list):
        return any(_names_objects(item) for item in data)
    return isinstance(data, dict) and ("handle" in data or "foreign" in data or any(_names_objects(item) for item in data.values()))


def _refuse(value: Any) -> Any:
    raise NotAValue(f"a value of type {type(value).__name__}")
