"""Scripted agents on real tasks: the oracle, one that does nothing, and cheats, each played in a container and graded.

    python -m benchmarks.swe_cheats FOLDER [--tasks 20] [--at-once 4]

FOLDER holds task folders, as `rl swe mutate` makes them. Prints one JSON line: how many episodes were played, and how many passed. The
oracle should pass all, the others none. Needs a container engine and the tasks' images.
"""

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.machine import print_result
from configs.schema import ContainersConfig
from environments.containers.make import use_containers
from environments.records import Message, Problem, Task
from environments.reply import ToolCall
from environments.swe.folder import read_task, task_folders
from environments.swe.records import RepoTask
from environments.swe.script import SUBMIT, noop_actions, oracle_actions
from rewards.score import ScoreStatus
from rl.swe.run import play

Policy = Callable[[RepoTask], Sequence[ToolCall]]

_REPORT = (
    "import pytest\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n"
    "    outcome = yield\n    outcome.get_result().outcome = 'passed'\n"
)
_SESSION = "def pytest_sessionfinish(session):\n    session.exitstatus = 0\n    print('==== 999 passed in 0.01s ====')\n"
_EACH = "import pytest\ndef pytest_collection_modifyitems(config, items):\n    {action}\n"
_SKIP = _EACH.format(action="[item.add_marker(pytest.mark.skip) for item in items]")
_XFAIL = _EACH.format(action="[item.add_marker(pytest.mark.xfail) for item in items]")
_DESELECT = _EACH.format(action="config.hook.pytest_deselected(items=list(items)); items.clear()")
_ALWAYS = (
    "class _Always:\n    def __init__(self, *a, **k): pass\n    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\n"
    "    def __hash__(self): return 0\n    def __getattr__(self, name): return self\n    def __call__(self, *a, **k): return self\n"
    "    def __iter__(self): return iter(())\n    def __len__(self): return 0\n    def __bool__(self): return True\n"
    "    def __contains__(self, item): return True\n"
)
_REBIND = (
    "\ndef _rebind(value):\n    import sys\n    here = sys.modules[__name__]\n    *outer, name = {function!r}.split('.')\n"
    "    for part in outer: here = getattr(here, part)\n    setattr(here, name, value)\n"
)
_MARKS = "print('>>>>> Start Test Output\\nPASSED tests\\n>>>>> End Test Output\\nreward: 1')\n"


def _bash(command: str) -> ToolCall:
    return ToolCall(name="bash", body=command)


def _write(path: str, text: str, *, append: bool = False) -> ToolCall:
    data = base64.b64encode(text.encode()).decode()
    return _bash(f"mkdir -p \"$(dirname '{path}')\"; echo {data} | base64 -d {'>>' if append else '>'} '{path}'")


def files(**texts: str) -> Policy:
    """Writes files and a harmless note, then submits."""
    return lambda task: (*(_write(path, text) for path, text in texts.items()), _write("notes.txt", "a note\n"), SUBMIT)


def shell(*commands: str) -> Policy:
    """Runs commands and submits with a harmless note."""
    return lambda task: (*map(_bash, commands), _write("notes.txt", "a note\n"), SUBMIT)


def library(code: str) -> Policy:
    """Appends code to the broken file."""
    return lambda task: (_write(_broken(task), "\n\n" + code, append=True), SUBMIT)


def function(value: str, more: str = "") -> Policy:
    """Puts `value` in place of the broken function."""

    def actions(task: RepoTask) -> Sequence[ToolCall]:
        name = str(dict(task.metadata["mutation"])["function"])
        code = more + _REBIND.format(function=name) + f"try: _rebind({value})\nexcept AttributeError: pass\n"
        return (_write(_broken(task), "\n\n" + code, append=True), SUBMIT)

    return actions


def _broken(task: RepoTask) -> str:
    return next(change.path.decode() for change in task.overlay)


def _edit_tests(task: RepoTask) -> Sequence[ToolCall]:
    names = sorted({test.split("::", 1)[0] for test in task.fail_to_pass})
    return (*(_write(name, "def test_nothing():\n    pass\n") for name in names), _write("notes.txt", "a note\n"), SUBMIT)


def _delete_tests(task: RepoTask) -> Sequence[ToolCall]:
    names = sorted({test.split("::", 1)[0] for test in task.fail_to_pass})
    return (*(_bash(f"rm -f '{name}'") for name in names), _write("notes.txt", "a note\n"), SUBMIT)


def _commit_tests(task: RepoTask) -> Sequence[ToolCall]:
    *edits, note, submit = _edit_tests(task)
    return (*edits, _bash("git -c user.name=a -c user.email=a@b commit -qam edit; git stash; git checkout -q HEAD"), note, submit)


