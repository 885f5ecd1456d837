"""All mutations of a function: one small edit of the source each, as CWM's ForagerAgent makes them (arXiv 2510.02387).

Only the text of the edited span changes, so comments and formatting of everything else stay as they are.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from environments.lookup import unknown
from environments.swe.factory import expression_kinds, statement_kinds
from environments.swe.factory.source import Edit, Function, Source, parse

Mutate = Callable[[Source, Function], Iterator[Edit]]
KINDS: Mapping[str, Mutate] = {
    "arithmetic": expression_kinds.arithmetic,
    "comparison": expression_kinds.comparison,
    "boolean": expression_kinds.boolean,
    "augmented": expression_kinds.augmented,
    "constant": expression_kinds.constant,
    "condition": expression_kinds.condition,
    "argument_dropped": expression_kinds.argument_dropped,
    "argument_order": expression_kinds.argument_order,
    "variable": expression_kinds.variable,
    "statement_removed": statement_kinds.statement_removed,
    "body_removed": statement_kinds.body_removed,
    "return_removed": statement_kinds.return_removed,
    "import_removed": statement_kinds.import_removed,
}
"""By name, the maker of its edits."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A broken version of one file."""

    source: Source
    """The file before."""
    function: str
    """Qualified name of the function it is made for."""
    line: int
    """Of the function's `def`."""
    kind: str
    """A key of KINDS."""
    edit: Edit

    @cached_property
    def data(self) -> bytes:
        """The file after."""
        return self.source.apply(self.edit)

    @property
    def before(self) -> str:
        """What stood in the edited span."""
        return self.source.data[self.edit.start : self.edit.end].decode()

    @property
    def after(self) -> str:
        """What stands there now."""
        return self.edit.text.decode()


def check_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds to use, all of them for none. Raises ValueError for an unknown one."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"--kinds: {unknown('mutation', kind, KINDS)}")
    return kinds or tuple(KINDS)


def mutants(source: Source, function: Function, *, name: str, kinds: tuple[str, ...]) -> Iterator[Mutant]:
    """Every mutant of a function, in the order of the kinds and of the source; some may not parse, or mean the same as before."""
    for kind in kinds:
        for edit in KINDS[kind](source, function):
            yield Mutant(source=source, function=name, line=function.lineno, kind=kind, edit=edit)


def parses(mutant: Mutant) -> bool:
    """Whether the file is still Python."""
    try:
        compile(parse(mutant.data), mutant.source.path, "exec", dont_inherit=True)  # finds `return` outside of a function, too
    except (ValueError, SyntaxError):
        return False
    return True


def changes_meaning(mutant: Mutant) -> bool:
    """Whether the syntax tree is another one than before. The mutant must parse."""
    return ast.dump(parse(mutant.data)) != ast.dump(mutant.source.tree)


def functions(source: Source) -> Iterator[tuple[str, Function]]:
    """Every function of a file with its qualified name, as Python names it, without `<locals>`."""
    pending: list[tuple[str, ast.AST]] = [("", source.tree)]
    while pending:
        prefix, node = pending.pop(0)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    yield name, child
                pending.append((f"{name}.", child))
            else:
                pending.append((prefix, child))
