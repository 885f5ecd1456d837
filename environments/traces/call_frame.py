"""The arguments of a call, read from the frame that shows it: its locals are the parameters."""

import ast
import warnings

from environments.code_tests.compare import literal
from environments.traces.records import EventKind, TraceEvent


def call_arguments(event: TraceEvent, *, source: str, entry: str) -> str:
    """Positional arguments with which `entry` would be called, as Python literals, as they stand between the parentheses of the call.

    The frame may be a model's, the source is not. Raises ValueError for a frame that is no call of the entry, shows a parameter not at
    all or not as a literal, and for an entry with parameters that cannot be given by position.
    """
    function = _function(source, entry=entry)
    first = source.split("\n")[min((function.lineno, *(one.lineno for one in function.decorator_list))) - 1]
    if event.kind is not EventKind.CALL or event.line != first:
        raise ValueError(f"the first frame is no call of {entry}")
    parameters = function.args
    if parameters.kwonlyargs or parameters.kwarg:
        raise ValueError(f"{entry} has parameters that cannot be given by position")
    shown = event.locals or {}
    values = [_shown(shown.get(one.arg), name=one.arg) for one in (*parameters.posonlyargs, *parameters.args)]
    if parameters.vararg:
        name = parameters.vararg.arg
        more = _shown(shown.get(name), name=name)
        if type(more) is not tuple:
            raise ValueError(f"the call frame shows {name!r}, the arguments beyond the others, as no tuple")
        values += more
    try:
        return ", ".join(map(repr, values))
    except (ValueError, RecursionError) as error:  # of integers with too many digits
        raise ValueError(f"the arguments cannot be written: {error}") from None


def _function(source: str, *, entry: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as invalid escapes: the program's own business
        body = ast.parse(source).body
    found = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == entry]
    if not found:
        raise ValueError(f"{entry} is no function at the top level of the program")
    return found[-1]


def _shown(text: str | None, *, name: str) -> object:
    if text is None:
        raise ValueError(f"the call frame does not show the parameter {name!r}")
    try:
        return literal(text)
    except ValueError as error:
        raise ValueError(f"the call frame shows the parameter {name!r} as {text[:60]!r}: {error}") from None
