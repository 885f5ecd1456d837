"""Containers of a real engine: what goes in, what comes out, and what is refused."""

import asyncio
import contextlib
import io
import os
import shutil
import tarfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from configs.schema import ContainersConfig
from environments.containers.address import engine_address
from environments.containers.base import (
    ArchiveTooLarge,
    Container,
    ContainerError,
    ContainerLimits,
    Containers,
    ContainerSpec,
    EngineUnavailable,
    ImageMissing,
)
from environments.containers.docker import DockerContainers
from environments.containers.make import SharedContainers, make_containers, use_containers
from environments.containers.reaper import remove_all, this_process
from tests.containers_host import engine, python_image
from tests.engine_proxy import Proxy

__all__ = ["engine", "python_image"]
T = TypeVar("T")
SMALL = ContainerLimits(memory_mb=96, processes=32, disk_mb=4)
ODD_NAMES = (b"with space", b"new\nline", b"not \xff UTF-8", "snow \u2603".encode(), b"-dash")


def within(act: Callable[[Containers], Awaitable[T]], *, containers: Callable[[], Containers] = make_containers) -> T:
    async def main() -> T:
        made = containers()
        try:
            return await act(made)
        finally:
            await made.close()

    return asyncio.run(main())


def idle(image: str, *, limits: ContainerLimits | None = None) -> ContainerSpec:
    return ContainerSpec(image=image, command=("sleep", "600"), limits=limits or ContainerLimits())


def tar_of(files: Iterable[tuple[bytes, bytes]], *, uid: int = 1000, link: tuple[str, str] | None = None) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name.decode(errors="surrogateescape"))
            entry.size, entry.uid, entry.gid, entry.mode = len(content), uid, uid, 0o640
            tar.addfile(entry, io.BytesIO(content))
        if link is not None:
            entry = tarfile.TarInfo(link[0])
            entry.type, entry.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(entry)
    return data.getvalue()


def left_over() -> int:
    """What this process has left on the engine; it is removed too."""
    return remove_all(engine_address(), this_process().__eq__)


async def output(container: Container, script: str, *, seconds: float = 60.0) -> str:
    done = await container.exec(["sh", "-c", script], seconds=seconds)
    return (done.output + done.errors).decode(errors="replace")


