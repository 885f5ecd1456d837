"""What the start of a run of tests is spared: modules that an image keeps, pytest's look for its own fixtures, the module `json`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from environments.swe.inside.json_text import to_json

INSIDE = Path(__file__).parent.parent / "environments" / "swe" / "inside"
HEAD = f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r}); place = {{place!r}}\n"
# Wherever this environment lies: in an image Python is never below the folders that are kept out.
WRITE = "from environments.swe.inside import runner_modules\nrunner_modules._KEPT_OUT = ('/testbed/',)\nrunner_modules.write(place)\n"
SHOW = """
def about(name):
    module = sys.modules[name]
    return [name, module.__file__, module.__cached__, list(getattr(module, "__path__", [])), type(module.__loader__).__name__,
            vars(module.__loader__), sorted(map(str, vars(module)))]
import json, re
names = [name for name in sorted(sys.modules) if name.startswith(("pytest", "_pytest", "pluggy", "unittest", "tempfile"))]
import _pytest.mark.expression
compiler = getattr(re, "_compiler", None) or sys.modules["sre_compile"]
found = [[about(name) for name in names], [str(one).split(" at ")[0] for one in sys.meta_path], compiler.compile.__module__]
print(json.dumps([*found, compiler._sre.__name__, re.match("(?P<a>[a-z]+)-(?i:B)", "xy-b")["a"]]))
"""
USE = "from environments.swe.inside.runner_modules import import_runner, use\nloaded = use(place)\nimport_runner()\n"
PLAIN = "from environments.swe.inside.runner_modules import import_runner\nimport_runner()\n"


def run(program: str, place: Path) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", HEAD.format(place=str(place)) + program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kept") / "folder" / "modules"
    run(WRITE, place)
    return place


def test_modules_that_were_kept_are_as_if_imported(kept: Path) -> None:
    assert json.loads(run(USE + "loaded.end()\n" + SHOW, kept)) == json.loads(run(PLAIN + SHOW, kept))


def test_kept_modules_are_used_and_others_are_imported_as_ever(kept: Path) -> None:
    program = "import pluggy\nprint('get_code' in vars(pluggy.__loader__), 'get_code' in vars(calculator.__loader__), calculator.VALUE)"
    (kept.parent / "calculator.py").write_text("VALUE = 42\n")
    shown = run(USE + f"sys.path.insert(0, {str(kept.parent)!r})\nimport calculator\n" + program, kept)
    assert shown.split() == ["True", "False", "42"]


def keep(source: Path, place: Path, *, kept_out: tuple[str, ...]) -> str:
    """Keep a module, too; a program that tells whether it is used, and its value."""
    path = f"sys.path.insert(0, {str(source.parent)!r})\n"
    start = f"{path}from environments.swe.inside import runner_modules\nrunner_modules._KEPT_OUT = {kept_out!r}\n"
    run(f"{start}import {source.stem}\nrunner_modules.write(place)\n", place)
    return f"{start}runner_modules.use(place)\nimport {source.stem} as one\nprint('get_code' in vars(one.__loader__), one.VALUE)"


def test_a_module_that_changed_since_is_imported_from_its_source(tmp_path: Path) -> None:
    """What an image's last layers install counts, not what was kept before."""
    source = tmp_path / "lamp.py"
    source.write_text("VALUE = 1\n")
    show = keep(source, tmp_path / "modules", kept_out=())
    assert run(show, tmp_path / "modules").split() == ["True", "1"]
    source.write_text("VALUE = 20\n")
    assert run(show, tmp_path / "modules").split() == ["False", "20"]
    source.unlink()
    with pytest.raises(AssertionError, match="No module named 'lamp'"):
        run(show, tmp_path / "modules")


def test_nothing_is_kept_of_the_work_folder(tmp_path: Path) -> None:
    source = tmp_path / "lamp.py"
    source.write_text("VALUE = 1\n")
    show = keep(source, tmp_path / "modules", kept_out=(f"{tmp_path}/",))
    assert run(show, tmp_path / "modules").split() == ["False", "1"]
    assert b"lamp" not in (tmp_path / "modules").read_bytes()


def test_an_image_that_keeps_nothing_is_no_error(tmp_path: Path) -> None:
    assert run("from environments.swe.inside.runner_modules import use\nprint(use(place))", tmp_path / "none").strip() == "None"


def test_what_another_python_kept_is_not_used(kept: Path) -> None:
    shown = run("sys.version = 'another'\n" + USE + "import pluggy\nprint('get_code' in vars(pluggy.__loader__))\nloaded.end()", kept)
    assert shown.strip() == "False"


def test_pytest_finds_the_same_fixtures(tmp_path: Path) -> None:
    """All of them, its own, those of a plugin and those of a conftest."""
    (tmp_path / "conftest.py").write_text("import pytest\n@pytest.fixture(autouse=True)\ndef lamp():\n    'A lamp.'\n    return 1\n")
    (tmp_path / "helper.py").write_text("import pytest\n@pytest.fixture\ndef helped():\n    'Help.'\n")
    ask = f"import os; os.chdir({str(tmp_path)!r}); sys.path.insert(0, '.')\n"
    ask += "import pytest; pytest.main(['-q', '-v', '--fixtures', '-p', 'helper'])"
    quick = "import pytest\nfrom environments.swe.inside.suite_worker_quick import scan_fixtures_once; scan_fixtures_once()\n"
    plain, quicker = (re.sub(r"ran in [0-9.]+s", "ran", run(program, tmp_path)) for program in (ask, quick + ask))
    assert quicker == plain
    assert all(name in plain for name in ("tmp_path", "capsys", "lamp", "helped", "doctest_namespace"))


@pytest.mark.parametrize(
    "value", [None, True, False, 0, -3, 1.5, 1e300, "", 'a"\\\n\x00\x7f', "é\ud800😀", [], [1, [None, "x"]], {}, {"a": {"b": [1]}, 'c"': 0}]
)
def test_json_is_written_as_by_the_module(value: object) -> None:
    assert json.loads(to_json(value)) == value
    assert to_json(value) == json.dumps(value, separators=(",", ":"))
