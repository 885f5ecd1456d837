"""Nodes with other code: found out before anything of the run is unpacked."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl.code_version import Sealed, check_code, code_version
from tests.ring import ROOT


def test_the_same_code_opens_what_was_sealed() -> None:
    assert pickle.loads(pickle.dumps(Sealed({"a": 1}, who="generator-0"))) == {"a": 1}


def test_other_code_is_named_with_node_and_versions(tmp_path: Path) -> None:
    for package in ("rl", "rewards", "environments", "configs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "rl" / "loss.py").open("a") as stream:
        stream.write("# another version\n")
    (tmp_path / "sealed").write_bytes(pickle.dumps(Sealed({"a": 1}, who="generator-3")))
    code = "import pickle, pathlib; pickle.loads(pathlib.Path('sealed').read_bytes())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError: generator-3: node " in done.stderr and f"not {code_version()['codeworld-rl']}" in done.stderr


def test_libraries_count_too() -> None:
    with pytest.raises(ValueError, match=r"generator-0: node .* torch .* and not 1\.0; install the same version"):
        check_code({**code_version(), "torch": "1.0"}, who="generator-0")
