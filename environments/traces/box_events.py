"""The function for `sys.settrace`: what happens in frames, as the record of `box_record.py`. Imported in the box: standard library only.

A name is looked at when the line that ran could have bound it, a container when the line could have changed one, and everything when other
Python code ran in between (`epoch`); `box_lines.py` tells which.

`box_native.cpp` does the same and writes the same record; whoever changes one changes both.
"""

from collections.abc import Callable
from marshal import dumps
from typing import Any

from environments.traces.box_lines import CHANGES, LineTable, native_table
from environments.traces.box_record import BATCH, Channel
from environments.traces.box_values import LARGE, MAX_FORM, MAX_ITEMS, Shown

FILE = "program.py"
"""Name of the program's file, which is none on disk."""
MISSING = object()
Handler = Callable[[Any, str, Any], Any]
Included = Callable[[Any], bool]
Written = dict[str, Any]
"""Locals of one frame that were written, with what was; None where that was not kept. A frame has a second one for those that can change
without being bound anew."""


def make_tracer(channel: Channel, *, depth_limit: int, shown: Shown, included: Included | None, native: Any = None) -> Handler:
    """`native`: the compiled module, where there is one. `included`: whether a code object is followed; None for all."""
    if native is None:
        return python_tracer(channel, depth_limit=depth_limit, shown=shown, included=included)
    return native.make_tracer(
        *(channel.parts, channel.flush, channel.end, included, native_table),
        *(shown.value, shown.known_class, shown, Locals(channel.parts, shown).look_at_block),
        *(FILE, MISSING, depth_limit, BATCH, shown.chars, MAX_ITEMS, MAX_FORM),
    )


def python_tracer(channel: Channel, *, depth_limit: int, shown: Shown, included: Included | None) -> Handler:
    """In Python alone."""
    append, flush = channel.parts.append, channel.flush
    locals_ = Locals(channel.parts, shown)
    look_at_bound, look_at_contents, look_at_block = locals_.look_at_bound, locals_.look_at_contents, locals_.look_at_block
    tables: dict[int, LineTable] = {}
    stack: list[Any] = [None]
    other_event = make_writer(channel, stack, shown)
    epoch, ticks = 0, BATCH

    def on_call(frame: Any, event: str, arg: Any) -> Any:
        nonlocal epoch
        epoch += 1
        code = frame.f_code
        if code.co_filename != FILE or event != "call":
            return None
        depth = len(stack)
        if included is not None and depth > 1 and not included(code):
            return None
        if depth > depth_limit:
            channel.end("depth", f"more than {depth_limit} calls in one another")
        if (table := tables.get(id(code))) is None:
            table = tables[id(code)] = LineTable(code)
        written: Written = {}
        changing: Written = {}
        seen_epoch, effect = epoch, 0
        stores: tuple[str, ...] = ()
        cells = table.cells
        stack.append(written)
        append(-4 * (frame.f_lineno or 0) - 1)
        values = frame.f_locals
        is_function = table.is_function and type(values) is dict
        if is_function:
            locals_.look_at_new(values, table.order, written, changing)
        else:
            look_at_block(values, written, changing)

        def on_event(frame: Any, event: str, arg: Any) -> Any:
            nonlocal stores, effect, seen_epoch, ticks
            if stack[-1] is not written:
                channel.end("untraced", "frames of the program were not followed to their ends")
            if event != "line":
                other_event(frame, event, arg)
                return on_event
            append(line := frame.f_lineno)
            if is_function:
                if seen_epoch != epoch:
                    seen_epoch, effect = epoch, CHANGES
                    if cells:
                        stores = (*stores, *cells)
                if stores:
                    values = frame.f_locals
                    look_at_bound(values, stores, written, changing)
                    if effect and changing:
                        look_at_contents(values, changing, effect)
                elif effect and changing:
                    look_at_contents(frame.f_locals, changing, effect)
            else:
                look_at_block(frame.f_locals, written, changing)
            stores, effect = table[line]
            ticks -= 1
            if not ticks:
                ticks = flush()
            return on_event

        return on_event

    return on_call


def make_writer(channel: Channel, stack: list[Any], shown: Shown) -> Handler:
    """The function for events of a frame that are no lines: it ends, or something was raised in it."""

    def on_other_event(frame: Any, event: str, arg: Any) -> None:
        line = frame.f_lineno or 0
        if event == "return":
            channel.parts.extend((-4 * line - 2, shown.value(arg)))
            stack.pop()
            if not frame.f_trace_lines:
                channel.end("untraced", "the program turned the tracing of lines off")
        elif event == "exception":
            channel.parts.extend((-4 * line - 3, shown.value(arg[1])))

    return on_other_event


class Locals:
    """Writes locals that are not as they were. A name and its value are added by one call: time may be up between any two."""

    def __init__(self, parts: list[Any], shown: Shown) -> None:
        self._extend, self._shown, self._value_of = parts.extend, shown, shown.value

    def look(self, name: str, value: Any, written: Written, changing: Written) -> None:
        """One that was bound."""
        if value is MISSING:
            if written.pop(name, MISSING) is not MISSING:
                changing.pop(name, None)
                self._extend((name, ...))
            return
        new = self._value_of(value)
        if type(new) is bytes or type(new) is tuple:
            if changing.get(name) == new:
                return
            changing[name] = new
            written[name] = None
        else:
            if changing:
                changing.pop(name, None)
            old = written.get(name)
            if old is not None and old == new and type(old) is type(new):
                return
            written[name] = new
        self._extend((name, new))

    def look_at_bound(self, values: Any, stores: tuple[str, ...], written: Written, changing: Written) -> None:
        """Those that the line could have bound."""
        for name in stores:
            value = values.get(name, MISSING)
            kind = type(value)
            if name not in changing and (
                (kind is int and -LARGE < value < LARGE) or (kind is str and len(value) < 100) or kind is float or kind is bool
            ):
                self._extend((name, value))
                written[name] = None
            else:
                self.look(name, value, written, changing)

    def look_at_contents(self, values: Any, changing: Written, effect: int) -> None:
        """Containers and objects after a line that may have changed them; plain ones do not change when they are read."""
        short = not (self._shown.wary or self._shown.buffers)
        for name, old in changing.items():
            if effect == CHANGES or type(old) is tuple:
                value = values.get(name, MISSING)
                if short and type(old) is bytes:
                    try:
                        if dumps(value, 2) == old:
                            continue
                    except (ValueError, TypeError, MemoryError, RecursionError):
                        pass
                new = self._value_of(value)
                if new != old or type(new) is not type(old):
                    changing[name] = new
                    self._extend((name, new))

    def look_at_new(self, values: Any, known: dict[str, int], written: Written, changing: Written) -> None:
        """Every local of a function's frame that begins or goes on. Names that the program put among them are left out."""
        for name, value in values.items():
            if type(name) is not str or name not in known:
                continue
            if type(value) is int and -LARGE < value < LARGE:
                self._extend((name, value))
                written[name] = None
            else:
                self.look(name, value, written, changing)

    def look_at_block(self, values: Any, written: Written, changing: Written) -> None:
        """Every name of a module or class, apart from those that Python itself makes."""
        if type(values) is not dict:  # the mapping of a metaclass: reading it would run the program's code
            return
        for name, value in tuple(values.items()):
            if type(name) is str and name.isidentifier() and not (name.startswith("__") and name.endswith("__")):
                self.look(name, value, written, changing)
        for name in [name for name in written if name not in values]:
            self.look(name, MISSING, written, changing)
