"""Waiting for what must not be left half-done when the caller is cancelled."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T], *, undo: Callable[[T], Awaitable[object]] | None = None) -> T:
    """The result of `work`, which goes on when the caller is cancelled; the cancellation follows when it is done, and undone."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _outlast(task)
        if undo is not None and not task.cancelled() and task.exception() is None:
            await _outlast(asyncio.ensure_future(_awaited(undo(task.result()))))
        raise


async def _outlast(task: "asyncio.Task[Any]") -> None:
    """Until `task` is done, however often the caller is cancelled meanwhile; the first cancellation is under way already."""
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            continue


async def _awaited(value: Awaitable[object]) -> None:
    await value
