"""Rows of the code kinds: which fields the grader gets, what the policy may see, and the check that they can be graded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from configs.checked import bounded
from environments.code_tests.read import JUDGING_FIELDS, TEST_ENVS, parsed_tests, read_tests
from environments.code_tests.records import Judging
from environments.records import Json

CODE_ENVS = (*TEST_ENVS, "code_output")
_GRADER_FIELDS = ("entry_point", "class_name", "ans_type", *JUDGING_FIELDS)
_DEFAULTS = Judging()
OPTIONS_OF = {"public_tests": "code_attempts", "attempts": "code_attempts", "compare": "code_output"}
"""Options that mean something in one environment only."""


@dataclass(frozen=True, kw_only=True)
class CodeOptions:
    """`options` of a source of rows for the code environments. Where a row has a field of one of the last names, the row counts."""

    context: str = ""
    """The field with source that stands before the response's code: the beginning of a file to complete, or a puzzle."""
    public_tests: str = "public_tests"
    """code_attempts: the field with tests that the policy may see."""
    attempts: int = bounded(3, low=1, high=100)
    """code_attempts: programs that the policy may write."""
    compare: str = "text"
    """code_output: `text`, or `value` to compare Python literals."""
    test_seconds: float = _DEFAULTS.test_seconds
    total_seconds: float = _DEFAULTS.total_seconds
    memory_mb: int = _DEFAULTS.memory_mb
    float_tolerance: float = _DEFAULTS.float_tolerance
    partial_credit: bool = _DEFAULTS.partial_credit
    mutated_arguments: bool = _DEFAULTS.mutated_arguments

    def judging(self) -> dict[str, Any]:
        """What differs from the defaults of `Judging`."""
        return {name: value for name, value in asdict(self).items() if name in JUDGING_FIELDS and value != getattr(_DEFAULTS, name)}


def code_reference(
    row: Mapping[str, Json], reference: Mapping[str, Json], *, env: str, options: CodeOptions, where: str
) -> dict[str, Json]:
    """`reference` with what the grader of `env` needs. Raises ValueError, beginning with `where`, for a row that cannot be graded."""
    if env == "code_output":
        compare = row.get("compare") or options.compare
        if compare not in ("text", "value"):
            raise ValueError(f"{where}: compare is {compare!r}; it must be text or value")
        return {**reference} if compare == "text" else {**reference, "compare": compare}
    names = (*_GRADER_FIELDS, "code", "output") if env == "code_input" else _GRADER_FIELDS
    found = {name: row[name] for name in names if row.get(name) is not None}
    whole: dict[str, Json] = {**options.judging(), **reference, **found, **_context(row, options=options, where=where)}
    if "tests" in whole:
        whole["tests"] = parsed_tests(whole["tests"])
    _check(env, whole, where=where)
    return whole


def code_payload(row: Mapping[str, Json], *, env: str, options: CodeOptions, where: str) -> dict[str, Json]:
    """What the environment may see of a row. Raises ValueError when code_attempts has no usable public tests."""
    payload = {name: row[name] for name in ("entry_point", "class_name") if row.get(name) is not None}
    if env == "code_attempts":
        tests = row.get(options.public_tests)
        if tests is None:
            raise ValueError(f"{where}: no field {options.public_tests!r}; code_attempts needs tests to show: set options.public_tests")
        judging = options.judging() | {name: row[name] for name in JUDGING_FIELDS if row.get(name) is not None}
        payload |= {
            "public_tests": parsed_tests(tests),
            "attempts": options.attempts,
            **judging,
            **_context(row, options=options, where=where),
        }
        _check(env, {**payload, "tests": tests}, where=f"{where}: {options.public_tests}")
    return payload


def _context(row: Mapping[str, Json], *, options: CodeOptions, where: str) -> dict[str, Json]:
    if not options.context:
        return {} if row.get("context") is None else {"context": row["context"]}
    if not isinstance(row.get(options.context), str):
        raise ValueError(
            f"{where}: field {options.context!r} (asked for by options.context) is {row.get(options.context)!r}; it must be text"
        )
    return {"context": row[options.context]}


def _check(env: str, reference: Mapping[str, Json], *, where: str) -> None:
    try:
        read_tests(env, reference)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error} (environment {env!r})") from None
