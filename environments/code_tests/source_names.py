"""Which names of a test source belong to the response, and which to the data. Nothing is run; the sources are the data's own."""

import ast
import builtins
import symtable
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_BUILTINS = frozenset(dir(builtins))


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceNames:
    """The names of one module."""

    used: frozenset[str]
    """Read as globals, or imported."""
    binds: frozenset[str]
    """Bound at the top level, imports included."""
    defines: frozenset[str]
    """Functions and classes of the top level."""
    imports: frozenset[str]
    """First words of all modules that are imported anywhere."""
    n_asserts: int
    n_test_methods: int
    """Methods `test*` of classes that derive from a TestCase."""
    calls_check: bool
    """Whether a statement of the top level calls `check`."""

    @property
    def free(self) -> frozenset[str]:
        """Used and not bound here."""
        return self.used - self.binds


@lru_cache(maxsize=1024)
def names_of(source: str, *, what: str) -> SourceNames:
    """Raises ValueError, beginning with `what`, when `source` is no Python."""
    tree = parse(source, what=what)
    table = symtable.symtable(source, "tests", "exec")
    binds = frozenset(symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported())
    used = {
        symbol.get_name()
        for scope in _scopes(table)
        for symbol in scope.get_symbols()
        if symbol.is_imported() or (symbol.is_referenced() and (scope is table or symbol.is_global()))
    }
    return SourceNames(
        used=frozenset(used),
        binds=binds,
        defines=frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)),
        imports=frozenset(_imports(tree)),
        n_asserts=sum(isinstance(node, ast.Assert) for node in ast.walk(tree)),
        n_test_methods=sum(_test_methods(node) for node in tree.body if isinstance(node, ast.ClassDef)),
        calls_check=any(_is_check_call(node) for statement in tree.body if isinstance(statement, ast.Expr) for node in ast.walk(statement)),
    )


def parse(source: str, *, what: str) -> ast.Module:
    """The tree of `source`. Raises ValueError, beginning with `what`, when it is no Python."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} is no Python source: {error}") from None


def support_source(*sources: str, leave_out: frozenset[str], imports_only: bool) -> str:
    """Imports and, unless `imports_only`, definitions and assignments of the top level of `sources`.

    Leaves out what binds a name of `leave_out`, and a source that is no Python by itself, such as the body of a function.
    """
    kept = []
    for source in sources:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in tree.body:
            definition = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in leave_out
            assignment = isinstance(node, ast.Assign | ast.AnnAssign) and not leave_out & {
                name.id for name in ast.walk(node) if isinstance(name, ast.Name)
            }
            if isinstance(node, ast.Import | ast.ImportFrom) or (not imports_only and (definition or assignment)):
                kept.append(ast.unparse(node))
    return "\n".join(kept)


def candidate_names(tests: SourceNames, *, entry_point: str, support: str, reference: str) -> tuple[str, ...]:
    """Names that the tests take from the response.

    `entry_point` alone when there is one; else what the reference solution defines and the tests use; else every name that
    nothing of the data binds.
    """
    if entry_point:
        return (entry_point,)
    try:
        of_reference = names_of(reference, what="reference").defines & tests.free
    except ValueError:
        of_reference = frozenset()
    if of_reference:
        return tuple(sorted(of_reference))
    helpers = names_of(support, what="support").binds
    return tuple(sorted(tests.free - _BUILTINS - helpers - sys.stdlib_module_names - {"__name__", "__file__"}))


def _scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _scopes(child)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _test_methods(node: ast.ClassDef) -> int:
    if not any("TestCase" in ast.unparse(base) for base in node.bases):
        return 0
    return sum(isinstance(item, ast.FunctionDef) and item.name.startswith("test") for item in node.body)


def _is_check_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
