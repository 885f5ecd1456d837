"""Records traces for tests: one sandbox and one event loop for a whole test module."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from environments.sandbox.base import Sandbox
from environments.sandbox.make import make_sandbox
from environments.traces.records import Recording
from environments.traces.tracer import Program, record_trace

T = TypeVar("T")


class Recorder:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.sandbox: Sandbox = make_sandbox()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def record(self, source: str, args: str = "[]", *, entry: str | None = "f", **options: Any) -> Recording:
        return self.run(record_trace(Program(source=source, entry=entry, args=args), sandbox=self.sandbox, **options))

    def close(self) -> None:
        self.run(self.sandbox.close())
        self._loop.close()
