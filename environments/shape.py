"""What makes an object an environment: told before a run starts, because everything may be named in `env:`."""

import inspect
from typing import Any

SHAPE = "it must be a class or function (task) -> object with async reset, step, close"
METHODS = ("reset", "step", "close")


def check_factory(name: str, factory: Any) -> None:
    """Raise ValueError when `factory` cannot be called with a task alone."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # nothing can be said of a built-in without a signature
    try:
        signature.bind("task")
    except TypeError as error:
        raise ValueError(f"environment {name!r} is no environment: {SHAPE} (called with a task alone: {error})") from None


def check_object(name: str, made: object) -> None:
    """Raise ValueError when what a factory made has not the methods of the protocol, or one of them is not `async`."""
    missing = [method for method in METHODS if not callable(getattr(made, method, None))]
    if missing:
        raise ValueError(f"environment {name!r} is no environment: {SHAPE} (it made a {type(made).__name__} without {', '.join(missing)})")
    for method in METHODS:
        if not inspect.iscoroutinefunction(inspect.unwrap(getattr(made, method))):
            raise ValueError(f"environment {name!r}: `{method}` of {type(made).__name__} must be `async def`")
