"""The recorder of the functions that tests enter."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from environments.swe.inside.coverage import FunctionRecorder

CODE = """
import asyncio, threading

def wrapped(function):
    return function

def at_import():
    pass

at_import()

@wrapped
@wrapped
def even(n):
    return True if n == 0 else odd(n - 1)

def odd(n):
    return False if n == 0 else even(n - 1)

class Kind:
    @property
    def value(self):
        def inner():
            return [one for one in (1, 2)]
        return inner()

    async def later(self):
        return 2

def steps():
    yield 1

def in_thread():
    pass

def use_thread():
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()

def fails():
    raise ValueError

def loads():
    import recorded_pkg.late
"""


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FunctionRecorder, ModuleType]]:
    package = tmp_path / "recorded_pkg"
    package.mkdir()
    (package / "a.py").write_text(CODE)
    (package / "late.py").write_text("from recorded_pkg.a import at_import\n\ndef only_here(): at_import()\n\nonly_here()\n")
    (package / "test_a.py").write_text("from recorded_pkg.a import odd\n\ndef helper(): return odd(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    recorder = FunctionRecorder(str(tmp_path))
    recorder.start()
    module = importlib.import_module("recorded_pkg.a")
    assert recorder.stop() == [], "what runs at import does not count"
    yield recorder, module
    for name in [name for name in sys.modules if name.startswith("recorded_pkg")]:
        del sys.modules[name]


def test_calls_are_named_by_path_name_and_line_of_the_def(recorded: tuple[FunctionRecorder, ModuleType]) -> None:
    recorder, module = recorded
    recorder.start()
    module.even(3)
    assert recorder.stop() == ["recorded_pkg/a.py:even:14", "recorded_pkg/a.py:odd:17"]
    recorder.start()
    module.Kind().value  # noqa: B018
    list(module.steps())
    module.asyncio.run(module.Kind().later())
    module.use_thread()
    with pytest.raises(ValueError):
        module.fails()
    found = {name.removeprefix("recorded_pkg/a.py:").rpartition(":")[0] for name in recorder.stop()}
    assert found == {"Kind.value", "Kind.value.<locals>.inner", "steps", "Kind.later", "use_thread", "in_thread", "fails"}
    recorder.start()
    assert recorder.stop() == []


def test_what_a_late_import_runs_does_not_count(recorded: tuple[FunctionRecorder, ModuleType]) -> None:
    recorder, module = recorded
    recorder.start()
    module.loads()
    assert [name.split(":")[1] for name in recorder.stop()] == ["loads"]


def test_functions_of_tests_do_not_count(recorded: tuple[FunctionRecorder, ModuleType]) -> None:
    recorder, _ = recorded
    helper = importlib.import_module("recorded_pkg.test_a").helper
    recorder.start()
    helper()
    assert [name.split(":")[1] for name in recorder.stop()] == ["even", "odd"]
