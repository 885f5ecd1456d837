"""Scripted policies of repository tasks: lists of tool calls, read from a file or made from a task's gold patch.

As a file: a JSON list of `{"tool": "bash", "input": "ls"}`; the input of edit and create is the body of CWM's format.
"""

import base64
import json
import re
import shlex
from pathlib import Path

from environments.reply import ToolCall
from environments.swe.inside.modes import FILE, PROGRAM
from environments.swe.records import RepoTask
from environments.swe.snippets import smallest_edits
from environments.swe.text_patch import Section, sections
from environments.swe.tool_bodies import Create, Edit

_LARGEST = 64 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
SUBMIT = ToolCall(name="submit", body="")


def read_actions(path: Path) -> tuple[ToolCall, ...]:
    """The actions of a file. Raises ValueError naming the file, the action and the fix."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path} is larger than {_LARGEST >> 20} MiB")
        actions = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(actions, list):
        raise ValueError(f'{path} must hold a JSON list of actions, such as [{{"tool": "bash", "input": "ls"}}]')
    return tuple(_action(action, where=f"{path}: action {number}") for number, action in enumerate(actions, start=1))


def _action(action: object, *, where: str) -> ToolCall:
    if not isinstance(action, dict) or set(action) != {"tool", "input"}:
        raise ValueError(f'{where} must be {{"tool": NAME, "input": TEXT}} and nothing else')
    for key in ("tool", "input"):
        if not isinstance(action[key], str):
            raise ValueError(f"{where}: {key} is {action[key]!r:.60}; it must be a string")
    if not _NAME.fullmatch(action["tool"]):
        raise ValueError(f"{where}: tool {action['tool']!r:.60} is no name; use bash, edit, create or submit")
    return ToolCall(name=action["tool"], body=action["input"])


def noop_actions() -> tuple[ToolCall, ...]:
    """Submit, and nothing else."""
    return (SUBMIT,)


def oracle_actions(task: RepoTask) -> tuple[ToolCall, ...]:
    """The gold patch as tool calls: the smallest edits, new files, and git for what is neither; then submit.

    Edits need the text before: files of the overlay have it. Raises ValueError for a task without a gold patch.
    """
    if task.gold.empty:
        raise ValueError(f"task {task.id} has no gold patch, so there is no oracle: use the noop policy")
    known = {change.path: change.data for change in task.overlay if change.mode in (FILE, PROGRAM)}
    calls: list[ToolCall] = []
    left = b""
    for section in sections(task.gold.data):
        made = _created(section) if section.new_file else _edited(section, known)
        if made is None:
            left += section.raw
        else:
            calls += made
    if left:
        calls.append(ToolCall(name="bash", body=_git_apply(left, task.work_dir)))
    return (*calls, SUBMIT)


def _created(section: Section) -> list[ToolCall] | None:
    if section.path is None:
        return None
    try:
        return [ToolCall(name="create", body=Create(path=section.path, content=b"".join(section.replacements[0].new).decode()).body())]
    except ValueError:
        return None


def _edited(section: Section, known: dict[bytes, bytes]) -> list[ToolCall] | None:
    base = known.get((section.path or "").encode())
    edits = None if base is None else smallest_edits(base, section.replacements)
    if edits is None or section.path is None:
        return None
    try:
        bodies = [Edit(path=section.path, search=search.decode(), replace=new.decode()).body() for search, new in edits]
    except ValueError:
        return None
    return [ToolCall(name="edit", body=body) for body in bodies]


def _git_apply(patch: bytes, work_dir: str) -> str:
    lines = base64.encodebytes(patch).decode()
    return f"cd {shlex.quote(work_dir)} && base64 -d <<'END' | git apply --whitespace=nowarn -\n{lines}END"
