"""From a problem's reference to checked tests. Whatever could not be graded later is an error here: fail closed."""

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from environments.code_tests.records import FunctionTests, InputTest, Judging, Objects, SourceTests, StdioTests, Tests
from environments.code_tests.source_names import candidate_names, names_of, support_source
from environments.records import Json

TEST_ENVS = ("code", "code_attempts", "code_stdio", "code_puzzle", "code_class", "code_input")
"""Environments whose tests this module reads."""
JUDGING_FIELDS = tuple(spec.name for spec in fields(Judging))
PUZZLE_TESTS = "assert sat(sol()) is True"
_FILE_NAMES = frozenset(("open", "os", "sqlite3", "tempfile", "pathlib", "shutil", "Path", "gettempdir"))
"""A test source that uses one of these looks at files."""
_RUNS_DATA = frozenset(
    (
        "exec",
        "compile",
        "__import__",
        "importlib",
        "runpy",
        "ctypes",
        "pickle",
        "_pickle",
        "marshal",
        "shelve",
        "dill",
        "joblib",
        "cloudpickle",
    )
)
"""What could run, as code, a text or a file that the candidate made. `eval` is harmless in the test box: see `expressions.py`."""


def read_tests(env: str, reference: Mapping[str, Json]) -> Tests:
    """The tests of a problem of environment `env`. Raises ValueError that names the field and what it must be."""
    judging = Judging(**{name: reference[name] for name in JUDGING_FIELDS if reference.get(name) is not None})
    if env == "code_stdio":
        return _stdio_tests(reference.get("tests"), judging=judging)
    if env == "code_input":
        return InputTest(
            code=_text(reference, "code"),
            output=_text(reference, "output"),
            known_input=str(reference.get("answer") or ""),
            judging=judging,
        )
    _check_runs_no_data(reference, fields=("tests", "context") if env == "code_puzzle" else ("tests",))
    entry_point = _entry_point(reference)
    context = str(reference.get("context") or "")
    if env == "code_puzzle":
        source = str(reference.get("tests") or PUZZLE_TESTS)
        return _source_tests(
            source, context="from typing import *\n" + _text(reference, "context"), entry_point=entry_point or "sol", reference="",
            objects=Objects.REFUSED, answer_type=str(reference.get("ans_type") or ""), judging=judging,
        )  # fmt: skip
    solution = str(reference.get("reference") or "")
    if env == "code_class":
        name = reference.get("class_name")
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"field 'class_name' is {name!r}; environment 'code_class' needs the name of the class to write")
        return _unittests(_text(reference, "tests"), class_name=name, context=context, reference=solution, judging=judging)
    tests = parsed_tests(reference.get("tests"))
    if isinstance(tests, str):
        return _source_tests(
            tests, context=context, entry_point=entry_point, reference=solution, objects=Objects.OPAQUE, answer_type="", judging=judging
        )
    return _function_tests(tests, entry_point=entry_point, context=context, judging=judging)


def parsed_tests(tests: Json) -> Json:
    """A text that is JSON, parsed: columns of a data set have a single type. Other text is Python source."""
    if isinstance(tests, str):
        try:
            parsed = json.loads(tests)
        except ValueError:
            return tests
        return parsed if isinstance(parsed, list) else tests
    return tests


def _function_tests(tests: Json, *, entry_point: str, context: str, judging: Judging) -> FunctionTests:
    form = 'a list of {"args": [...], "expected": ...}, or Python source with asserts or a function check(candidate)'
    _check_list(tests, keys={"args": list, "expected": None}, form=form)
    if not entry_point:
        raise ValueError("field 'entry_point' is missing; tests with arguments need the name of the function to write")
    try:
        return FunctionTests(
            entry_point=entry_point,
            context=context,
            inputs=tuple(json.dumps(test["args"], allow_nan=False) for test in tests),
            expected=tuple(json.loads(json.dumps(test["expected"], allow_nan=False)) for test in tests),
            judging=judging,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"field 'tests' holds a value that is not JSON: {error}") from None


def _stdio_tests(tests: Json, *, judging: Judging) -> StdioTests:
    tests = parsed_tests(tests)
    _check_list(tests, keys={"stdin": str, "stdout": str}, form='a list of {"stdin": text, "stdout": text}')
    if not any(test["stdout"].strip() for test in tests):
        raise ValueError("field 'tests' expects no output from any run; a program that does nothing would pass")
    return StdioTests(stdin=tuple(test["stdin"] for test in tests), stdout=tuple(test["stdout"] for test in tests), judging=judging)


