"""`rl env new`: what it writes holds all rules, trains, and overwrites nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rl.cli import main
from tests.ring import ROOT, metrics, rl


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which an environment was made."""
    folder = tmp_path_factory.mktemp("authors")
    assert main(["env", "new", "my_sums", "--dir", str(folder)]) == 0
    return folder


def test_the_environments_own_test_passes(made: Path) -> None:
    assert sorted(path.name for path in (made / "my_sums").iterdir()) == ["my_sums.py", "my_sums.yaml", "tasks.jsonl", "test_my_sums.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(made / "my_sums")]
    done = subprocess.run(command, cwd=made, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_it_trains_with_the_tiny_model(made: Path) -> None:
    config = (made / "my_sums/my_sums.yaml").read_text()
    whole = made / "whole.yaml"  # its paths hold from any folder
    whole.write_text(config.replace("my_sums/", f"{made}/my_sums/"))
    output = rl("train", whole, f"run.dir={made}/runs")
    assert "step 2/2" in output
    assert len(metrics(made / "runs/my_sums").steps) == 2


def test_nothing_is_overwritten(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "my_sums/my_sums.py").read_text()
    assert main(["env", "new", "my_sums", "--dir", str(made)]) == 2
    assert "exists: nothing is overwritten" in capsys.readouterr().err
    assert (made / "my_sums/my_sums.py").read_text() == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("math", "is an environment or a reward already"),
        ("My-Env", "must be a Python name"),
        ("../up", "must be a Python name"),
        ("class", "is a keyword of Python"),
        ("", "must be a Python name"),
        ("a" * 41, "must be a Python name"),
    ],
)
def test_a_name_must_be_a_python_name_of_its_own(name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "new", name, "--dir", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_it_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["env", "new", "ones", "--json"]) == 0
    files = [Path(file).name for file in json.loads(capsys.readouterr().out)["files"]]
    assert files == ["ones.py", "tasks.jsonl", "ones.yaml", "test_ones.py"]
    assert main(["env", "new", "twos"]) == 0
    assert "rl env check twos/twos.py --config twos/twos.yaml" in capsys.readouterr().out
    assert main(["env", "new", "threes", "--dir", "nowhere"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
