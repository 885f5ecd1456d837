"""Runs in the test box: unittest classes. Imported there only when a problem has such tests. Standard library only."""

import types
import unittest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from environments.code_tests.test_box import Outcomes


class _Result(unittest.TestResult):
    """Counts a test as passed only when it ran to its end and neither failed, nor was skipped or expected to fail."""

    def __init__(self, outcomes: "Outcomes") -> None:
        super().__init__()
        self._outcomes = outcomes

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._outcomes.held.add(test.id())

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._outcomes.fail(test.id(), f"{test.id().partition('.')[2]}: {err[0].__name__}: {err[1]}")

    addError = addFailure

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._outcomes.fail(test.id(), f"{test.id()} was skipped")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addFailure(test, err)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.addSkip(test, "expected to fail")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self.addSkip(test, "expected to fail")


def run_unittests(source: str, module: types.ModuleType, outcomes: "Outcomes") -> None:
    """Run every TestCase class of the source, in `module`."""
    exec(compile(source, "tests", "exec"), module.__dict__)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    outcomes.n_expected = suite.countTestCases()
    suite.run(_Result(outcomes))
