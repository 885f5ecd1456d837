"""The tracer of a program some of whose locals are set to other values on the way. Imported in the box: standard library only.

It writes the same record as the tracer of `box_events.py`, more slowly: it looks at every local at every event.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

_IS_FUNCTION = 0x2
"""Flag of code whose locals are its own, and not those of a module or class."""
_MISSING = object()


def make_editing_tracer(
    channel: Any,
    *,
    file: str,
    batch: int,
    depth_limit: int,
    value_of: Callable[[Any], Any],
    included: Callable[[Any], bool] | None,
    edits: Sequence[tuple[int, str, Any]],
) -> Callable[[Any, str, Any], Any]:
    """The function for `sys.settrace`. Each edit sets a local before the call or line event of that number, from 0, is written.

    CPython copies what a trace function has put into `frame.f_locals` into the frame when that function returns.
    """
    append = channel.parts.append
    stack: list[Any] = [None]
    number, ticks = 0, batch

    def look(frame: Any, written: dict[str, Any]) -> None:
        nonlocal number
        values, at = frame.f_locals, number
        number += 1
        if type(values) is not dict:  # the mapping of a metaclass: using it would run the program's code
            return
        for event, name, value in edits:
            if event == at:
                values[name] = value
        for name, value in _shown(frame.f_code, values):
            new = value_of(value)
            old = written.get(name, _MISSING)
            if old is _MISSING or type(old) is not type(new) or old != new:
                written[name] = new
                append(name)
                append(new)
        for name in [name for name in written if name not in values]:
            del written[name]
            append(name)
            append(...)

    def on_call(frame: Any, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code.co_filename != file or event != "call" or (included is not None and len(stack) > 1 and not included(code)):
            return None
        if len(stack) > depth_limit:
            channel.end("depth", f"more than {depth_limit} calls in one another")
        written: dict[str, Any] = {}
        stack.append(written)
        append(-4 * frame.f_lineno - 1)
        look(frame, written)

        def on_event(frame: Any, event: str, arg: Any) -> Any:
            nonlocal number, ticks
            if stack[-1] is not written:
                channel.end("untraced", "frames of the program were not followed to their ends")
            if event == "line":
                append(frame.f_lineno)
                look(frame, written)
                ticks -= 1
                if not ticks:
                    ticks = channel.flush()
            else:
                number += 1
                append(-4 * (frame.f_lineno or 0) - (2 if event == "return" else 3))
                append(value_of(arg if event == "return" else arg[1]))
                if event == "return":
                    stack.pop()
                    if not frame.f_trace_lines:
                        channel.end("untraced", "the program turned the tracing of lines off")
            return on_event

        return on_event

    return on_call


def _shown(code: Any, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Locals of a frame; names of a module or class that Python itself makes are left out."""
    if code.co_flags & _IS_FUNCTION:
        yield from values.items()
        return
    for name, value in tuple(values.items()):
        if type(name) is str and name.isidentifier() and not (name.startswith("__") and name.endswith("__")):
            yield name, value
