"""Takes away what Python itself hands out of the process: the frame that a signal interrupts, and garbage that nobody reaches any more.

Standard library only, Python 3.8.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable
from typing import Any

from environments.swe.inside.suite_worker_guard import hidden


def withhold() -> None:
    """From here on handlers of signals get None in place of the frame, and `gc.garbage` gets nothing that is not garbage for ever."""
    import _signal

    core: Any = _signal
    set_handler, get_handler, set_debug = core.signal, core.getsignal, gc.set_debug
    given: dict[int, tuple[Any, Any]] = {}
    """Of each signal: what is registered, and the handler that it stands for."""

    def shown(number: int, found: Any) -> Any:
        registered, handler = given.get(number, (None, None))
        return handler if registered is not None and found is registered else found

    def signal_(number: int, handler: Any) -> Any:
        old = shown(number, get_handler(number))
        registered = _frameless(handler) if callable(handler) and handler is not core.default_int_handler else handler
        set_handler(number, registered)
        given[number] = (registered, handler)
        return old

    def getsignal(number: int) -> Any:
        return shown(number, get_handler(number))

    def debug(flags: int) -> None:
        set_debug(flags & ~gc.DEBUG_SAVEALL)

    for name, function in (("signal", signal_), ("getsignal", getsignal)):
        setattr(core, name, hidden(function))
        outer: Any = getattr(signal, name)
        if hasattr(outer, "__wrapped__"):
            outer.__wrapped__ = getattr(core, name)
    gc.set_debug = hidden(debug)


def _frameless(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
    def call(number: int, _: Any) -> Any:
        return handler(number, None)

    return call