def _check_list(tests: Json, *, keys: Mapping[str, Any], form: str) -> None:
    if not isinstance(tests, list) or not tests:
        found = "missing" if tests is None else "empty" if tests == [] else f"of type {type(tests).__name__}"
        raise ValueError(f"field 'tests' is {found}; it must be {form}")
    for number, test in enumerate(tests):
        for key, kind in keys.items():
            if not isinstance(test, dict) or key not in test or (kind is not None and not isinstance(test[key], kind)):
                raise ValueError(f"field 'tests', entry {number} is {str(test)[:80]}; it must be {form}")


@lru_cache(maxsize=1024)
def _source_tests(
    source: str, *, context: str, entry_point: str, reference: str, objects: Objects, answer_type: str, judging: Judging
) -> SourceTests:
    names = names_of(source, what="field 'tests'")
    if not names.n_asserts:
        raise ValueError("field 'tests' has no assert statement; a response could not fail it")
    check = ""
    if "check" in names.defines and not names.calls_check:
        if not entry_point:
            raise ValueError("field 'entry_point' is missing; the tests define check(candidate) and do not say what to call it with")
        check = entry_point
    imports = support_source(context, reference, leave_out=frozenset(), imports_only=True)
    wanted = candidate_names(names, entry_point=entry_point, support=imports, reference=reference)
    if not wanted:
        raise ValueError("field 'tests' uses no name that a response could define; set the field 'entry_point'")
    if not check and not set(wanted) & names.free:
        raise ValueError(f"field 'tests' never uses the entry point {wanted[0]!r}")
    return SourceTests(
        source=source, unittest=False, names=wanted, check=check,
        support=_support(names.free, context, reference, wanted=wanted, imports_only=not entry_point),
        context=context, objects=objects, answer_type=answer_type, shares_files=False, n_tests=names.n_asserts, judging=judging,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _unittests(source: str, *, class_name: str, context: str, reference: str, judging: Judging) -> SourceTests:
    names = names_of(source, what="field 'tests'")
    if not names.n_test_methods:
        raise ValueError("field 'tests' has no method test* in a class that derives from unittest.TestCase")
    if class_name not in names.free:
        raise ValueError(f"field 'tests' never uses the class {class_name!r}")
    return SourceTests(
        source=source, unittest=True, names=(class_name,), check="",
        support=_support(names.free, context, reference, wanted=(class_name,), imports_only=True),
        context="", objects=Objects.LIVE, answer_type="",
        shares_files=bool(names.used & _FILE_NAMES), n_tests=names.n_test_methods, judging=judging,
    )  # fmt: skip


def _support(free: frozenset[str], *sources: str, wanted: tuple[str, ...], imports_only: bool) -> str:
    """The data's helpers, and an import of every module of the standard library that the tests use and nothing binds."""
    text = support_source(*sources, leave_out=frozenset(wanted), imports_only=imports_only)
    modules = sorted((free & sys.stdlib_module_names) - names_of(text, what="support").binds - set(wanted))
    return "\n".join((text, *(f"import {name}" for name in modules)))


def _check_runs_no_data(reference: Mapping[str, Json], *, fields: tuple[str, ...]) -> None:
    """Raises ValueError for sources of the test box that may run what the candidate made."""
    for field in fields:
        source = reference.get(field)
        if not isinstance(source, str) or isinstance(parsed_tests(source), list):
            continue
        names = names_of(source, what=f"field {field!r}")
        used = sorted((names.used | names.imports) & _RUNS_DATA)
        if used:
            raise ValueError(
                f"field {field!r} uses {used[0]!r}; tests must not run what a response returned or wrote, "
                "or unpickle it: it could then give itself any reward"
            )


def _entry_point(reference: Mapping[str, Json]) -> str:
    name = reference.get("entry_point")
    if name is None:
        return ""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"field 'entry_point' is {name!r}; it must be the name of the function to write")
    return name


def _text(reference: Mapping[str, Json], field: str) -> str:
    value = reference.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {field!r} is {'missing' if value is None else repr(value)[:60]}; it must be text")
    return value
