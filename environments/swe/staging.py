"""How a container of a repository starts: its program and its work folder go to its main process over stdin.

The main process of such a container is a line of Python that reads frames: the program, the files of the image's work folder, and the
changes over them. `inside/stage.py` puts the files there, before anything of the container's own has run. The engine's file calls, which
start the engine's program again for each call, are spared. The program goes as byte code where the image has this Python.
"""

import asyncio
import importlib.util
import io
import marshal
import stat
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from weakref import WeakKeyDictionary

from environments.containers.base import Container, ContainerError, Containers
from environments.swe.records import TreeChange

_INSIDE = Path(__file__).with_name("inside")
_PACKAGE = "environments.swe.inside"
_BOOT = """import gc, marshal, os, sys
gc.disable()
def exactly(size):
    parts = []
    while size:
        part = os.read(0, size)
        if not part: os._exit(1)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
def frame():
    return marshal.loads(exactly(int.from_bytes(exactly(8), "big")))
magic, modules, after = frame()
same = sys.implementation.name == "cpython" and sys.modules["_frozen_importlib_external"].MAGIC_NUMBER == magic
for name, code, source in modules:
    module = sys.modules[name] = type(sys)(name)
    exec(marshal.loads(code) if same else compile(source, "<" + name.rpartition(".")[2] + ">", "exec"), module.__dict__)
sys.modules[modules[0][0]].main(frame)
exec(after)
"""
"""The program comes over stdin, not as an argument: a listing of processes would show it. No `.pth` file runs before it (-S). Nothing of
what is loaded is garbage: the program says when it is to be looked for."""
_SECONDS = 60.0
_MARSHAL = 4
"""Version of the format that Python 3.8 reads, too."""
File = tuple[bytes, int | None, float | None, bytes]
_files: WeakKeyDictionary[Containers, dict[tuple[str, str], "asyncio.Task[bytes]"]] = WeakKeyDictionary()


class ChangesUnfit(ContainerError):
    """The changes do not fit over the image's files: by what they are, not by the engine's doing."""


def boot_command(*words: str) -> tuple[str, ...]:
    """Main process of a container that `stage` speaks to; `words`: its `sys.argv[1:]`."""
    return ("python3", "-I", "-S", "-c", _BOOT, *words)


async def stage(
    containers: Containers, container: Container, *, image: str, work_dir: str, program: bytes, changes: Sequence[File]
) -> None:
    """Fill a container that `fills` its folder with the image's files and changes, and start a program. Raises ContainerError, and
    ChangesUnfit where the container says that the changes are to blame, or its memory does not hold them."""
    files = await _image_files(containers, image, work_dir)
    try:
        async with asyncio.timeout(_SECONDS):
            await container.write(program + files + _frame(list(changes)))
            said = await container.read(1)
            if said == b"+":
                return
            ended = await container.wait()
    except TimeoutError:
        raise ContainerError(f"a container could not be prepared within {_SECONDS:g} s") from None
    detail = container.errors().decode(errors="replace").strip().rpartition("\n")[2][-300:]
    if changes and (said == b"-" or ended.out_of_memory):
        why = detail if said else "it has not enough memory for the changes"
        raise ChangesUnfit(f"a container could not be prepared: {why}")
    raise ContainerError(f"a container could not be prepared: {detail}")


@cache
def program_frame(modules: Sequence[str], *, after: str) -> bytes:
    """Modules of `inside`, in the order in which they are run, and a statement that starts the program."""
    found = []
    for name in ("stage", *modules):
        source = (_INSIDE / f"{name}.py").read_text()
        code = compile(source, f"<{name}>", "exec", dont_inherit=True)
        found.append((f"{_PACKAGE}.{name}", marshal.dumps(code, _MARSHAL), source))
    return _frame((importlib.util.MAGIC_NUMBER, found, after))


def as_files(changes: Sequence[TreeChange]) -> list[File]:
    """Changes as a container takes them."""
    return [(change.path, change.mode, 0.0, change.data) for change in changes]


def tar_files(tar: bytes) -> list[File]:
    """What is in the engine's tar of a folder, without the folder itself."""
    found: list[File] = []
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as archive:
        for entry in archive:
            path = entry.name.encode("utf-8", "surrogateescape").removeprefix(b"./").partition(b"/")[2].rstrip(b"/")
            if not path:
                continue
            if entry.isdir():
                found.append((path, stat.S_IFDIR | entry.mode, None, b""))
            elif entry.issym():
                found.append((path, stat.S_IFLNK | 0o777, None, entry.linkname.encode("utf-8", "surrogateescape")))
            elif entry.isfile() or entry.islnk():
                file = archive.extractfile(entry)
                assert file is not None
                found.append((path, stat.S_IFREG | entry.mode, float(entry.mtime), file.read()))
    return found


async def _image_files(containers: Containers, image: str, work_dir: str) -> bytes:
    """Frame of the content of an image's work folder, taken once a connection."""
    known = _files.setdefault(containers, {})
    key = (await containers.image_id(image), work_dir)
    if key not in known:
        known[key] = asyncio.ensure_future(_read_files(containers, *key))
    reading = known[key]
    try:
        return await asyncio.shield(reading)
    finally:
        if reading.done() and (reading.cancelled() or reading.exception() is not None):
            known.pop(key, None)


async def _read_files(containers: Containers, image: str, work_dir: str) -> bytes:
    try:
        tar = await containers.image_tree(image, work_dir)
    except FileNotFoundError:
        return _frame([])
    return await asyncio.to_thread(lambda: _frame(tar_files(tar)))


def _frame(value: object) -> bytes:
    data = marshal.dumps(value, _MARSHAL)  # type: ignore[arg-type]
    return len(data).to_bytes(8, "big") + data
