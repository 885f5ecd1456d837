"""Images of repositories, made and measured with a real engine."""

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import docker
import pytest

from environments.containers.base import Containers, ContainerSpec
from environments.containers.make import make_containers
from environments.swe.images.build import Built, build_image
from environments.swe.images.record import from_label, read_image, record_label, write_image
from environments.swe.images.rootfs import ensure_python_image, python_image_reference
from environments.swe.images.source import read_source
from environments.swe.inside.runner_modules import PLACE
from environments.swe.records import RepoImage
from rl.cli import main
from tests.containers_host import engine

__all__ = ["engine"]
pytestmark = pytest.mark.timeout(300)
T = TypeVar("T")

SRC_REPOSITORY = {
    "pyproject.toml": """
[project]
name = "cw-lamps"
version = "1.0"
dependencies = ["cw-bulbs"]
[tool.pytest.ini_options]
addopts = "-n 2"
""",
    "src/cw_lamps/__init__.py": """
from cw_bulbs import WATTS

def brightness(lamps):
    return lamps * WATTS
""",
    "tests/test_lamps.py": """
import os, pathlib, pytest
import cw_lamps

def test_brightness():
    assert cw_lamps.brightness(2) == 120

def test_place():
    assert cw_lamps.__file__ == "/testbed/src/cw_lamps/__init__.py"
    assert os.getuid() == 1001

def test_fails():
    assert cw_lamps.brightness(2) == 121

def test_writes():
    pathlib.Path(cw_lamps.__file__).with_name("new.py").write_text("")

@pytest.mark.parametrize("n", range(16))
def test_flaky(n):
    assert os.urandom(1)[0] % 2
""",
}
FLAT_SDIST = {
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    "backend.py": """
import os, socket, zipfile
INFO = "Metadata-Version: 2.1\\nName: cw-flat\\nVersion: 1.0\\n"
for folder in ("/", os.path.expanduser("~")):
    assert not os.path.exists(os.path.join(folder, "host-marker"))
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
    raise SystemExit("there is a network")
except OSError:
    pass
def build_wheel(folder, settings=None, metadata=None):
    name = "cw_flat-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.write("cw_flat/__init__.py")
        wheel.writestr("cw_flat-1.0.dist-info/METADATA", INFO)
        wheel.writestr("cw_flat-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("cw_flat-1.0.dist-info/RECORD", "cw_flat/__init__.py,,\\ncw_flat-1.0.dist-info/METADATA,,\\n"
            "cw_flat-1.0.dist-info/WHEEL,,\\ncw_flat-1.0.dist-info/RECORD,,\\n")
    return name
""",
    "cw_flat/__init__.py": "def two():\n    return 2\n",
    "test_flat.py": """
import cw_flat, importlib.metadata
def test_two():
    assert (cw_flat.two(), importlib.metadata.version("cw-flat")) == (2, "1.0")
""",
}


def in_engine(work: Callable[[Containers], Awaitable[T]]) -> T:
    async def run() -> T:
        containers = make_containers()
        try:
            return await work(containers)
        finally:
            await containers.close()

    return asyncio.run(run())


