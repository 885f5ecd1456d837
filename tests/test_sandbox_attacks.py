"""Hostile programs against every kind of sandbox: each is stopped or gains nothing, the next execution works, the host shows no trace."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from environments.sandbox.host import others_reach
from tests.attack_runner import KINDS, run_attacks
from tests.attacks import SECRET
from tests.sandbox_host import Host

pytestmark = pytest.mark.alone
ROOT = Path(__file__).parent.parent
NOBODY = "54321"


@pytest.mark.parametrize("kind", KINDS)
def test_attacks(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", SECRET)
    with Host.make(tmp_path, secret=SECRET) as host:
        assert asyncio.run(run_attacks(kind, host)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the tests run as an ordinary user already")
@pytest.mark.parametrize("kind", KINDS)
def test_attacks_on_an_ordinary_users_sandbox(kind: str) -> None:
    done = as_ordinary_user("-m", "tests.attack_runner", kind)
    assert json.loads(done.stdout) == [], done.stderr


def as_ordinary_user(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python as a user without privileges; skips the test where no interpreter is readable for everyone."""
    candidates = [Path(path).resolve() for path in (sys.executable, shutil.which("python3.11", path="/usr/bin") or "/nonexistent")]
    python = next((path for path in candidates if path.is_file() and others_reach(path)), None)
    if python is None or not others_reach(ROOT / "tests"):
        pytest.skip("other users cannot read this interpreter or this checkout, and there is no /usr/bin/python3.11")
    drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
    environment = {"PATH": os.defpath, "SECRET_TOKEN": SECRET, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([*drop, str(python), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
