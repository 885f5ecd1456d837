"""Predicted inputs of a call, judged by running it: many inputs may give the output that is known.

Only calls that can be made again from the outside are judged so: of a function with plain parameters that the module defines, that ended
with a return. All others are compared with what was recorded alone.
"""

import ast
import warnings

from environments.code_tests.compare import literal
from environments.sandbox.base import Sandbox
from environments.traces.debugger.machine import Machine
from environments.traces.records import EventKind, TraceEvent, TraceLimits, TraceStatus
from environments.traces.tracer import Program, record_trace

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MAX_ARGS = 20_000
"""Characters of all predicted values."""
_LIMITS = TraceLimits(seconds=2.0)
"""A predicted input may keep the function busy for ever."""


def called_function(machine: Machine, call: int) -> tuple[str, tuple[str, ...]] | None:
    """The function whose call at that event can be made again with other inputs, and its parameters; None when it cannot."""
    end = machine.return_of.get(call)
    if end is None or machine.events[end - 1].kind is EventKind.EXCEPTION:
        return None  # left by an exception: there is no output
    event = machine.events[call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the program's own business
        tree = ast.parse(machine.trace.source)
    starting = [node for node in ast.walk(tree) if isinstance(node, _SCOPES) and node.lineno == event.line_no]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = next((node for node in functions if [node] == starting), None)
    if found is None or sum(node.name == found.name for node in functions) > 1 or found.decorator_list:
        return None
    spec = found.args
    plain = not (spec.vararg or spec.kwarg or spec.kwonlyargs) and not any(
        isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(found)
    )
    names = tuple(one.arg for one in (*spec.posonlyargs, *spec.args))
    return (found.name, names) if plain and set(event.locals or ()) == set(names) else None


async def gives_output(machine: Machine, call: int, predicted: TraceEvent, *, sandbox: Sandbox) -> bool:
    """Whether the call at that event, made with the predicted locals instead, returns what it returned.

    Whatever the prediction holds is an answer. SandboxError means that the sandbox failed.
    """
    function = called_function(machine, call)
    if function is None or predicted.kind is not EventKind.CALL or predicted.line != machine.events[call].line:
        return False
    (name, parameters), shown = function, predicted.locals or {}
    if shown.keys() != set(parameters) or sum(map(len, shown.values())) > _MAX_ARGS:
        return False
    try:
        args = repr([literal(shown[parameter]) for parameter in parameters])
        program = Program(source=machine.trace.source, entry=name, args=args)
        recording = await record_trace(program, sandbox=sandbox, limits=_LIMITS, trace=False)
    except ValueError:  # no literals, or such that cannot be written again, as 1e999
        return False
    return recording.status is TraceStatus.OK and recording.value == machine.events[machine.return_of[call]].value