def make_repository(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    options = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*options, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def make_sdist(folder: Path, name: str, texts: dict[str, str]) -> Path:
    path = folder / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for file, text in texts.items():
            info = tarfile.TarInfo(f"{name}/{file}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture(scope="module")
def base(engine: str) -> Iterator[str]:
    """Reference of the base image, which stays; what else the tests of this file make goes."""
    yield in_engine(ensure_python_image)
    client = docker.APIClient(base_url=engine, version="auto")
    made = [tag for image in client.images() for tag in image["RepoTags"] or () if re.match(r"codeworld-rl/(?:repo-)?(?:test|cw)-", tag)]
    for tag in made:
        client.remove_image(tag, force=True)
    client.close()


@pytest.fixture
def wheels(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip has this folder and no index; one wheel is in it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "cw_bulbs-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("cw_bulbs.py", "WATTS = 60\n")
        wheel.writestr("cw_bulbs-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: cw-bulbs\nVersion: 1.0\n")
        wheel.writestr("cw_bulbs-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        record = "".join(f"{name},,\n" for name in (*wheel.namelist(), "cw_bulbs-1.0.dist-info/RECORD"))
        wheel.writestr("cw_bulbs-1.0.dist-info/RECORD", record)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


def tree_of(image: str, path: str = "/testbed") -> dict[str, tarfile.TarInfo]:
    data = in_engine(lambda containers: containers.image_tree(image, path))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


def site_packages_of(image: str) -> dict[str, tarfile.TarInfo]:
    return {name: member for name, member in tree_of(image, "/usr").items() if "-packages/" in name}


def run_image(source: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["swe", "image", str(source), "--out", str(out), *more])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


# --- the base image -------------------------------------------------------------------------------------------------


def test_the_base_image_works_and_is_built_once(base: str) -> None:
    assert base == python_image_reference()
    script = (
        "id -un && python3 -m pytest --version && git --version && ls --version | head -1 && touch a && git init -q . && git add a "
        "&& git commit -qm one && git status --porcelain && python3 -c 'import ssl, sqlite3, ctypes, lzma, zoneinfo, setuptools, pip; "
        'print(zoneinfo.ZoneInfo("Europe/Paris"))\''
    )

    async def try_it(containers: Containers) -> tuple[str, str, str, str]:
        before = await containers.image_id(base)
        assert await ensure_python_image(containers) == base
        container = await containers.start(ContainerSpec(image=base, command=("sleep", "60")))
        done = await container.exec(["bash", "-c", script], seconds=60)
        return before, await containers.image_id(base), done.output.decode(), done.errors.decode()

    before, after, output, errors = in_engine(try_it)
    assert before == after
    lines = output.splitlines()
    assert (lines[0], lines[-1], lines[1][:6], lines[2][:3]) == ("agent", "Europe/Paris", "pytest", "git"), output + errors


# --- repositories ---------------------------------------------------------------------------------------------------


def test_a_repository_becomes_an_image_with_its_tests_on_record(wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = make_repository(tmp_path / "cw-lamps", SRC_REPOSITORY)
    status, out, _ = run_image(repository, tmp_path, capsys, "--json")
    assert status == 0
    said, record = json.loads(out), read_image(tmp_path / "cw-lamps.json")
    tests = "tests/test_lamps.py::"
    assert {f"{tests}test_brightness", f"{tests}test_place"} <= set(record.tests)
    assert {f"{tests}test_fails", f"{tests}test_writes"} <= set(record.failing)
    assert record.flaky and all(test.startswith(f"{tests}test_flaky[") for test in record.flaky)
    assert not {test for test in (*record.tests, *record.failing) if "flaky" in test} & set(record.flaky)
    assert f"{tests}test_brightness" in record.covered["src/cw_lamps/__init__.py:brightness:4"]
    assert record.base_commit == subprocess.check_output(["git", "-C", repository, "rev-parse", "HEAD"], text=True).strip()
    assert (said["tests"], said["image_id"], said["record"]) == (len(record.tests), record.image_id, str(tmp_path / "cw-lamps.json"))
    assert said["image_bytes"] > 10_000_000

    in_testbed = tree_of(record.image)
    assert {name for name, member in in_testbed.items() if member.isfile()} == {f"testbed/{name}" for name in SRC_REPOSITORY}
    assert {member.uid for member in in_testbed.values()} == {1000}
    installed = site_packages_of(record.image)
    assert any("cw_bulbs.py" in name for name in installed)
    assert not any("cw_lamps" in name and name.endswith("__init__.py") for name in installed), "the code is in the work folder alone"
    assert not {name for name in tree_of(record.image, "/tmp")} - {"tmp"}
    kept = tree_of(record.image, os.path.dirname(PLACE))["codeworld-rl/runner_modules"]
    assert (kept.uid, kept.mode & 0o777) == (0, 0o644) and kept.size > 1_000_000

    (tmp_path / "cw-lamps.json").unlink()
    status, out, told = run_image(repository, tmp_path, capsys, "--json")
    assert (status, json.loads(out)["image_id"]) == (0, record.image_id)
    assert "on record already" in told
    assert read_image(tmp_path / "cw-lamps.json") == record


def test_a_package_without_editable_installs_is_installed_in_place(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run_image(make_sdist(tmp_path, "cw_flat-1.0", FLAT_SDIST), tmp_path, capsys, "--runs", "1")
    record = read_image(tmp_path / "cw_flat.json")
    assert status == 0 and list(record.tests) == ["test_flat.py::test_two"]
    assert "1 kept, 0 flaky, 0 failing" in out
    installed = site_packages_of(record.image)
    assert not any("cw_flat/" in name for name in installed)
    assert any("cw_flat-1.0.dist-info/METADATA" in name for name in installed)


def test_an_image_that_has_the_repository_loses_its_history(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        "cd /testbed && echo 'def test_a(): pass' > test_a.py && git init -q . && git add -A && git commit -qm one && git rev-parse HEAD "
        "&& mkdir __pycache__ && touch __pycache__/x.pyc"
    )

    async def carry(containers: Containers) -> str:
        image = "codeworld-rl/test-carries:1"
        done = await containers.build_step(base=base, image=image, command=["bash", "-c", script], files=None, labels={}, seconds=60)
        return done.output.decode().strip()

    commit = in_engine(carry)
    status, _, _ = run_image(Path("image:codeworld-rl/test-carries:1"), tmp_path, capsys, "--runs", "1")
    record = read_image(tmp_path / "test-carries.json")
    assert (status, record.base_commit, list(record.tests)) == (0, commit, ["test_a.py::test_a"])
    assert set(tree_of(record.image)) == {"testbed", "testbed/test_a.py"}


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (
            {"setup.py": "import setuptools\nsetuptools.setup(name='cw-a', install_requires=['cw-nowhere'])\n"},
            "not all can be had as wheels",
        ),
        ({"setup.py": "raise SystemExit('no, thanks')\n"}, "no, thanks"),
        ({"a.py": "x = 1\n"}, "has no tests that pytest finds"),
        ({"test_a.py": "def test(): assert not 'a chance'\n"}, "no test of .* passes in each of 1 runs"),
        ({"test_a.py": "def test(): pass\n", "conftest.py": "import os; os._exit(3)\n"}, "cannot be run: crashed"),
        ({"pyproject.toml": "[x"}, "pyproject.toml cannot be read"),
    ],
)
def test_what_cannot_be_an_image_is_told(
    texts: dict[str, str], reason: str, wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, told = run_image(make_sdist(tmp_path, "cw_bad-1.0", texts), tmp_path, capsys, "--runs", "1")
    assert status == 2
    assert re.search(reason, told), told
    assert not (tmp_path / "cw_bad.json").exists()


def test_a_copy_of_the_code_in_the_image_is_refused(wheels: Path, base: str, tmp_path: Path) -> None:
    """The base holds a module that the repository has too, byte for byte."""
    source = read_source(str(make_sdist(tmp_path, "cw_copy-1.0", {"cw_twice.py": "def twice():\n    pass\n"})))
    place = "import sysconfig, shutil; open(sysconfig.get_path('purelib') + '/cw_twice.py', 'w').write('def twice():\\n    pass\\n')"

    async def build(containers: Containers) -> Built:
        image = "codeworld-rl/test-twice:1"
        await containers.build_step(base=base, image=image, command=["python3", "-c", place], files=None, labels={}, seconds=60)
        return await build_image(containers, source, base=image, own_python=True, tell=lambda _: None)

    with pytest.raises(ValueError, match="second copy of the repository's code"):
        in_engine(build)


def test_a_base_without_python_and_what_is_missing_are_told(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.tar"
    with tarfile.open(empty, "w") as tar:
        tar.addfile(tarfile.TarInfo("etc/none"))

    async def import_it(containers: Containers) -> str:
        return await containers.import_image(str(empty), image="codeworld-rl/test-empty:1", environment={}, work_dir="/", labels={})

    in_engine(import_it)
    sdist = make_sdist(tmp_path, "cw_bad-1.0", {"test_a.py": "def test(): pass\n"})
    status, _, told = run_image(sdist, tmp_path, capsys, "--base", "codeworld-rl/test-empty:1")
    assert (status, "codeworld-rl/test-empty:1 has no python3" in told) == (2, True), told
    status, _, told = run_image(sdist, tmp_path, capsys, "--base", "codeworld-rl/none:1")
    assert (status, "has no image" in told) == (2, True), told
    status, _, told = run_image(sdist, tmp_path, capsys, "--requirements", str(tmp_path / "gone.txt"))
    assert (status, "--requirements: " in told and "gone.txt cannot be read: No such file" in told) == (2, True), told


def test_no_engine_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl.cli", "swe", "image", str(make_sdist(tmp_path, "a-1", {"a.py": ""}))]
    done = subprocess.run(command, env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}, capture_output=True, text=True)
    assert (done.returncode, "no Docker engine answers" in done.stderr) == (2, True), done.stderr


# --- records --------------------------------------------------------------------------------------------------------


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    record = RepoImage(
        image="i:1",
        image_id="sha256:a",
        name="n",
        source="s",
        base_commit="c",
        tests={"t::é": 0.5},
        flaky=("f",),
        covered={"a.py:f:1": ("t",)},
    )
    write_image(record, tmp_path / "deep" / "n.json")
    assert read_image(tmp_path / "deep" / "n.json") == record
    assert from_label(record_label(record), image_id="sha256:a") == record
    with pytest.raises(ValueError, match="damaged"):
        from_label("no label", image_id="sha256:a")
    for text, reason in (("[]", "no record"), ("{", "no record"), ('{"image": "x"}', "it has no base_commit")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_image(tmp_path / "bad.json")
