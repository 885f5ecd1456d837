"""Runs a response's code against tests: one or two boxes a response, whatever the number of tests."""

import asyncio
import os

from environments.code_tests.calls import run_function_tests, run_input_test
from environments.code_tests.programs import run_stdio_tests
from environments.code_tests.records import FunctionTests, InputTest, Report, SourceTests, Tests
from environments.code_tests.sources import run_source_tests
from environments.sandbox.base import Sandbox
from environments.sandbox.shared import SharedSandbox

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


class SharedRunner(SharedSandbox):
    """The runner that the episodes of one event loop share, so that all of them together take few boxes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = CodeTestRunner(self.sandbox)
