"""The environment swe on a real engine: tools, formats, budgets, submit, and what the agent cannot find."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import ContainersConfig
from environments.containers.base import ContainerError
from environments.containers.engine import Engine
from environments.containers.make import use_containers
from environments.protocol import Budgeted
from environments.records import Budget, Message, SandboxInfo, StopReason, Task
from environments.registry import make_environment
from environments.reply import ToolCall
from environments.swe.agent import RepoAgent
from environments.swe.folder import write_task
from environments.swe.observation import budget_block, cut_middle
from environments.swe.records import Patch, TreeChange
from environments.swe.tool_bodies import Create, Edit
from environments.swe.tool_format import ToolFormat, render_call
from rl.log.calls import tool_call
from tests.repo_image import GOLD, SECRET, Talk, engine, mutated_task, talk, task_folder

__all__ = ["engine", "task_folder"]
FIX = Edit(path="calc/sums.py", search="return a - b", replace=f"return a + b + 0 * {SECRET}").body()


def opening(folder: Path, *, prompt: tuple[Message, ...] = (Message(role="user", content="fix"),), **options: Any) -> tuple[Message, ...]:
    return asyncio.run(RepoAgent(Task(id="t", env="swe", prompt=prompt, payload={"folder": str(folder), **options})).reset())


@pytest.fixture
def plain_folder(tmp_path: Path) -> Path:
    """A task folder, for what needs no engine."""
    write_task(mutated_task(), tmp_path / "task")
    return tmp_path / "task"


def test_opening_describes_the_tools_as_asked(plain_folder: Path) -> None:
    full, user = opening(plain_folder)
    assert (full.role, user.content) == ("system", "fix")
    assert "<tool: edit>\n[path]\n<<<<<<< SEARCH" in full.content and "120 seconds" in full.content and "/testbed" in full.content
    short = opening(plain_folder, tool_docs="short")[0].content
    assert "<tool: submit>" in short and len(short) < len(full.content) / 2
    assert '{"name": "bash", "arguments"' in opening(plain_folder, tool_format="json")[0].content
    assert opening(plain_folder, tool_docs="none") == (Message(role="user", content="fix"),)
    system = Message(role="system", content="Be brief.")
    assert opening(plain_folder, prompt=(system, user))[0].content == f"Be brief.\n\n{full.content}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": None}, "payload.folder is None; it must name the folder of the task"),
        ({"tool_format": "xml"}, "payload.tool_format is 'xml'; use one of cwm, json"),
        ({"tool_docs": "long"}, "payload.tool_docs is 'long'; use one of full, short, none"),
        ({"command_seconds": 0}, "payload.command_seconds is 0; it must be between 0.1 and 86400"),
        ({"command_seconds": "9"}, "payload.command_seconds is '9'; it must be a number"),
        ({"observation_chars": 1.5}, "payload.observation_chars is 1.5; it must be a whole number"),
        ({"observation_chars": True}, "payload.observation_chars is True; it must be a whole number"),
        ({"turns": 4}, "payload.turns is no option of the environment swe"),
    ],
)
def test_wrong_payloads_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_environment(Task(id="t", env="swe", prompt=(), payload={"folder": "tasks/t", **options}))
    assert str(caught.value).startswith(message)


def test_a_folder_that_is_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.toml"):
        opening(tmp_path)


def test_budgets_are_shown_so_that_a_repeated_run_shows_the_same() -> None:
    budget = Budget(turns=7, tokens=1234, seconds=899.0, seconds_in_all=1200.0)
    assert budget_block(budget) == ("<budget>\n* Remaining turns: 7\n* Remaining tokens: 1234\n* Remaining time: at least 600 s\n</budget>")
    assert budget_block(replace(budget, seconds=601.0)) == budget_block(budget)
    assert "at least 900 s" in budget_block(replace(budget, seconds=900.0))
    assert "at least 1200 s" in budget_block(replace(budget, seconds=1200.0))
    assert "less than 300 s" in budget_block(replace(budget, seconds=12.0))
    assert "less than 300 s" in budget_block(replace(budget, seconds=-3.0))


def test_long_output_loses_its_middle() -> None:
    assert cut_middle(b"a" * 200, chars=200) == "a" * 200
    assert cut_middle(b"a" * 300 + b"b" * 300, chars=200) == f"{'a' * 100}\n[... 400 bytes left out ...]\n{'b' * 100}"
    assert cut_middle(b"a" * 300, b"b" * 300, dropped=1000, chars=200) == f"{'a' * 100}\n[... 1400 bytes left out ...]\n{'b' * 100}"
    assert cut_middle(b"\0\xff", chars=200) == "\ufffd\ufffd"
    assert cut_middle("é".encode() * 300, chars=200) == f"{'é' * 100}\n[... 200 bytes left out ...]\n{'é' * 100}"


def test_a_message_without_exactly_one_call_uses_the_turn(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        assert isinstance(one.agent, Budgeted)
        one.agent.note_budget(Budget(turns=2, tokens=50, seconds=90.0, seconds_in_all=100.0))
        result = await one.agent.step(Message(role="assistant", content="hello"))
        (message,) = result.messages
        assert message.role == "user" and not result.done
        assert message.content.startswith("<output>\n[nothing was done: no tool call; write exactly one")
        assert message.content.endswith("* Remaining turns: 2\n* Remaining tokens: 50\n* Remaining time: at least 75 s\n</budget>")
        two = await one.agent.step(Message(role="assistant", content="<tool: bash>\nls\n</tool><tool: bash>\nls\n</tool>"))
        assert "2 tool calls instead of exactly one" in two.messages[0].content
        assert "<budget>" not in two.messages[0].content  # nobody said what is left
        other = await one.agent.step(Message(role="assistant", content="<tool: python>\n1\n</tool>"))
        assert "there is no tool 'python'; tools: bash, edit, create, submit" in other.messages[0].content
        assert one.agent._box is None  # none of this needs a container

    talk(task_folder, act)


def test_json_calls(task_folder: Path) -> None:
    async def act(one: Talk) -> str:
        text = '<tool_call>\n{"name": "bash", "arguments": {"command": "echo $((6 * 7))"}}\n</tool_call>'
        return (await one.agent.step(Message(role="assistant", content=text))).messages[0].content

    assert talk(task_folder, act, tool_format="json") == "<output>\n42\n</output>"


@pytest.mark.parametrize("tool_format", ["cwm", "json"])
def test_exit_codes_and_containers_are_told_for_the_log(task_folder: Path, tool_format: ToolFormat) -> None:
    async def act(one: Talk) -> None:
        assert one.agent.sandbox_info() == SandboxInfo()
        calls = [
            ToolCall(name=name, body=body) for name, body in (("bash", "true"), ("bash", "(exit 7)"), ("bash", "exit 3"), ("edit", "?"))
        ]
        said = [Message(role="assistant", content=render_call(call, tool_format=tool_format)) for call in calls]
        answers = [(await one.agent.step(message)).messages[0] for message in said]
        assert [(answer.name, answer.exit_code) for answer in answers] == [("bash", 0), ("bash", 7), ("bash", 3), ("edit", None)]
        assert [tool_call(message.content) for message in said] == calls, "the log reads tool and arguments of both formats"
        first = one.agent.sandbox_info()
        assert first.image_digest.startswith("sha256:") and first.refs == (one.container().id,)

    talk(task_folder, act, tool_format=tool_format)


def test_bash_keeps_its_state(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        assert await one.bash("cd calc; x='a  b'; f() { echo \"<$1>\"; }; export y=2; shopt -s extglob") == ""
        assert await one.bash('pwd; f "$x"; sh -c "echo $y"') == "/testbed/calc\n<a  b>\n2"
        assert await one.bash("cat; read line; echo got:$line") == "got:"
        assert await one.bash("cat nowhere.txt 2>/dev/null || python3 -c 'import sys; sys.exit(\"no\")'") == "no\n[exit code 1]"
        assert await one.bash("for i in 1 2; do\n  cat <<'X'\n</thing> $i\nX\ndone") == "</thing> $i\n</thing> $i"
        assert await one.bash("printf 'one\\ntwo'") == "one\ntwo"
        assert await one.bash("printf 'a\\0b\\377c'") == "a\ufffdb\ufffdc"
        assert await one.bash("echo é | cat") == "é"
        assert (await one.bash("(exit 7)")) == "[exit code 7]"
        assert await one.bash("bash --version >/dev/null && yes | head -2") == "y\ny"  # a broken pipe ends yes silently
        # Relative paths of the other tools start where the shell is.
        assert (await one.say("create", Create(path="new/deep.py", content="x = 1\n").body())) == "new/deep.py created with 1 lines."
        assert await one.bash("cat new/deep.py; cd /; cat /testbed/calc/new/deep.py") == "x = 1\nx = 1"
        assert await one.bash("python3 -c 'print(1 + 1)' && git --version | cut -c1-11") == "2\ngit version"
        assert "NUL" in await one.bash("echo \0")

    talk(task_folder, act)


def test_edit_changes_the_one_place(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        def edit(search: str, replace: str, path: str = "calc/sums.py") -> str:
            return Edit(path=path, search=search, replace=replace).body()

        shown = await one.say("edit", edit("a - b", "a + b"))
        assert shown == (
            "calc/sums.py changed at line 2; it has 9 lines now.\n"
            "     1\tdef add(a, b):\n     2\t    return a + b\n     3\t\n     4\t\n     5\tdef mean(values):\n     6\t    total = 0"
        )
        assert "stands 5 times in calc/sums.py, at: line 5, 7, 7, 8, 9;" in await one.say("edit", edit("val", "x"))
        assert "is not in calc/sums.py" in await one.say("edit", edit("    return nothing", "x"))
        near = await one.say("edit", edit("def mean(values):\n    sum = 0", "x"))
        assert near.endswith("Its first line is at: line 5.]")
        assert await one.say("edit", edit("x", "y", "gone.py")) == "[gone.py: No such file or directory]"
        assert "no regular file" in await one.say("edit", edit("x", "y", "/dev/null"))
        assert "Is a directory" in await one.say("edit", edit("x", "y", "calc"))
        assert "[/etc/passwd: " in await one.say("edit", edit("root", "toor", "/etc/passwd"))
        assert "empty" in await one.say("edit", edit("", "y"))
        assert await one.bash("mkfifo pipe") == "" and "no regular file" in await one.say("edit", edit("x", "y", "pipe"))
        assert "edit needs a path, then the lines" in await one.say("edit", "calc/sums.py\nold\n=======\nnew")
        # Bytes that are no UTF-8 stay as they are; only what is shown of them is replaced.
        assert "     1\tcaf\ufffd" in await one.say("edit", edit("two", "three", "notes/latin.txt"))
        assert "lines end with CRLF" in await one.say("edit", edit("first\nsecond", "x", "notes/dos.txt"))
        await one.say("edit", edit("first\r\nsecond", "first\r\nsecond\r\nthird", "notes/dos.txt"))
        assert await one.bash("od -c -An notes/latin.txt notes/dos.txt | tr -d ' \\n'") == (
            r"caf351\none\nthree\none\nfirst\r\nsecond\r\nthird\r\n"
        )
        # Whole lines go before places inside of lines, as in CWM.
        await one.bash("printf 'one\\ntone\\n' > w.txt; chmod 755 w.txt; ln -s w.txt link.txt")
        assert "changed at line 1" in await one.say("edit", edit("one", "two", "link.txt"))
        assert await one.bash("cat w.txt; stat -c %a w.txt; readlink link.txt") == "two\ntone\n755\nw.txt"

    talk(task_folder, act)


def test_create_makes_new_files_only(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        def create(path: str, content: str) -> str:
            return Create(path=path, content=content).body()

        assert await one.say("create", create("a/b/c d.txt", "x\ny")) == "a/b/c d.txt created with 2 lines."
        assert "is there already" in await one.say("create", create("a/b/c d.txt", "z"))
        assert "is there already" in await one.say("create", create("calc", "z"))
        assert "[/usr/x.txt: Read-only file system]" in await one.say("create", create("/usr/x.txt", "z"))
        assert "[calc/sums.py/x: " in await one.say("create", create("calc/sums.py/x", "z"))
        assert "the first line must be the path" in await one.say("create", "\ncontent")
        assert await one.say("create", create("/tmp/empty", "")) == "/tmp/empty created with 0 lines."
        assert await one.bash("cat 'a/b/c d.txt'; stat -c %s /tmp/empty") == "x\ny0"

    talk(task_folder, act)


def test_edit_and_create_on_a_full_disk_lose_nothing(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        assert "No space left" in await one.bash("cat /dev/zero > fill")
        assert "No space left" in await one.say("create", Create(path="new.txt", content="x" * 100_000).body())
        assert "No space left" in await one.say("edit", Edit(path="calc/sums.py", search="a - b", replace="x" * 100_000).body())
        assert await one.bash("rm fill; git status --porcelain; ls") == "calc\nnotes\ntests"

    talk(task_folder, act)


def test_submit_hands_in_the_difference_of_the_tree(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        await one.say("edit", FIX)
        await one.bash(
            "git add -A; git commit -qm done; sleep 100 & python3 -m pytest -q; cd calc"
        )  # neither commits nor programs make a difference
        container = one.container()
        result = await one.step("submit")
        assert (result.done, result.stop_reason, result.messages) == (True, StopReason.DONE, ())
        patch = Patch.from_json(result.outcome)
        assert patch is not None
        assert [line for line in patch.data.splitlines() if line[:1] in b"+-"] == [line for line in GOLD.splitlines() if line[:1] in b"+-"]
        with pytest.raises(ContainerError):
            await container.exec(["true"], seconds=60.0)

    talk(task_folder, act)


def test_submit_needs_a_difference(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        assert await one.say("submit") == "[nothing was submitted: no file was changed]"
        await one.bash("x=1; touch calc/sums.py; mkdir -p empty/folder; sleep 100 &")
        assert "no file was changed" in await one.say("submit", ".")
        assert await one.bash("echo $x; ps | grep -c [s]leep; head -1 calc/sums.py") == "\n0\ndef add(a, b):"
        await one.bash("truncate -s 5T sparse")
        assert "larger than 64 MiB" in await one.say("submit", " . ")
        await one.bash("rm sparse; echo 1 > kept.txt")
        result = await one.step("submit", ".")
        assert result.done and "+++ b/kept.txt" in str(result.outcome["patch"])

    talk(task_folder, act, submit_mb=64)


def test_submit_of_a_patch_file(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        assert await one.say("submit", "fix.patch") == "[fix.patch: No such file or directory]"
        await one.say("edit", FIX)
        await one.bash("cd notes; touch empty.patch; echo hello > text.patch; (cd ..; git diff) > fix.patch; git checkout -q ..")
        assert "empty.patch is empty" in await one.say("submit", "empty.patch")
        assert "must be a patch that starts with `diff`" in await one.say("submit", "text.patch")
        assert "no regular file" in await one.say("submit", "/dev/zero")
        result = await one.step("submit", "fix.patch\n")
        assert result.done and str(result.outcome["patch"]).startswith("diff --git a/calc/sums.py b/calc/sums.py\n")
        assert SECRET in str(result.outcome["patch"])

    talk(task_folder, act)


def test_the_tree_is_the_tasks(task_folder: Path) -> None:
    async def act(one: Talk) -> None:
        assert await one.bash("ls -A; git status --porcelain") == ".git\ncalc\nnotes\ntests"  # README.md is gone by the overlay
        assert await one.bash("find . ! -user agent; id -un; touch calc/sums.py tests/test_sums.py") == "agent"
        assert await one.bash("python3 -m pytest -q 2>&1 | tail -1 | cut -c1-18") == "2 failed, 1 passed"

    talk(task_folder, act)


def test_the_agent_cannot_find_what_the_task_took_away(task_folder: Path) -> None:
    """No history, remote, reflog, dangling object; the text is in no file that it can read, nor in any object of git."""
    walk = (
        "import os\nfor top, folders, files in os.walk('/'):\n"
        "    folders[:] = [f for f in folders if os.path.join(top, f) not in ('/proc', '/sys', '/dev')]\n    for name in files:\n"
        "        path = os.path.join(top, name)\n        if os.path.islink(path) or not os.access(path, os.R_OK): continue\n"
        f"        if b'{SECRET[:3]}' + b'{SECRET[3:]}' in open(path, 'rb').read(): print(path)\n"
    )

    async def act(one: Talk) -> None:
        assert await one.bash("git log --all --oneline | wc -l; git reflog --all; git remote; git tag; git stash list; git branch -a") == (
            "1\n* main"
        )
        assert await one.bash("git fsck --lost-found --no-progress; ls -A .git/logs .git/lost-found 2>/dev/null; true") == ""
        assert await one.bash(f"git cat-file --batch-all-objects --batch | grep -c {SECRET}") == "0\n[exit code 1]"
        await one.say("create", Create(path="/tmp/walk.py", content=walk).body())
        assert await one.bash("python3 /tmp/walk.py") == ""
        assert await one.bash(
            f"cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr -d '\\0' | grep -c '{SECRET[:3]}[4]*31'"
        ) == ("0\n[exit code 1]")

    talk(task_folder, act)


def test_a_tree_that_cannot_be_put_in_place_is_an_infrastructure_failure(task_folder: Path, tmp_path: Path) -> None:
    big = replace(mutated_task(), overlay=(TreeChange(path=b"big.bin", mode=0o100644, data=bytes(3 << 20)),))
    write_task(big, tmp_path / "big")

    async def act(one: Talk) -> None:
        with pytest.raises(ContainerError, match="could not be prepared"):
            await one.bash("ls")

    address = Engine()
    address.close()
    use_containers(ContainersConfig(host=address.address, disk_mb=2))
    try:
        talk(tmp_path / "big", act)
    finally:
        use_containers(ContainersConfig())


def test_more_episodes_than_containers_at_once_do_not_wait_for_one_another(task_folder: Path, engine: str) -> None:
    """In lockstep each waits for the turns of all others before its next."""

    async def main() -> list[str]:
        episodes = [Talk(task_folder) for _ in range(4)]
        try:
            for turn in range(2):
                said = await asyncio.gather(*(one.bash(f"echo $x; x={number}{turn}") for number, one in enumerate(episodes)))
        finally:
            await asyncio.gather(*(one.agent.close() for one in episodes))
        return said

    use_containers(ContainersConfig(host=engine, at_once=1))
    try:
        assert asyncio.run(asyncio.wait_for(main(), timeout=120)) == ["00", "10", "20", "30"]
    finally:
        use_containers(ContainersConfig())
