"""Records of repository tasks: images, trees and their changes, patches, test runs."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from environments.records import Json

WORK_DIR = "/testbed"
"""Where a repository lies in its image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """What an agent changed, as `git diff --binary` writes it; any bytes."""

    data: bytes

    @property
    def empty(self) -> bool:
        """Nothing but white space."""
        return not self.data.strip()

    def to_json(self) -> dict[str, Json]:
        """`patch` for UTF-8, else `patch_base64`."""
        try:
            return {"patch": self.data.decode()}
        except UnicodeDecodeError:
            return {"patch_base64": base64.b64encode(self.data).decode()}

    @staticmethod
    def from_json(value: Mapping[str, Json]) -> "Patch | None":
        """The patch of an episode's outcome; None when it has none. Raises ValueError for one that is damaged."""
        if "patch" in value:
            return Patch(data=str(value["patch"]).encode())
        if "patch_base64" in value:
            return Patch(data=base64.b64decode(str(value["patch_base64"]), validate=True))
        return None


class PatchError(ValueError):
    """A patch that cannot be applied, or that goes where it may not; one line for a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeChange:
    """One path of a tree that differs from the base."""

    path: bytes
    """Relative to the work folder, any bytes but NUL; never absolute, without `..`, not below .git."""
    mode: int | None
    """0o100644, 0o100755 or 0o120000 as in git; None: deleted."""
    data: bytes = b""
    """Content, or the target of a symbolic link."""


class Outcome(Enum):
    """What became of one test."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    """Set-up, tear-down or collection failed."""
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    XPASSED = "xpassed"
    MISSING = "missing"
    """It was asked for, and no verdict came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestOutcome:
    """One test of a run."""

    __test__ = False  # not a test class, whatever its name
    id: str
    """pytest's node id, relative to the work folder."""
    outcome: Outcome
    seconds: float = 0.0
    detail: str = ""
    """Last lines of its report; from the candidate's process, so only for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRequest:
    """A run of tests on a tree."""

    changes: tuple[TreeChange, ...] = ()
    """What differs from the image."""
    tests: tuple[str, ...] = ()
    """Node ids; empty means all that can be collected."""
    seconds: float = 600.0
    coverage: bool = False
    """Also record which functions each test enters. Slower."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteResult:
    """What became of a run of tests. Whatever the tests or the code under test do is here, never an exception."""

    tests: tuple[TestOutcome, ...]
    """One for each test that was asked for or collected."""
    ended: str
    """`finished`, `timeout`, `memory`, `crashed` (the process ended before its last test), `output` (too much of it) or `tampered`."""
    reason: str = ""
    """One line when it did not finish."""
    output: str = ""
    """The last lines that were printed."""
    seconds: float = 0.0
    covered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Function as `path.py:qualified.name:line of its def`: the ids of the tests that enter it."""

    def passed(self) -> frozenset[str]:
        """Ids of the tests that passed; none unless the run finished."""
        return frozenset(test.id for test in self.tests if test.outcome is Outcome.PASSED) if self.ended == "finished" else frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class RepoImage:
    """A prepared image of a repository, as `rl swe image` makes it; kept in the image's labels and as `image.json`.

    In it, the work folder belongs to the agent's uid and holds no .git and no byte code; `python3` on PATH has pytest and the
    repository's dependencies, and imports the repository from the work folder.
    """

    image: str
    """Reference."""
    image_id: str
    """`sha256:...`"""
    name: str
    """Of the repository, for task ids: letters, digits, `-`, `_`."""
    source: str
    """Where it came from, for example `pypi:toolz==1.2.0`."""
    base_commit: str
    """Commit of a git repository, or the digest of the source package."""
    work_dir: str = WORK_DIR
    tests: Mapping[str, float] = field(default_factory=dict)
    """Tests that passed in every run, and the median of their seconds."""
    flaky: tuple[str, ...] = ()
    """Passed in some runs only."""
    failing: tuple[str, ...] = ()
    """Passed in none: failed, skipped, or missing."""
    covered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """As `SuiteResult.covered`."""
    suite_seconds: float = 0.0
    """Median of a whole run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepoTask:
    """A repository task as it stands in its folder (`environments/swe/folder.py`)."""

    id: str
    image: str
    """Reference of a prepared image."""
    instruction: str
    """Text for the agent."""
    overlay: tuple[TreeChange, ...]
    """How the tree that the agent finds differs from the image."""
    gold: Patch
    """A patch of that tree that solves the task; empty when it is not known."""
    fail_to_pass: tuple[str, ...]
    """Tests that fail before and must pass."""
    pass_to_pass: tuple[str, ...]
    """Tests that pass before and must still pass."""
    test_changes: tuple[TreeChange, ...] = ()
    """Test files that are put in place, over what the agent did, before the tests run; besides all of the base's own test files."""
    work_dir: str = WORK_DIR
    base_commit: str = ""
    test_seconds: float = 600.0
    """Deadline of the run of tests."""
    metadata: Mapping[str, Json] = field(default_factory=dict)
    """kind (`mutate` or `issue`), repository, mutation, sizes, solve_rate, licence; for people and filters."""
