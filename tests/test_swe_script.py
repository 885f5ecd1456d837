"""Scripted policies: files of actions, and the oracle whose edits make exactly the gold patch."""

import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from environments.reply import ToolCall
from environments.swe.inside.driver_files import places
from environments.swe.records import Patch, TreeChange
from environments.swe.script import noop_actions, oracle_actions, read_actions
from environments.swe.tool_bodies import Create, Edit
from tests.repo_image import SECRET, mutated_task

LINES = (
    "return a + b",
    "x = foo(a, b)",
    "if x < 3:",
    "    y = y - 1",
    "",
    "    return y",
    "pass",
    "é = 'ü'",
    "=======",
    "a\r",
    "\\=======",
)


def git_diff(before: dict[str, bytes], after: dict[str, bytes], folder: Path, *options: str) -> bytes:
    """A patch as git writes it."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-c", "core.autocrlf=false", *arguments], cwd=folder, check=True, capture_output=True).stdout

    folder.mkdir()
    git("init", "-q")
    for files, others in ((before, {}), (after, before)):
        for name in others:
            (folder / name).unlink()
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        git("add", "-A")
        if files is before:
            git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "base", "--allow-empty")
    return git("diff", "--cached", "--binary", "HEAD", *options)


def oracle(before: dict[str, bytes], patch: bytes) -> tuple[ToolCall, ...]:
    overlay = tuple(TreeChange(path=name.encode(), mode=0o100644, data=data) for name, data in before.items())
    return oracle_actions(replace(mutated_task(), overlay=overlay, gold=Patch(data=patch)))


def applied(text: bytes, calls: tuple[ToolCall, ...]) -> bytes:
    """What the driver makes of a file with these edits."""
    for call in calls:
        edit = Edit.read(call.body)
        search = edit.search.encode()
        (place,) = places(text, search)
        text = text[:place] + edit.replace.encode() + text[place + len(search) :]
    return text


def test_the_oracle_edits_the_smallest_text() -> None:
    edit, submit = oracle_actions(mutated_task())
    assert edit == ToolCall(name="edit", body=Edit(path="calc/sums.py", search="- b", replace=f"+ b + 0 * {SECRET}").body())
    assert submit == ToolCall(name="submit", body="")
    assert noop_actions() == (submit,)
    with pytest.raises(ValueError, match="task calc-1 has no gold patch"):
        oracle_actions(replace(mutated_task(), gold=Patch(data=b"\n")))


def test_oracle_edits_make_the_gold_patch(tmp_path: Path) -> None:
    chance = random.Random(3)
    for number in range(60):
        old = [chance.choice(LINES) for _ in range(chance.randrange(1, 14))]
        new = list(old)
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(new) + 1)
            change = chance.choice(("insert", "delete", "alter"))
            if change == "insert":
                new.insert(place, chance.choice(LINES) + str(chance.randrange(5)))
            elif place < len(new):
                new[place : place + 1] = [] if change == "delete" else [new[place].replace("a", "q") + chance.choice(("", "z"))]
        before, after = ("\n".join(lines).encode() + chance.choice((b"\n", b"")) for lines in (old, new))
        if before == after or not before or not after:
            continue
        *calls, submit = oracle({"m.py": before}, git_diff({"m.py": before}, {"m.py": after}, tmp_path / str(number)))
        assert submit.name == "submit"
        if calls[0].name == "edit":  # a text that nothing makes unique is left to git
            assert applied(before, tuple(calls)) == after
        else:
            assert len(calls) == 1 and "git apply" in calls[0].body


def test_new_files_are_created_and_the_rest_is_left_to_git(tmp_path: Path) -> None:
    before = {"gone.py": b"x\n", "moved.py": b"a\nb\nc\nd\ne\n", "kept.py": b"one\ntwo\n", "blob.bin": b"\0\1\2"}
    after = {
        "to.py": b"a\nb\nc\nd\ne\n",
        "kept.py": b"one\nthree\n",
        "blob.bin": b"\0\3\2",
        "new/a b.py": b"n\n",
        "bare": b"no end",
        "empty": b"",
    }
    calls = oracle(before, git_diff(before, after, tmp_path / "repository", "--find-renames"))
    assert [call.name for call in calls] == ["create", "edit", "create", "bash", "submit"]
    assert Create.read(calls[0].body) == Create(path="bare", content="no end")
    assert Create.read(calls[2].body) == Create(path="new/a b.py", content="n\n")
    assert calls[3].body.startswith("cd /testbed && base64 -d <<'END' | git apply")
    other_base = oracle({"kept.py": b"one\n2\n"}, git_diff({"kept.py": b"one\ntwo\n"}, {"kept.py": b"1\n"}, tmp_path / "other"))
    assert [call.name for call in other_base] == ["bash", "submit"]  # the patch is not of this text


def test_actions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "actions.json"
    path.write_text('[{"tool": "bash", "input": "ls"}, {"tool": "submit", "input": ""}]')
    assert read_actions(path) == (ToolCall(name="bash", body="ls"), ToolCall(name="submit", body=""))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("{}", "must hold a JSON list of actions"),
        ('["ls"]', 'action 1 must be {"tool": NAME, "input": TEXT} and nothing else'),
        ('[{"tool": "bash", "input": "ls"}, {"tool": "bash"}]', "action 2 must be"),
        ('[{"tool": "bash", "input": 5}]', "action 1: input is 5; it must be a string"),
        ('[{"tool": "ba sh", "input": ""}]', "action 1: tool 'ba sh' is no name"),
        (b"\xff", "is no UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_wrong_files_of_actions_are_told(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "actions.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:
        read_actions(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
