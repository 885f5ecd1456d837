"""The architecture, enforced: packages import downward only, no cycles, one owner a heavy library, light configuration."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("rl", "rewards", "environments", "configs")
"""From the top down: a package may import itself and those after it."""
OWNERS = {
    "omegaconf": r"configs/load.py configs/schema.py",
    "ray": "rl/placement.py rl/remote.py",
    "deepspeed": "rl/zero.py",
    "trl": "rl/warm_start.py rewards/trl_worker.py",
    "duckdb": "rl/log/query.py",
    "matplotlib": "rl/log/plot.py rl/planner/plot.py",
    "starlette": "rl/view/app.py",
    "uvicorn": "rl/view/command.py",
    "wandb": "rl/trackers.py",
    "tensorboard": "rl/trackers.py",
    "perfetto": "rl/export/perfetto.py",
    "docker": "environments/containers/engine.py",
    "vllm": "rl/engines/vllm_engine.py rl/engines/vllm_weights.py",
}
"""Library: the files that may import it, separated by spaces."""
LARGEST_FILE = 450


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name, as an absolute dotted path."""

    target: str
    """`package.module`, or `package.module.name` of a from-import: the name may be a module or an attribute."""
    line: int
    at_start: bool
    """Executed when the module is imported: not inside a function, not under TYPE_CHECKING."""


@cache
def sources() -> dict[str, Path]:
    """Module name: file, of the project's packages."""
    found = {}
    for package in LAYERS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(tree: ast.AST, *, module: str, is_package: bool) -> Iterator[Import]:
    """All imports of a module, wherever they stand."""
    late: set[ast.AST] = set()
    for node in ast.walk(tree):
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if guarded or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            late.update(child for child in ast.walk(node) if child is not node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(target=alias.name, line=node.lineno, at_start=node not in late)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            for alias in node.names:
                yield Import(target=f"{base}.{alias.name}", line=node.lineno, at_start=node not in late)


@cache
def all_imports() -> dict[str, list[Import]]:
    return {
        name: list(imports_of(ast.parse(path.read_text(), str(path)), module=name, is_package=path.name == "__init__.py"))
        for name, path in sources().items()
    }


def top(name: str) -> str:
    return name.partition(".")[0]


def module_in(target: str, modules: dict[str, Path]) -> str | None:
    """The project module that `target` names or takes an attribute from."""
    if target in modules:
        return target
    parent = target.rpartition(".")[0]
    return parent if parent in modules else None


def upward(module: str, imports: list[Import]) -> list[str]:
    """Imports of `module` that go up the layers."""
    rank = LAYERS.index(top(module))
    return [f"{module}:{one.line} imports {one.target}" for one in imports if top(one.target) in LAYERS[:rank]]


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """One cycle of a directed graph as a path whose last node is its first."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for below in sorted(graph.get(node, ())):
            if cycle := visit(below, [*path, node]):
                return cycle
        done.add(node)
        return None

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), None)


def test_packages_import_downward_only() -> None:
    assert [line for module, imports in all_imports().items() for line in upward(module, imports)] == []


def test_no_module_imports_the_tests() -> None:
    assert [module for module, imports in all_imports().items() if any(top(one.target) == "tests" for one in imports)] == []


def test_imports_have_no_cycle() -> None:
    modules = sources()
    graph = {
        module: {below for one in imports if one.at_start and (below := module_in(one.target, modules)) and below != module}
        for module, imports in all_imports().items()
    }
    assert sum(map(len, graph.values())) > 10
    assert find_cycle(graph) is None


@pytest.mark.parametrize("library", OWNERS)
def test_heavy_library_has_one_owner(library: str) -> None:
    modules = sources()
    users = {
        str(modules[module].relative_to(ROOT))
        for module, imports in all_imports().items()
        if any(top(one.target) == library or one.target.startswith(f"torch.utils.{library}") for one in imports)
    }
    assert users <= set(OWNERS[library].split())


@pytest.mark.parametrize(("package", "library"), [("rewards", "math_verify"), ("rewards", "latex2sympy2_extended")])
def test_one_file_of_a_package_owns(package: str, library: str) -> None:
    users = {module for module, imports in all_imports().items() if any(top(one.target) == library for one in imports)}
    assert len(users) <= 1
    assert all(top(user) == package for user in users)


def test_one_file_starts_bubblewrap() -> None:
    users = [
        module
        for module, path in sources().items()
        if any(isinstance(node, ast.Constant) and node.value == "bwrap" for node in ast.walk(ast.parse(path.read_text())))
    ]
    assert users == ["environments.sandbox.bubblewrap"]


def test_configuration_and_help_are_light() -> None:
    """In a fresh process: neither loading a configuration nor the command line's help imports a heavy library."""
    code = (
        "import sys, configs.load, configs.schema, rl.cli, rl.plan\n"
        "rl.cli._parser().format_help()\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers', 'trl', 'pyarrow', 'duckdb', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_process_of_a_run_and_its_rollout_workers_hold_no_model() -> None:
    """They start seconds sooner without torch, and are some hundreds of megabytes smaller."""
    code = (
        "import sys, rl.evaluate_model, rl.rollout, rl.train\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'trl'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_stay_small() -> None:
    assert {name: n for name, path in sources().items() if (n := len(path.read_text().splitlines())) > LARGEST_FILE} == {}


def test_the_rules_catch_offenders() -> None:
    """The checks above, on code that breaks them."""
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "from . import sibling\n"
        "from ..up import name\n"
        "if TYPE_CHECKING:\n    import rl.late\n"
        "def f():\n    import rl.lazy\n"
        "class C:\n    import rl.eager\n"
    )
    found = list(imports_of(tree, module="rewards.math.grade", is_package=False))
    assert {one.target for one in found if one.at_start} == {
        "typing.TYPE_CHECKING",
        "rewards.math.sibling",
        "rewards.up.name",
        "rl.eager",
    }
    assert upward("rewards.math.grade", found) == [
        f"rewards.math.grade:{line} imports rl.{name}" for line, name in [(5, "late"), (7, "lazy"), (9, "eager")]
    ]
    assert upward("rl.loop", found) == []
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
