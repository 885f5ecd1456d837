"""Watches beside the work: the first one that fails ends it, wherever it waits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence


@contextlib.asynccontextmanager
async def supervised(watches: Sequence[Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """Run the watches while the block runs; what one of them raises is raised in the block's place."""
    owner = asyncio.current_task()
    assert owner is not None
    failures: list[BaseException] = []

    async def guarded(watch: Callable[[], Awaitable[None]]) -> None:
        try:
            await watch()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            failures.append(error)
            owner.cancel()

    tasks = [asyncio.create_task(guarded(watch)) for watch in watches]
    try:
        yield
    except asyncio.CancelledError:
        if not failures:
            raise
        owner.uncancel()
        raise failures[0] from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
