"""What agents do to their container: shell, driver, processes, memory, output. They see it themselves; it is never the engine's fault."""

import asyncio
from pathlib import Path

import docker
import pytest

from configs.schema import ContainersConfig
from environments.containers.base import ContainerError, ContainerSpec
from environments.containers.make import SharedContainers, use_containers
from environments.swe.agent_box import AgentBox, BoxEnded, read_changes
from environments.swe.records import Patch
from environments.swe.tool_bodies import Create, Edit
from tests.repo_image import REPO_IMAGE, Talk, engine, talk, task_folder

__all__ = ["engine", "task_folder"]
FRESH = "its variables and all that ran in the background are gone; the next call starts a fresh shell in /testbed]"


ENDINGS = (
    ("echo a; exit 3", "a\n", 3),
    ("exec echo b", "b\n", 0),
    ("kill -9 $$", "", 137),
    ("(sleep 100; echo) & kill -9 $$", "", 137),
    ("set -e; echo c; false", "c\n", 1),
    ("trap 'echo bye' EXIT; exit", "bye\n", 0),
    ("yes | head -c 70000 | tr -d '\\n' | tail -c 3; exit 1", "yyy\n", 1),
    ("trap 'exec 8>&-' DEBUG; echo", "\n", 137),
)
"""Commands that end their shell, what they print, and its exit code."""


