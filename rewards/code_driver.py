"""Runs inside the sandbox: calls the candidate's function on each input and reports what it returned.

It reads one JSON object from stdin (nonce, code, entry point, inputs), points stdin, stdout and stderr at /dev/null, runs the
code and writes one JSON line to the original stdout. It holds no expected values, so code that takes over this process and
forges the line can only choose what its function "returned", which it could do anyway. Standard library only.
"""

import json
import os
import sys
from typing import Any


class _NotPlain(Exception):
    """A returned value that is not made of exact built-in types."""


def plain(value: Any) -> Any:
    """Copy a value of exactly None, bool, int, float, str, list, tuple (as list), dict with text keys; no subclasses."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return [plain(item) for item in value]
    if kind is dict:
        if any(type(key) is not str for key in value):
            raise _NotPlain("a dict with keys other than text")
        return {key: plain(item) for key, item in value.items()}
    raise _NotPlain(f"a value of type {kind.__name__}")


def call(function: Any, arguments: Any) -> dict[str, Any]:
    """One result record: `value`, or `error` as text."""
    try:
        return {"value": plain(function(*arguments))}
    except BaseException as error:  # the candidate may raise anything, SystemExit included
        return {"error": describe(error)}


def describe(error: BaseException) -> str:
    """One short line; the exception's own methods are the candidate's and may fail too."""
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return "an exception that cannot be shown"


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    channel = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    dumps, write, leave = json.dumps, os.write, os._exit
    report: dict[str, Any] = {"nonce": request["nonce"]}
    namespace: dict[str, Any] = {"__name__": "candidate"}
    try:
        exec(compile(request["code"], "candidate.py", "exec"), namespace)
    except BaseException as error:
        report["failed"] = describe(error)
    else:
        function = namespace.get(request["entry_point"])
        if callable(function):
            report["results"] = [call(function, json.loads(arguments)) for arguments in request["inputs"]]
        else:
            report["failed"] = f"no function named {request['entry_point']}"
    try:
        line = dumps(report).encode()
    except BaseException as error:
        line = dumps({"nonce": request["nonce"], "failed": describe(error)}).encode()
    line += b"\n"
    while line:
        line = line[write(channel, line) :]
    leave(0)  # no exit handlers, no waiting for threads


if __name__ == "__main__":
    main()