@pytest.mark.usefixtures("engine")
def test_programs_are_found_where_the_image_says(tmp_path: Path) -> None:
    """As in images whose python3 is not the system's."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox: apt-get install busybox-static")
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
        for name in ("bin/sh", "opt/tools/python3"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/bin/busybox"
            tar.addfile(link)

    async def act(containers: Containers) -> None:
        image = "codeworld-rl-test:path"
        environment = {"PATH": "/opt/tools:/bin"}
        await containers.import_image(str(tmp_path / "root.tar"), image=image, environment=environment, work_dir="/testbed", labels={})
        container = await containers.start(ContainerSpec(image=image, command=("sh", "-c", "echo $PATH")))
        assert await container.read(100) == b"/opt/tools:/bin\n"

    within(act)


def test_main_process_is_spoken_to(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        container = await containers.start(ContainerSpec(image=python_image, command=("sh", "-c", "id -u; cat; echo gone >&2; exit 3")))
        await container.write(b"hello")
        await container.close_stdin()
        said = b""
        while piece := await container.read(100):
            said += piece
        assert said == b"1000\nhello"
        end = await container.wait()
        assert (end.code, end.out_of_memory, container.errors()) == (3, False, b"gone\n")
        with pytest.raises(ContainerError, match="main process has ended"):
            await container.write(b"more")
        await container.remove()
        await container.remove()

    within(act)
    assert left_over() == 0


def test_much_output_waits_for_its_reader_and_the_end_of_stderr_is_kept(python_image: str) -> None:
    script = "import sys; sys.stderr.write('x' * 200_000 + 'end'); sys.stderr.flush(); sys.stdout.buffer.write(b'y' * 20_000_000)"

    async def act(containers: Containers) -> None:
        container = await containers.start(ContainerSpec(image=python_image, command=("python3", "-c", script)))
        total = 0
        while data := await container.read(1 << 20):
            total += len(data)
        assert total == 20_000_000
        errors = container.errors()
        assert len(errors) == 64 << 10 and errors.endswith(b"end")
        assert (await container.wait()).code == 0

    within(act)


def test_exec_takes_input_and_has_caps_and_a_deadline(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        container = await containers.start(idle(python_image))
        done = await container.exec(["sh", "-c", "wc -c; id -u; pwd; exit 7"], stdin=b"x" * 3_000_000, seconds=60, user="tester")
        assert (done.output.split(), done.exit_code, done.truncated) == ([b"3000000", b"1001", b"/testbed"], 7, False)
        done = await container.exec(["sh", "-c", "head -c 500000 /dev/zero; echo no >&2"], seconds=60, output_bytes=1000, user="root")
        assert (len(done.output), done.errors, done.exit_code, done.truncated) == (1000, b"no\n", 0, True)
        done = await container.exec(["sh", "-c", "echo begun; sleep 600"], seconds=1.0)
        assert (done.output, done.exit_code) == (b"begun\n", None)

    within(act)


def test_files_go_in_and_out_whatever_their_names(python_image: str) -> None:
    files = [(name, b"content of " + name) for name in ODD_NAMES]

    async def act(containers: Containers) -> None:
        container = await containers.start(idle(python_image))
        await container.put("/testbed", tar_of(files, link=("out", "/etc/passwd")))
        await container.put("/testbed", tar_of([(b"owned", b"")], uid=0))
        assert (await output(container, "stat -c '%u %a' owned; cat -- -dash; echo; touch owned")).splitlines()[:2] == [
            "0 640",
            "content of -dash",
        ]
        with tarfile.open(fileobj=io.BytesIO(await container.archive("/testbed", max_bytes=1 << 20))) as tar:
            found = {
                entry.name.partition("/")[2].encode(errors="surrogateescape"): extracted.read()
                for entry in tar
                if (extracted := tar.extractfile(entry) if entry.isreg() else None) is not None
            }
            assert (tar.getmember("testbed/out").issym(), tar.getmember("testbed/out").linkname) == (True, "/etc/passwd")
        assert found == dict(files) | {b"owned": b""}
        with pytest.raises(FileNotFoundError, match="/testbed/none"):
            await container.archive("/testbed/none", max_bytes=1000)
        await output(container, "head -c 3000000 /dev/zero > big")
        with pytest.raises(ArchiveTooLarge):
            await container.archive("/testbed", max_bytes=2 << 20)

    within(act)


def test_work_folder_starts_as_the_images(python_image: str) -> None:
    names = [*ODD_NAMES, b"below/file", b"n" * 90 + b"/" + b"m" * 120]

    async def act(containers: Containers) -> None:
        built = "codeworld-rl-test:folder"
        step: dict[str, Any] = {"base": python_image, "image": built, "labels": {"about": "a 'b'\n"}, "seconds": 120.0}
        done = await containers.build_step(
            command=("chown", "-R", "1000:1000", "/testbed"), files=tar_of((b"testbed/" + n, n) for n in names), **step
        )
        assert done.exit_code == 0, done
        assert await containers.image_label(built, "about") == "a 'b'\n"
        assert await containers.image_label(built, "codeworld-rl.owner") == ""
        container = await containers.start(idle(built))
        found = await output(container, "find . -type f | wc -l; touch made; stat -c '%u %a' . made")
        assert found.split("\n") == [str(len(names) + 1), "1000 755", "1000 644", ""]  # one has a newline in it
        with tarfile.open(fileobj=io.BytesIO(await container.archive("/testbed", max_bytes=1 << 20))) as tar:
            contents = {
                entry.name.partition("/")[2].encode(errors="surrogateescape"): extracted.read()
                for entry in tar
                if (extracted := tar.extractfile(entry) if entry.isreg() else None) is not None
            }
        assert contents == {name: name for name in names} | {b"made": b""}
        failed = await containers.build_step(
            **step | {"image": "codeworld-rl-test:failed"}, command=("sh", "-c", "echo why; exit 4"), files=None
        )
        assert (failed.exit_code, failed.output) == (4, b"why\n")
        with pytest.raises(ImageMissing):
            await containers.image_id("codeworld-rl-test:failed")
        late = await containers.build_step(
            **step | {"image": "codeworld-rl-test:failed", "seconds": 1.0}, command=("sleep", "60"), files=None
        )
        assert late.exit_code is None

    within(act)
    assert left_over() == 0


def test_missing_image_and_engine_are_told(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageMissing, match=r"no image 'codeworld-rl-test:none'.*rl swe image"):
        within(lambda containers: containers.start(idle("codeworld-rl-test:none")))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(EngineUnavailable, match=r"rl swe engine start.*apt-get install docker\.io"):
        within(lambda containers: containers.start(idle("any")))
    monkeypatch.setenv("DOCKER_HOST", "ssh://somewhere")
    with pytest.raises(ValueError, match="DOCKER_HOST is 'ssh://somewhere'"):
        within(lambda containers: containers.start(idle("any")))


def test_a_program_that_is_not_there(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        container = await containers.start(ContainerSpec(image=python_image, command=("no-such-program",)))
        assert (await container.wait()).code == 127

    within(act)


def test_at_once_makes_the_next_wait_and_a_cancelled_start_leaves_nothing(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        first = await containers.start(idle(python_image))
        waiting = asyncio.ensure_future(containers.start(idle(python_image)))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await first.remove()
        second = await waiting
        await second.remove()
        for seconds in (0.0, 0.005, 0.03, 0.1):
            start = asyncio.ensure_future(containers.start(idle(python_image)))
            await asyncio.sleep(seconds)
            start.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await start).remove()
        assert left_over() == 0
        await (await containers.start(idle(python_image))).remove()  # its turn came back

    within(act, containers=lambda: DockerContainers(at_once=1))


def test_warm_containers_are_handed_out_once(python_image: str) -> None:
    async def act(containers: Containers) -> None:
        taken = [await containers.start(idle(python_image)) for _ in range(5)]
        assert len({container.id for container in taken}) == 5
        assert [await output(container, "echo $((6 * 7)); touch used; ls | wc -l") for container in taken] == ["42\n1\n"] * 5
        other = await containers.start(idle(python_image, limits=SMALL))
        assert await output(other, "df -m . | tail -1 | tr -s ' ' | cut -d' ' -f2") == "4\n"

    within(act, containers=lambda: DockerContainers(warm=2))
    assert left_over() == 0


def test_one_connection_is_shared_by_an_event_loop(python_image: str) -> None:
    use_containers(ContainersConfig(at_once=2))

    async def main() -> None:
        first, second = SharedContainers.take(), SharedContainers.take()
        assert first is second
        await first.containers.start(idle(python_image))
        await first.release()
        assert (await second.containers.image_id(python_image)).startswith("sha256:")
        await second.release()

    try:
        asyncio.run(main())
    finally:
        use_containers(ContainersConfig())
    assert left_over() == 0


def test_engine_that_goes_away_is_an_engine_failure(python_image: str, tmp_path: Path) -> None:
    async def main() -> None:
        with Proxy(str(tmp_path / "engine"), engine_address().removeprefix("unix://")) as proxy:
            containers = DockerContainers(host=f"unix://{proxy.path}")
            container = await containers.start(idle(python_image))
            reading = asyncio.ensure_future(container.read(10))
            running = asyncio.ensure_future(container.exec(["sleep", "60"], seconds=60))
            await asyncio.sleep(0.5)
            proxy.cut()
            assert await reading == b""
            for act in (running, container.wait(), container.archive("/testbed", max_bytes=1000), containers.start(idle(python_image))):
                with pytest.raises(ContainerError):
                    await act
            with pytest.raises(ContainerError):
                await containers.close()

    asyncio.run(main())
    assert left_over() == 1
