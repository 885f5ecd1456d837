"""Runs inside the box of a Python session: executes the cells of one episode in one namespace. Standard library only.

Each line of stdin is {"nonce", "code"}; the answer is a line {"nonce", "output", "failed"} on what was stdout at the start. What
the cells print is collected here, up to a limit; descriptors 1 and 2 lead nowhere. The cells share this process, so they can
forge an answer: it reaches nobody but the policy that wrote them.
"""

import ast
import contextlib
import io
import json
import os
import sys
import traceback
import types
from typing import Any

MAX_CHARS = 8000
"""What is kept of a cell's output: its beginning."""


class Kept(io.TextIOBase):
    """Collects text up to the limit and counts the rest."""

    def __init__(self) -> None:
        self.text = ""
        self.dropped = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        kept = text[: MAX_CHARS - len(self.text)]
        self.text += kept
        self.dropped += len(text) - len(kept)
        return len(text)


def compiled(code: str) -> tuple[types.CodeType, types.CodeType | None]:
    """The cell, and its last line when that is an expression whose value is to be shown."""
    tree = ast.parse(code, "<cell>")
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return compile(tree, "<cell>", "exec"), None
    tree.body.pop()
    return compile(tree, "<cell>", "exec"), compile(ast.Expression(last.value), "<cell>", "eval")


def run(code: str, namespace: dict[str, Any]) -> bool:
    """Execute a cell; its error is printed. Returns whether it went well."""
    try:
        statements, value = compiled(code)
        exec(statements, namespace)
        if value is not None and (shown := eval(value, namespace)) is not None:
            print(repr(shown))
    except BaseException as error:
        kind, trace = type(error), error.__traceback__
        own = trace.tb_next if trace is not None else None  # without the frame of this function
        print("".join(traceback.format_exception(kind, error, own, limit=-5)), end="")
        return False
    return True


def main() -> None:
    """Serve cells until stdin ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    cells = types.ModuleType("__main__")  # pickled objects and data classes look for the module of their class
    sys.modules["__main__"] = cells
    for line in requests:
        request = json.loads(line)
        kept = Kept()
        with contextlib.redirect_stdout(kept), contextlib.redirect_stderr(kept):
            well = run(request["code"], cells.__dict__)
        output = kept.text + (f"\n[{kept.dropped} more characters]" if kept.dropped else "")
        answers.write(json.dumps({"nonce": request["nonce"], "output": output, "failed": not well}).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
