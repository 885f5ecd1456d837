"""Runs a response's code against tests: one or two boxes a response, whatever the number of tests."""

import asyncio
import os
from typing import ClassVar
from weakref import WeakKeyDictionary

from environments.code_tests.calls import run_function_tests, run_input_test
from environments.code_tests.programs import run_stdio_tests
from environments.code_tests.records import FunctionTests, InputTest, Report, SourceTests, Tests
from environments.code_tests.sources import run_source_tests
from environments.sandbox.base import Sandbox
from environments.sandbox.make import make_sandbox

_MOST_AT_ONCE = 16
"""A response takes two boxes, and a sandbox has some dozens for all its users."""


class CodeTestRunner:
    """Grades of several responses at a time, in boxes of one sandbox. One instance serves one event loop."""

    def __init__(self, sandbox: Sandbox, *, at_once: int = 0) -> None:
        """`at_once`: responses under test at the same time; 0 means one a processor, at most 16."""
        self._sandbox = sandbox
        self._turns = asyncio.Semaphore(at_once or min(os.cpu_count() or 1, _MOST_AT_ONCE))

    async def run(self, code: str, tests: Tests) -> Report:
        """Test `code`. Whatever the code does is a report; SandboxError means that the sandbox failed."""
        async with self._turns:
            if isinstance(tests, FunctionTests):
                return await run_function_tests(code, tests, sandbox=self._sandbox)
            if isinstance(tests, SourceTests):
                return await run_source_tests(code, tests, sandbox=self._sandbox)
            if isinstance(tests, InputTest):
                return await run_input_test(code, tests, sandbox=self._sandbox)
            return await run_stdio_tests(code, tests, sandbox=self._sandbox)


class SharedRunner:
    """The runner that the episodes of one event loop share, so that all of them together take few boxes at once."""

    _by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, "SharedRunner"]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._sandbox = make_sandbox()
        self.runner = CodeTestRunner(self._sandbox)
        self._users = 0

    @classmethod
    def take(cls) -> "SharedRunner":
        """Use the running loop's runner until `release`. Raises SandboxUnavailable."""
        loop = asyncio.get_running_loop()
        shared = cls._by_loop.get(loop)
        if shared is None:
            shared = cls._by_loop[loop] = cls()
        shared._users += 1
        return shared

    async def release(self) -> None:
        """Stop using it; the last user closes the sandbox."""
        self._users -= 1
        if self._users == 0:
            del self._by_loop[asyncio.get_running_loop()]
            await self._sandbox.close()
