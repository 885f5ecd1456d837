"""`rl doctor`: what is reported, and when it fails."""

import json
from pathlib import Path

import pytest

import environments.sandbox.make
import rl.doctor
from configs.schema import SandboxConfig
from rl.doctor import (
    Item,
    check_build_tools,
    check_machine,
    check_packages,
    check_python,
    check_room,
    check_sandbox,
    check_torch,
    check_tracer,
    doctor_command,
)


def test_packages_by_installed_version() -> None:
    found = {item.name: item for item in check_packages(["numpy>=1", "torch>=99", "no-such-package-at-all>=2,<3"])}
    assert {name: item.state for name, item in found.items()} == {"numpy": "on", "torch": "off", "no-such-package-at-all": "unavailable"}
    assert found["torch"].fix == 'pip install "torch>=99"'
    assert found["torch"].found.endswith("but >=99 is wanted")
    assert found["no-such-package-at-all"].fix == 'pip install "no-such-package-at-all<3,>=2"'
    assert all(item.required for item in found.values())


def test_local_version_of_torch_satisfies_the_pin() -> None:
    assert [item.state for item in check_packages(["torch==2.13.0"])] == ["on"]


def test_project_that_is_not_installed() -> None:
    (item,) = check_packages([])
    assert (item.name, item.state, item.fix) == ("codeworld-rl", "unavailable", "make setup")


def test_old_python() -> None:
    assert check_python().state == "on"
    assert check_python((3, 10)).state == "off"
    assert "3.11" in check_python((3, 10)).fix


def test_missing_build_tools_say_what_to_install() -> None:
    missing = {item.name: item for item in check_build_tools(which=lambda name: None)}
    assert missing["g++"].state == "unavailable"
    assert missing["g++"].fix == "apt-get install g++"
    there = list(check_build_tools(which=lambda name: f"/opt/{name}"))
    assert [(item.state, item.found) for item in there] == [("on", "/opt/g++"), ("on", "/opt/ninja")]


def test_tracer_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_tracer().state == "on"
    monkeypatch.setenv("CXX", "no-such-compiler")
    item = check_tracer()
    assert (item.state, item.required) == ("unavailable", False) and "set CXX" in item.fix


def test_sandbox_is_tried() -> None:
    sandbox, *guards = check_sandbox()
    assert (sandbox.name, sandbox.state, sandbox.required) == ("sandbox", "on", True)
    assert {"sandbox: kind", "sandbox: namespaces", "sandbox: own uid", "sandbox: system-call filter"} <= {guard.name for guard in guards}


def test_sandbox_that_cannot_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments.sandbox.make, "_config", SandboxConfig(kind="bubblewrap"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (sandbox,) = check_sandbox()
    assert sandbox.state == "unavailable"
    assert "apt-get install bubblewrap" in sandbox.fix


def test_torch_reports_threads() -> None:
    item = check_torch()
    assert item.state == "on"
    assert "threads" in item.found


def test_room_is_measured_on_the_given_disk(tmp_path: Path) -> None:
    names = [item.name for item in check_room(tmp_path)]
    assert names == ["disk", "memory", "/dev/shm"]


@pytest.mark.parametrize(("state", "required", "status"), [("on", True, 0), ("off", False, 0), ("off", True, 1), ("unavailable", True, 1)])
def test_exit_status(state: str, required: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    item = Item(name="thing", state=state, required=required, found="[odd]", fix="" if state == "on" else "fix [it]")  # type: ignore[arg-type]  # parametrized
    monkeypatch.setattr(rl.doctor, "check_machine", lambda: [item])
    assert doctor_command(as_json=True) == status
    printed = json.loads(capsys.readouterr().out)
    assert printed == {
        "ok": status == 0,
        "items": [{"name": "thing", "state": state, "required": required, "found": "[odd]", "fix": item.fix}],
    }
    assert doctor_command(as_json=False) == status
    text = capsys.readouterr().out
    assert "[odd]" in text
    assert ("missing: thing" in text) == (status == 1)


def test_whole_machine() -> None:
    items = check_machine()
    assert {"python", "torch import", "g++", "ninja program", "sandbox", "docker", "vllm", "disk", "memory", "/dev/shm"} <= {
        item.name for item in items
    }
    assert all(item.fix for item in items if item.state != "on")
    assert not any(item.fix for item in items if item.state == "on")