def test_a_shell_that_ends_is_replaced(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        for command, output, code in ENDINGS:
            await one.bash("x=1; cd calc; touch kept")
            assert await one.bash(command) == f"{output.lstrip()}[the shell ended with exit code {code}: {FRESH}"
            assert await one.bash("echo $x; pwd; ls calc/kept") == "\n/testbed\ncalc/kept"

    talk(task_folder, act)


def test_commands_that_could_confuse_the_shell(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        await one.bash("x=1")
        assert (await one.bash("break; continue; echo on")).endswith("\non")
        assert "unexpected EOF" in await one.bash("echo 'open")
        assert "syntax error" in await one.bash("if then fi )")
        assert "can only `return'" in await one.bash("return 5")
        assert await one.bash("exec 7>&- 8>&- 9<&- 0<&-; echo ok") == "ok"
        assert (await one.bash("cat <<END\nnever closed")).endswith("delimited by end-of-file (wanted `END')\nnever closed")
        assert await one.bash("set -x; echo $x") == "++ echo 1\n1"
        assert await one.bash("set +x") == "++ set +x"
        assert await one.bash("read() { echo mine; }; printf() { echo mine; }; IFS=:; set -u") == ""
        assert "mine" in await one.bash("printf a")

    talk(task_folder, act)


def test_a_command_past_its_deadline_ends_with_all_that_runs(task_folder: Path) -> None:
    note = f"[the command took longer than 1.5 s and was ended with its shell: {FRESH}"

    async def act(one: Talk) -> None:
        await one.bash("x=1; setsid sleep 100 & (sleep 100 & disown) & nohup sleep 100 >/dev/null 2>&1 & trap '' TERM INT HUP")
        assert await one.bash("echo begun; sleep 100") == f"begun\n{note}"
        assert await one.bash('echo "<$x>"; ps | grep -c [s]leep') == "<>\n0\n[exit code 1]"
        assert await one.bash("set -n") == note
        assert "/dev/tty" in await one.bash("cat /dev/tty")

    talk(task_folder, act, command_seconds=1.5)


def test_background_jobs_write_into_later_observations(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        assert await one.bash("(sleep 0.2; echo late) & echo now") == "now"
        assert await one.bash("wait; echo then") == "late\nthen"
        await one.bash("yes forever & yes for ever &")
        said = await one.bash("sleep 0.3; kill %1 %2; echo end")
        assert len(said) < 3000 and "bytes left out" in said
        assert (await one.bash("wait; echo quiet")).endswith("quiet")
        assert await one.bash("echo done") == "done"

    talk(task_folder, act, observation_chars=2000)


def test_a_hundred_megabytes_of_output_are_cut_in_the_container(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        said = await one.bash("echo first; head -c 100000000 /dev/zero; echo; echo last")
        assert said.startswith("first\n\ufffd") and said.endswith("\ufffd\nlast") and len(said) < 2100
        assert f"[... {100_000_012 - 2000} bytes left out ...]" in said
        assert "bytes left out" in await one.bash("tr '\\0' '\\377' </dev/zero | head -c 3000000")

    talk(task_folder, act, observation_chars=2000)


def test_a_fork_bomb_ends_at_the_limit(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        await one.bash(":(){ :|:& };:")
        for _ in range(3):  # the shell cannot start anything until a command reaches its deadline
            await one.bash("ls; sleep 9")
        assert await one.bash("ls; ps >/tmp/ps; wc -l </tmp/ps | tr -d ' '") == "calc\nnotes\ntests\n4"

    talk(task_folder, act, command_seconds=1.0)


def test_a_memory_hog_ends_and_the_shell_stays(task_folder: Path, engine: str) -> None:
    async def act(one: Talk) -> None:
        await one.bash("x=1")
        said = await one.bash("python3 -c 'hog = [bytearray(10**7) for _ in range(100)]'")
        assert "Killed" in said and said.endswith("[exit code 137]")
        assert await one.bash("echo $x") == "1"

    use_containers(ContainersConfig(host=engine, memory_mb=128))
    try:
        talk(task_folder, act)
    finally:
        use_containers(ContainersConfig())


def test_a_container_without_memory_is_replaced(task_folder: Path, engine: str) -> None:
    """A full tmpfs cannot be taken back: the kernel ends one process after the other, the driver, too."""

    async def act(one: Talk) -> None:
        await one.bash("touch mark")
        said = [await one.bash("head -c 200M /dev/zero > /tmp/fill") for _ in range(5)]
        ended = [text for text in said if text.startswith("[the container ended: out of memory. What was changed")]
        assert ended, said
        assert "calc\nnotes\ntests" in [await one.bash("ls"), await one.bash("ls")]

    use_containers(ContainersConfig(host=engine, memory_mb=48))
    try:
        talk(task_folder, act)
    finally:
        use_containers(ContainersConfig())


def test_the_driver_is_out_of_reach(task_folder: Path) -> None:
    look = """
import ctypes, os
for name in ("mem", "environ", "fd", "maps", "cwd"):
    path = f"/proc/1/{name}"
    try:
        print(name, os.listdir(path) if name == "fd" else open(path, "rb").read(1))
    except OSError as error:
        print(name, error.errno)
print(ctypes.CDLL(None).ptrace(16, 1, 0, 0))
"""

    async def act(one: Talk) -> None:
        await one.say("create", Create(path="/tmp/look.py", content=look).body())
        assert await one.bash("python3 /tmp/look.py") == "mem 13\nenviron 13\nfd 13\nmaps 13\ncwd 13\n-1"
        assert await one.bash("for s in 1 2 3 9 10 12 13 14 15 17 18 19 20 29; do kill -$s 1; done; echo alive") == "alive"
        assert await one.bash("python3 -c 'import os; print(sorted(map(int, os.listdir(\"/proc/self/fd\")))[:4])'") == "[0, 1, 2, 3]"
        assert "driver" not in await one.bash("ps -ef 2>/dev/null || ps")

    talk(task_folder, act)


def test_a_locked_work_folder_is_the_agents_own_doing(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        await one.bash("chmod 0 /testbed; rm -rf /tmp/* ~/*; exit")
        assert "Permission denied" in await one.bash("ls /testbed")
        assert "Permission denied" in await one.say("edit", Edit(path="/testbed/calc/sums.py", search="a", replace="b").body())
        assert await one.bash("chmod 755 /testbed; ls /testbed") == "calc\nnotes\ntests"
        assert await one.bash("rm -rf /testbed/* /testbed/.[a-z]* 2>&1; ls -A /testbed") == ""
        result = await one.step("submit")
        patch = Patch.from_json(result.outcome)
        assert patch is not None and patch.data.count(b"deleted file") == 5

    talk(task_folder, act)


def test_a_container_that_is_killed_from_outside_is_an_infrastructure_failure(task_folder: Path, engine: str) -> None:
    async def act(one: Talk) -> None:
        await one.bash("ls")
        client = docker.APIClient(base_url=engine)
        client.kill(one.container().id)
        client.close()
        with pytest.raises(ContainerError, match="killed from outside"):
            await one.bash("ls")

    talk(task_folder, act)


_READ = """
import json, marshal, os, struct, sys
def take(n):
    data = b""
    while len(data) < n: data += os.read(0, n - len(data))
    return data
for _ in range(3): take(int.from_bytes(take(8), "big"))
os.write(1, b"+")
def request():
    n, m = struct.unpack(">II", take(8)); r = marshal.loads(take(n)); take(m); return r
def answer(header, data=b""):
    text = json.dumps(header).encode(); os.write(1, struct.pack(">II", len(text), len(data)) + text + data)
r = request()
"""


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("os.write(1, b'\\xff' * 8); request()", "does not answer"),
        ("os.write(1, struct.pack('>II', 3, 0) + b'{]}'); request()", "does not answer"),
        ("os.write(1, struct.pack('>II', 2, 0) + b'[]'); request()", "does not answer"),
        ("answer({'id': 99}); request()", "did not answer as it must"),
        ("answer({'id': r['id'], 'head': 'x'}); request()", "did not answer as it must"),
        ("answer({'id': r['id']}, b'x' * 3000); request()", "does not answer"),
        ("sys.exit('worn out')", "exit code 1 (worn out)"),
    ],
)
def test_a_driver_that_was_taken_over_ends_the_container(
    task_folder: Path, program: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that got hold of it could answer anything."""
    monkeypatch.setattr("environments.swe.agent_box._END_SECONDS", 0.5)

    async def main() -> None:
        shared = SharedContainers.take()
        try:
            spec = ContainerSpec(image=REPO_IMAGE, command=("python3", "-c", _READ + program), fills=True)
            box = await AgentBox.start(shared.containers, spec, [])
            with pytest.raises(BoxEnded) as caught:
                await box.bash("ls", seconds=5.0, keep=1000)
            assert why in str(caught.value)
        finally:
            await shared.release()

    asyncio.run(main())


def test_limits_of_the_driver_cannot_be_set(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        said = await one.bash("python3 -c 'import resource as r; r.prlimit(0, r.RLIMIT_CORE); r.prlimit(1, r.RLIMIT_CPU, (1, 1))'")
        assert "PermissionError" in said and said.count("Error") == 1

    talk(task_folder, act)


@pytest.mark.parametrize(
    "listing",
    [
        *("5", "[5]", "{", "[[1, 33188, 0]]", '[["a", 33188.0, 0]]', '[["a", "33188", 0]]', '[["a", 33188, "0"]]', '[["a", 33188, -1]]'),
        *('[["a", 33188, 9]]', '[["a", 16384, 0]]'),
        *('[["../a", 33188, 0]]', '[["/a", 33188, 0]]', '[["a/.git/x", 33188, 0]]', "[" * 100_000),
        *('[["\\u2603", 33188, 0]]', '[["a", 33188, 0], ["a", null, 0]]', '[]', f'[["{"a/" * 3000}a", 33188, 0]]'),
    ],
)  # fmt: skip
def test_a_work_folder_that_cannot_be_is_not_taken(listing: str) -> None:
    text = listing.encode()
    with pytest.raises((ValueError, RecursionError)):
        read_changes(len(text).to_bytes(8, "big") + text + b"x" * 3)
