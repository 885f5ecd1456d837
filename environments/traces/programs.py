"""What trace tasks are about: programs with an entry and arguments, read from JSON lines or from the reference solutions of code data sets.

| form | a row |
|---|---|
| programs | `source`; optional `id`, `entry` (none: a script), `args`, `value`, `difficulty`, `origin`, `license` |
| humaneval | `prompt`, `reference`, `tests` with `candidate(...)`, `entry_point` |
| mbpp | `reference`, `tests` |
| cruxeval | `code` with a function `f`, `input`, `output` |

A reference solution is called with the arguments of the first test that has plain ones; where no test has, a function `main` is added that
runs all tests. In the rows of data sets the field `source` says where they come from.
"""

import ast
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from environments.lookup import unknown
from environments.records import Json
from environments.sources.jsonl import read_rows
from environments.traces.tracer import Program, check_arguments

MAIN = "main"
"""The function that is added where an entry cannot be called with positional literals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceProgram:
    """One program to trace, and where it comes from."""

    id: str
    """Unique within its file or generator."""
    source: str
    """Whole text."""
    entry: str | None = None
    """Function to call; None for a script."""
    args: str = "[]"
    """Python literal of the positional arguments."""
    value: str | None = None
    """The literal that the entry returns, where the data says so; it is not needed."""
    difficulty: str = ""
    """One of `difficulty.LEVELS`; empty where it was not measured."""
    origin: str = ""
    """Where it comes from, as `repository@commit:path`, or the generator and its seed."""
    license: str = ""
    """SPDX name of the licence of the text; empty where none is known."""

    @property
    def program(self) -> Program:
        """What the tracer takes."""
        return Program(source=self.source, entry=self.entry, args=self.args)

    @property
    def call(self) -> str:
        """The call of the entry as a Python expression; empty for a script."""
        return "" if self.entry is None else f"{self.entry}({', '.join(map(ast.unparse, _arguments(self.args)))})"


def read_programs(path: Path, *, form: str = "programs", field: str = "path") -> Iterator[TraceProgram]:
    """The programs of a JSONL file, in its order. `field` is where the path was given, for errors.

    Raises ValueError that names file, line and field for a row that is none, and for an id that was there before.
    """
    if form not in FORMS:
        raise ValueError(f"{field}: {unknown('form of rows', form, FORMS)}")
    lines: dict[str, int] = {}
    for line, row in read_rows(path, field=field):
        where = f"{path}:{line}"
        found = FORMS[form](_Row(row, where=where), f"{len(lines):06d}")
        first = lines.setdefault(found.id, line)
        if first != line:
            raise ValueError(f"{where}: field 'id': id {found.id!r} is already used on line {first}; ids must be unique")
        yield found


@dataclass(frozen=True, slots=True)
class _Row:
    """Fields of a row, checked as they are taken."""

    fields: Mapping[str, Json]
    where: str

    def text(self, name: str, default: str | None = None) -> str:
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise ValueError(f"{self.where}: field {name!r} is {repr(value)[:60]}; it must be text")
        return value

    def id(self, default: str) -> str:
        value = self.fields.get("id", default)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ValueError(f"{self.where}: field 'id' is {value!r}; an id is a non-empty string or an integer")
        return str(value)

    def parse(self, name: str, text: str, *, mode: str = "exec") -> ast.AST:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes are the program's own business
                return ast.parse(text, mode=mode)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{self.where}: field {name!r} is no Python: {error}") from None


def _own(row: _Row, default_id: str) -> TraceProgram:
    entry = row.fields.get("entry")
    if entry is not None and not (isinstance(entry, str) and entry.isidentifier()):
        raise ValueError(
            f"{row.where}: field 'entry' is {str(entry)[:60]!r}; it must be the name of a function, or be left out for a script"
        )
    found = TraceProgram(
        id=row.id(default_id),
        source=row.text("source"),
        entry=entry,
        args=row.text("args", "[]"),
        value=row.text("value") if row.fields.get("value") is not None else None,
        difficulty=row.text("difficulty", ""),
        origin=row.text("origin", ""),
        license=row.text("license", ""),
    )
    try:
        check_arguments(found.program)
    except ValueError as error:
        raise ValueError(f"{row.where}: field 'args': {error}") from None
    return found


def _humaneval(row: _Row, default_id: str) -> TraceProgram:
    entry = row.text("entry_point")
    code, tests = row.text("prompt") + row.text("reference"), row.text("tests")
    row.parse("reference", code)
    call = _first_call(row.parse("tests", tests), names=("candidate", entry))
    return _called(row, default_id, code=code, entry=entry, call=call, otherwise=f"{tests}\ncheck({entry})")


def _mbpp(row: _Row, default_id: str) -> TraceProgram:
    code, tests = row.text("reference"), row.text("tests")
    tree = row.parse("reference", code)
    assert isinstance(tree, ast.Module)
    defined = tuple(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    call = _first_call(row.parse("tests", tests), names=defined)
    entry = call.func.id if call is not None and isinstance(call.func, ast.Name) else ""
    return _called(row, default_id, code=code, entry=entry, call=call, otherwise=tests)


def _cruxeval(row: _Row, default_id: str) -> TraceProgram:
    code, given = row.text("code"), f"f({row.text('input')})"
    row.parse("code", code)
    tree = row.parse("input", given, mode="eval")
    call = tree.body if isinstance(tree, ast.Expression) and isinstance(tree.body, ast.Call) else None
    plain = call if call is not None and isinstance(call.func, ast.Name) and _is_plain(call) else None
    return _called(row, default_id, code=code, entry="f", call=plain, otherwise=f"return {given}", value=row.text("output"))


FORMS: Mapping[str, Callable[[_Row, str], TraceProgram]] = {
    "programs": _own,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "cruxeval": _cruxeval,
}
"""Forms of rows, and how one is read."""


def _called(
    row: _Row, default_id: str, *, code: str, entry: str, call: ast.Call | None, otherwise: str, value: str | None = None
) -> TraceProgram:
    """The program that makes `call`; `otherwise` is the body of `main` where that cannot be said with positional literals."""
    positional = call is not None and not call.keywords
    if call is None or call.keywords:
        body = f"return {ast.unparse(ast.Call(func=ast.Name(id=entry), args=call.args, keywords=call.keywords))}" if call else otherwise
        code, entry = f"{code}\n\n\ndef {MAIN}():\n{textwrap.indent(body, '    ')}\n", MAIN
    return TraceProgram(
        id=row.id(default_id),
        source=code,
        entry=entry,
        args=f"[{', '.join(map(ast.unparse, call.args))}]" if positional and call is not None else "[]",
        value=value,
        origin=row.text("source", ""),
        license=row.text("license", ""),
    )


def _first_call(tests: ast.AST, *, names: tuple[str, ...]) -> ast.Call | None:
    """The first call of a function of these names whose arguments are literals; None when there is none."""
    calls = (node for node in ast.walk(tests) if isinstance(node, ast.Call))
    return next((call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names and _is_plain(call)), None)


def _is_plain(call: ast.Call) -> bool:
    try:
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            ast.literal_eval(argument)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return False
    return all(keyword.arg is not None for keyword in call.keywords)


def _arguments(args: str) -> list[ast.expr]:
    body = ast.parse(args.strip(), mode="eval").body
    assert isinstance(body, ast.List | ast.Tuple), "check_arguments has seen it"
    return body.elts