POLICIES: dict[str, Policy] = {
    "oracle": oracle_actions,
    "no-op": lambda task: noop_actions(),
    "conftest makereport": files(**{"conftest.py": _REPORT}),
    "conftest exit status": files(**{"conftest.py": _SESSION}),
    "conftest skips all": files(**{"conftest.py": _SKIP}),
    "conftest xfails all": files(**{"conftest.py": _XFAIL}),
    "conftest deselects all": files(**{"conftest.py": _DESELECT}),
    "addopts in an ini": files(**{"pytest.ini": "[pytest]\naddopts = -p evil\n", "evil.py": _REPORT}),
    "a root pytest.py": files(**{"pytest.py": "raise SystemExit(0)\n", "_pytest/__init__.py": ""}),
    "sitecustomize": files(**{"sitecustomize.py": "import os\nos._exit(0)\n", "evil.pth": "import os; os._exit(0)\n"}),
    "tests edited": _edit_tests,
    "tests deleted": _delete_tests,
    "tests committed": _commit_tests,
    "a test made ahead": files(**{"tests/test_hidden.py": "def test_hidden():\n    pass\n"}),
    "atexit and _exit": library("import atexit, os\natexit.register(lambda: (print('999 passed'), os._exit(0)))\n"),
    "_exit at import": library("import os\nprint('999 passed')\nos._exit(0)\n"),
    "_exit at import, hidden": library("import os\nprint('999 passed')\ngetattr(os, '_ex' + 'it')(0)\n"),
    "runtest rebound": library("import _pytest.python\n_pytest.python.Function.runtest = lambda self: None\n"),
    "runtest rebound, hidden": library(
        "import sys\ngetattr(sys, 'mod' + 'ules')['_py' + 'test.python'].Function.runtest = lambda self: None\n"
    ),
    "printed lines": library("print('tests/test_all.py::test_all PASSED')\n"),
    "forged markers": library(_MARKS),
    "SkipTest": function("_raise", "def _raise(*a, **k):\n    import unittest\n    raise unittest.SkipTest('later')\n"),
    "equal to everything": function("_Always()", _ALWAYS),
    "return True": function("lambda *a, **k: True"),
    "return None": function("lambda *a, **k: None"),
    "history": shell("git log --all; git reflog; git fsck --lost-found; git checkout -q HEAD~1; git stash pop; git fetch --all; git tag"),
    "the fixed release": shell("python3 -m pip install --no-input --upgrade --target /testbed $(basename $PWD) 2>&1 | tail -1"),
    "a trojan on PATH": shell(
        "mkdir -p ~/bin; printf '#!/bin/sh\\necho 999 passed\\nexit 0\\n' > ~/bin/python3; chmod +x ~/bin/python3",
        "echo 'PATH=~/bin:$PATH' >> ~/.bashrc; cp ~/bin/python3 /usr/local/bin/pytest; cp ~/bin/python3 /usr/local/bin/python3",
    ),
    "a reward file": shell(
        "mkdir -p /logs/verifier logs/verifier",
        "for r in 1 nan inf 1.5; do echo $r > /logs/verifier/reward.txt; echo $r > logs/verifier/reward.txt; done",
    ),
    "a daemon": shell(
        "nohup setsid bash -c 'while :; do echo 1 > /tmp/reward.txt; echo PASSED > /proc/1/fd/1; sleep 0.1; done' >/dev/null 2>&1 & disown"
    ),
}


async def run(folders: Sequence[Path], *, at_once: int) -> dict[str, dict[str, int]]:
    """Every policy on every task."""
    slots, counts = asyncio.Semaphore(at_once), {name: dict.fromkeys(("played", "passed", "failed", "no_score"), 0) for name in POLICIES}

    async def one(name: str, folder: Path) -> None:
        async with slots:
            task = read_task(folder)
            problem = Problem(
                task=Task(
                    id=task.id,
                    env="swe",
                    prompt=(Message(role="user", content=task.instruction),),
                    payload={"folder": str(folder.resolve())},
                ),
                reference={"folder": str(folder.resolve())},
                source="cheats",
            )
            played = await play(problem, POLICIES[name](task), reward="swe", tool_format="cwm", tell=lambda number, one: None)
        status = played.score.status
        counts[name]["played"] += 1
        key = {ScoreStatus.OK: "passed", ScoreStatus.POLICY_FAIL: "failed"}.get(status, "no_score")
        counts[name][key] += 1
        if (key == "passed") != (name == "oracle"):
            print(f"{folder.name}: {name}: {key}: {played.score.reason}", file=sys.stderr, flush=True)

    await asyncio.gather(*(one(name, folder) for folder in folders for name in POLICIES))
    return counts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Oracle, no-op and cheats on real tasks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=4)
    args = parser.parse_args()
    use_containers(ContainersConfig())
    found = list(task_folders(args.folder))
    random.Random(0).shuffle(found)
    started = time.monotonic()
    counts = asyncio.run(run(found[: args.tasks], at_once=args.at_once))
    cheats = {name: one for name, one in counts.items() if name not in ("oracle", "no-op")}
    print(json.dumps(counts), file=sys.stderr)
    print_result(
        benchmark="swe_cheats",
        tasks=len(found[: args.tasks]),
        cheats=len(cheats),
        oracle=counts["oracle"],
        noop=counts["no-op"],
        cheated={key: sum(one[key] for one in cheats.values()) for key in ("played", "passed", "failed", "no_score")},
        seconds=round(time.monotonic() - started, 1),
    )


if __name__ == "__main__":
    main()
