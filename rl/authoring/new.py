"""`rl env new NAME`: a small environment with a reward, tasks, a configuration and a test, to be rewritten into one's own."""

import keyword
import os
import re
from pathlib import Path

import configs
from environments.registry import known_environments
from rewards.registry import known_graders

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_PLUGIN = '''"""Environment `NAME`: asks for a sum, and once more when the reply is no number."""

from environments.records import Message, Problem, StepResult, StopReason, Task
from environments.registry import environment
from environments.single_turn import SingleTurn
from rewards.registry import reward


@environment("NAME")
class CLASS(SingleTurn):
    """One instance is one episode. It gets the task, never the reference."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.asked_again = False

    async def step(self, action: Message) -> StepResult:
        """The answer to one reply of the policy."""
        if action.content.isdecimal() or self.asked_again:
            return StepResult(done=True, stop_reason=StopReason.DONE)
        self.asked_again = True
        return StepResult(done=False, messages=(Message(role="user", content="Digits only."),))


@reward("NAME")
def NAME(problem: Problem, response: str) -> float:
    """1 for the answer, less the fewer digits a reply has; above 0 counts as solved. The reply is hostile text: only compare it."""
    if response == problem.reference["answer"]:
        return 1.0
    digits = sum(map(str.isdecimal, response[:100]))
    return digits / max(1, len(response)) - 1.0
'''
_CONFIG = """# Two steps on the tasks of NAME/tasks.jsonl. Paths begin in the folder that holds NAME/: run rl there.
run:
  name: NAME
  steps: 2
  plugins: [NAME/NAME.py]

model:
  path: MODEL
  dtype: float32
  max_prompt_tokens: 64
  context_length: 128

tasks:
  NAME:
    kind: jsonl
    path: NAME/tasks.jsonl
    env: NAME
    heldout: 8
    prompt: "{prompt}"  # the field of a row that the policy sees; `answer` and `solution` stay hidden

sampling:
  max_tokens: 8

rollout:
  prompts_per_step: 8
  samples_per_prompt: 4
  max_turns: 2

learner:
  learning_rate: 5.0e-4
"""
_TEST = '''"""Tests of environment `NAME`: run them with pytest."""

from pathlib import Path

import pytest

from rl.cli import main

HERE = Path(__file__).parent


def test_the_environment_holds_all_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE.parent)
    assert main(["env", "check", "NAME/NAME.py", "--config", "NAME/NAME.yaml"]) == 0
'''


def new_environment(name: str, *, folder: Path) -> tuple[Path, ...]:
    """Write the files into `folder/name` and return them. Raises ValueError for a name that cannot be used, and if it is there."""
    _check_name(name)
    if not folder.is_dir():
        raise ValueError(f"--dir: there is no folder {folder}")
    home = folder / name
    if home.exists():
        raise ValueError(f"{home} exists: nothing is overwritten; choose another name or --dir")
    files = {
        f"{name}.py": _PLUGIN,
        "tasks.jsonl": _tasks(),
        f"{name}.yaml": _CONFIG.replace("MODEL", _model_path(folder)),
        f"test_{name}.py": _TEST,
    }
    home.mkdir()
    camel = "".join(word.capitalize() for word in name.split("_"))
    for file, text in files.items():
        (home / file).write_text(text.replace("CLASS", camel).replace("NAME", name), encoding="utf-8")
    return tuple(home / file for file in files)


def next_steps(name: str, *, folder: Path) -> str:
    """What to do with the files, for a person."""
    lines = [f"rl env check {name}/{name}.py --config {name}/{name}.yaml", f"rl train {name}/{name}.yaml"]
    enter = [] if folder.resolve() == Path.cwd() else [f"cd {folder}"]
    return "\n".join(f"  {line}" for line in (*enter, *lines))


def _check_name(name: str) -> None:
    if keyword.iskeyword(name):
        raise ValueError(f"NAME {name!r} is a keyword of Python: choose another one")
    if not _NAME.fullmatch(name):
        raise ValueError(f"NAME {name!r} must be a Python name of small letters, digits and '_', at most 40, that begins with a letter")
    if name in (*known_environments(), *known_graders()):
        raise ValueError(f"NAME {name!r} is an environment or a reward already: choose another one")


def _tasks() -> str:
    """Sums as rows."""
    pairs = [(left, right) for left in range(3, 9) for right in range(2, 10)]
    row = '{{"id": "{0}+{1}", "prompt": "{0}+{1}=", "answer": "{2}", "solution": "{2}"}}\n'
    return "".join(row.format(left, right, left + right) for left, right in pairs)


def _model_path(folder: Path) -> str:
    """The quickstart's tiny model, as seen from `folder` when it is below it."""
    model = Path(next(iter(configs.__path__))).resolve() / "base" / "tiny-cwm"
    home = folder.resolve()
    return os.path.relpath(model, home) if model.is_relative_to(home) else str(model)
