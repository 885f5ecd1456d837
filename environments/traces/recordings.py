"""Recordings that many episodes share: the samples of a group, and their grader, ask for the same programs."""

import asyncio
from collections import OrderedDict

from environments.sandbox.base import Sandbox
from environments.traces.records import Recording, TraceLimits
from environments.traces.tracer import Program, record_trace


class Recordings:
    """Traces each program once and remembers the last ones. One instance serves one event loop."""

    def __init__(self, sandbox: Sandbox, *, limits: TraceLimits, size: int = 64) -> None:
        """`size`: recordings that are kept."""
        self._sandbox, self._limits, self._size = sandbox, limits, size
        self._tasks: OrderedDict[Program, asyncio.Task[Recording]] = OrderedDict()

    async def of(self, program: Program) -> Recording:
        """Join the tracing of that program, or start it. Raises as `record_trace`; a failure is not remembered."""
        task = self._tasks.get(program)
        if task is None:
            task = self._tasks[program] = asyncio.create_task(record_trace(program, sandbox=self._sandbox, limits=self._limits))
        self._tasks.move_to_end(program)
        while len(self._tasks) > self._size:
            self._tasks.popitem(last=False)
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception() is not None) and self._tasks.get(program) is task:
                del self._tasks[program]

    async def close(self) -> None:
        """End what still runs; the sandbox stays open."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
