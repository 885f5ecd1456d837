"""A container engine for tests, and an image with this Python, made without any registry.

`engine` gives the address of a running engine, which is then DOCKER_HOST, or skips with the reason. `python_image` gives an image on it.
Where no engine answers and this user may start one, the first test that asks has one started, which ends with the session
(tests/conftest.py).
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from environments.containers.base import EngineUnavailable, ImageMissing
from environments.containers.engine import Engine
from environments.containers.local_engine import LocalEngine
from environments.containers.reaper import is_dead, this_process

PYTHON_IMAGE = "codeworld-rl-test:python"
"""python3 with its standard library and pytest, bash as sh too, git, busybox's tools; an empty /testbed of uid 1000."""
_ENGINES = Path("/run/codeworld-rl-test")
"""One folder an engine, by the process that started it."""
_SKIPPED_FOLDERS = {"site-packages", "test", "idlelib", "tkinter", "lib2to3", "turtledemo", "ensurepip", "__pycache__"}
_PACKAGES = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments")


@contextlib.contextmanager
def running_engine(*, folder: Path = _ENGINES) -> Iterator[str]:
    """Address of an engine that answers, of one that is started for it otherwise and stopped at the end. Raises EngineUnavailable."""
    try:
        found = Engine()
    except EngineUnavailable:
        with own_engine(folder=folder) as own:
            yield own.address
        return
    found.close()
    yield found.address


@contextlib.contextmanager
def own_engine(*, folder: Path = _ENGINES) -> Iterator[LocalEngine]:
    """An engine of this process's own. One that a killed process left in the same folder is ended first. Raises EngineUnavailable."""
    for left in folder.glob("*/owner"):
        if is_dead(left.read_text()):
            LocalEngine(folder=left.parent).stop()
            shutil.rmtree(left.parent)
    own = LocalEngine(folder=folder / str(os.getpid()))  # short: an engine has sockets below, whose paths cannot be long
    try:
        own.start()
        (own.folder / "owner").write_text(this_process())
        yield own
    finally:
        if own.folder.is_dir():
            own.stop()
            shutil.rmtree(own.folder)


@pytest.fixture(scope="session")
def engine(engine_of_session: str) -> str:
    """Address of a running engine."""
    return engine_of_session


@pytest.fixture(scope="session")
def python_image(engine: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Reference of the image; made once an engine, and again when this Python or this file has changed."""
    stamp = f"{sys.version} {Path(__file__).stat().st_mtime_ns}"
    client = Engine(host=engine)
    try:
        try:
            known = (client.image(PYTHON_IMAGE)["Config"].get("Labels") or {}).get("stamp")
        except ImageMissing:
            known = None
        if known != stamp:
            path = tmp_path_factory.mktemp("image") / "root.tar"
            _write_root(path)
            layer = client.import_layer(str(path))
            container = client.create({"Image": layer, "Entrypoint": ["-"], "HostConfig": {"NetworkMode": "none"}})
            client.commit(container, image=PYTHON_IMAGE, config={"Entrypoint": [], "Cmd": ["/bin/sh"], "Labels": {"stamp": stamp}})
            client.remove(container)
    finally:
        client.close()
    return PYTHON_IMAGE


def _write_root(path: Path) -> None:
    """This interpreter, its standard library, a shell, and the libraries that they load, as a tar."""
    prefix, executable = Path(sys.base_prefix).resolve(), Path(sys.executable).resolve()
    library = prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    tools = [Path(found).resolve() for name in ("bash", "git") if (found := shutil.which(name))]
    with tarfile.open(path, mode="w") as tar:
        for name, mode, uid in (("tmp", 0o1777, 0), ("root", 0o755, 0), ("home/agent", 0o755, 1000), ("testbed", 0o755, 1000)):
            _add_folder(tar, name, mode=mode, uid=uid)
        tar.add(library, filter=lambda entry: None if set(Path(entry.name).parts) & _SKIPPED_FOLDERS else _readable(entry))
        for package in _PACKAGES:
            source = Path(pytest.__file__).parent.parent / package
            tar.add(source, arcname=f"{library}/site-packages/{package}", filter=_without_byte_code)
        for file in {executable, *tools, *_libraries([executable, *tools, *library.glob("lib-dynload/*.so")])}:
            tar.add(Path(file).resolve(), arcname=str(file), filter=_readable)
        links = {"usr/bin/python3": str(executable), "bin/sh": _found(tools, "bash"), "bin/bash": _found(tools, "bash")}
        if busybox := shutil.which("busybox"):
            tar.add(busybox, arcname="bin/busybox", filter=_readable)
            applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
            links = {f"usr/local/bin/{name}": "/bin/busybox" for name in applets if name not in ("sh", "bash", "ash")} | links
        for name, target in links.items():
            if target and f"/{name}" != target:
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, target
                tar.addfile(link)
        accounts = "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\ntester:x:1001:1001::/home/agent:/bin/sh\n"
        _add_file(tar, "etc/passwd", accounts.encode())


def _found(tools: list[Path], name: str) -> str:
    return next((str(tool) for tool in tools if tool.name == name), "")


def _libraries(programs: list[Path]) -> set[str]:
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True).stdout
    return {word for line in listed.splitlines() for word in line.split()[:3] if word.startswith("/") and not word.endswith(":")}


def _add_folder(tar: tarfile.TarFile, name: str, *, mode: int, uid: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, uid, uid
    tar.addfile(entry)


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))


def _without_byte_code(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else _readable(entry)


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mode |= 0o555
    return entry
