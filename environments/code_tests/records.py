"""What a problem's tests are, once read and checked, and what came of running them."""

from dataclasses import dataclass, fields
from enum import Enum

from environments.records import Json


@dataclass(frozen=True, kw_only=True, slots=True)
class Judging:
    """How tests are run and counted. Each field may stand in a row of data or, for a whole source, in its `options`."""

    test_seconds: float = 10.0
    """Wall clock of one call of a function, or of one run of a program."""
    total_seconds: float = 30.0
    """Wall clock and processor time of all tests of one response; 5 s more are allowed for the start of boxes."""
    memory_mb: int = 512
    float_tolerance: float = 0.0
    """Largest difference of two numbers, absolute or relative to the expected one; 0 means that they must be equal (function
    calls allow two floats 1e-9 relative even then)."""
    partial_credit: bool = False
    """Run all tests and grade by the share that passes, instead of ending at the first that fails."""
    mutated_arguments: bool = False
    """Tests in source form: whether they see what the candidate did to the containers that they passed to it."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(spec.default, bool):
                if not isinstance(value, bool):
                    raise ValueError(f"{spec.name} is {value!r}; it must be true or false")
                continue
            low_allowed = spec.name == "float_tolerance"
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6 or (value == 0 and not low_allowed):
                raise ValueError(f"{spec.name} is {value!r}; it must be a number {'>= 0' if low_allowed else '> 0'}")
            if spec.name == "memory_mb" and not isinstance(value, int):
                raise ValueError(f"memory_mb is {value!r}; it must be a whole number of MiB")


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionTests:
    """Calls of one function with JSON arguments, compared with JSON values."""

    entry_point: str
    context: str
    """Source that runs before the response's code; empty for none."""
    inputs: tuple[str, ...]
    """One JSON list of positional arguments a test."""
    expected: tuple[Json, ...]
    judging: Judging


class Objects(Enum):
    """What tests in source form may do with an object of the candidate that is no plain value."""

    REFUSED = "refused"
    """Nothing: a call that returns one fails."""
    OPAQUE = "opaque"
    """Pass it on, compare its identity, set attributes, go on to objects that it holds; not ask it for values, because it could
    answer as suits it."""
    LIVE = "live"
    """Read attributes and call methods as well: the candidate's class is what is tested."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceTests:
    """Tests that are Python source: asserts, a `check(candidate)` function, or unittest classes."""

    source: str
    unittest: bool
    """Run the TestCase classes of `source`, instead of its statements."""
    names: tuple[str, ...]
    """What the tests take from the response. All other names are the data's own."""
    check: str
    """Name that `check` must be called with, when `source` defines it and does not call it; empty otherwise."""
    support: str
    """The data's imports and helpers, run before `source`; never the response's."""
    context: str
    """Source that runs before the response's code; empty for none."""
    objects: Objects
    answer_type: str
    """Type of the answer of a puzzle, such as `List[int]`; empty for any."""
    shares_files: bool
    """Whether files that one side writes appear on the other side."""
    n_tests: int
    """Assert statements, or test methods."""
    judging: Judging


@dataclass(frozen=True, kw_only=True, slots=True)
class StdioTests:
    """Runs of a whole program: what it reads, what it must print."""

    stdin: tuple[str, ...]
    stdout: tuple[str, ...]
    judging: Judging


@dataclass(frozen=True, kw_only=True, slots=True)
class InputTest:
    """Find an input for which a given function returns a given output."""

    code: str
    """Defines the function."""
    entry: str = "f"
    """Its name."""
    output: str
    """`repr` of what it must return."""
    known_input: str
    """The data's own input, right by definition; empty when there is none."""
    judging: Judging


Tests = FunctionTests | SourceTests | StdioTests | InputTest


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What became of one response's tests."""

    passed: int
    total: int
    failures: tuple[str, ...] = ()
    """One line each, the first ones only. Their text may hold expected values: not for the policy unless the tests are public."""
    broken: str = ""
    """Why the tests themselves cannot be used; `passed`, `total` and `failures` mean nothing then."""
    log: str = ""
    """All tests for people (`case_log.py`): inputs, expected values, results, what was printed. Never for the policy."""

    @property
    def all_passed(self) -> bool:
        """True when every test ran and passed."""
        return not self.broken and self.passed == self.total > 0
