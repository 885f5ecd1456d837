"""The project's own engine: started, killed, started again, stopped, and nothing left of it."""

import json
import os
import signal
from pathlib import Path

import pytest

import rl.swe.engine
from environments.containers.base import EngineUnavailable
from environments.containers.engine import Engine
from environments.containers.local_engine import LocalEngine
from rl.cli import main
from tests.containers_host import own_engine


def traces(own: LocalEngine) -> list[str]:
    """Mounts, control groups and processes of an engine."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(own.folder) in line or "codeworld-rl" in line]
    groups = [str(path) for path in own._groups()]
    return mounts + groups + [f"{pid} {name}" for pid, name in own._processes().items()]


def test_an_engine_comes_and_goes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        with own_engine(folder=Path("/run/codeworld-rl-own")) as own:
            assert own.folder.stat().st_mode & 0o777 == 0o700
            assert own.start() is False
            monkeypatch.setattr(rl.swe.engine, "LocalEngine", lambda: own)
            monkeypatch.setenv("DOCKER_HOST", own.address)
            assert main(["swe", "engine", "start", "--json"]) == 0
            assert json.loads(capsys.readouterr().out) == {"state": "running", "address": own.address}
            assert main(["swe", "engine", "status", "--json"]) == 0
            facts = json.loads(capsys.readouterr().out)
            assert (facts["address"], facts["seccomp"], "runc" in facts["runtimes"]) == (own.address, True, True)

            for pid, name in own._processes().items():
                if name == "dockerd":
                    os.kill(pid, signal.SIGKILL)
            assert own.start() is True  # what the killed one left is cleared away
            assert Engine(host=own.address).version()["Version"] == facts["version"]

            assert main(["swe", "engine", "stop"]) == 0
            assert traces(own) == []
            assert main(["swe", "engine", "stop", "--json"]) == 0
            assert main(["swe", "engine", "status"]) == 1
            assert "rl swe engine start" in capsys.readouterr().out
    except EngineUnavailable as error:
        pytest.skip(str(error))


def test_why_an_engine_cannot_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = LocalEngine(folder=tmp_path / "engine")
    assert own.log_tail() == ""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for act in (own.start, own.stop):
        with pytest.raises(EngineUnavailable, match="only root can"):
            act()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable, match=r"dockerd and containerd and unshare not found.*apt-get install docker\.io"):
        own.start()
    assert not own.folder.exists()
