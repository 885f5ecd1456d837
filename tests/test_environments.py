"""The environment registry, its built-ins, and plugins."""

import asyncio
from pathlib import Path

import pytest

from configs.schema import TaskConfig
from environments.records import Message, Problem, StepResult, StopReason, Task
from environments.registry import (
    check_environment,
    environment,
    known_environments,
    load_plugins,
    make_environment,
    plugin_source,
    task_source,
)
from environments.single_turn import SingleTurn
from environments.sources.base import ProblemSource, SourceFactory


def task(env: str) -> Task:
    return Task(id="t", env=env, prompt=(Message(role="system", content="s"), Message(role="user", content="1+1=")))


@pytest.mark.parametrize("name", ["math", "code", "code_stdio", "code_puzzle", "code_class", "code_input", "code_output"])
def test_builtin_environments_show_the_prompt_and_end_at_the_first_reply(name: str) -> None:
    async def episode() -> tuple[tuple[Message, ...], StepResult]:
        env = make_environment(task(name))
        opening = await env.reset()
        result = await env.step(Message(role="assistant", content="2"))
        await env.close()
        return opening, result

    opening, result = asyncio.run(episode())
    assert opening == task(name).prompt
    assert result == StepResult(messages=(), done=True, stop_reason=StopReason.DONE)
    assert name in known_environments()


def test_unknown_environment_names_the_nearest_and_all_known() -> None:
    with pytest.raises(
        ValueError, match=r"unknown environment 'maths'; did you mean 'math'\? known: .*code, code_attempts, .*code_output"
    ) as caught:
        make_environment(task("maths"))
    assert "math" in str(caught.value)
    with pytest.raises(ValueError, match="'zzz'; known: "):
        check_environment("zzz")


def test_an_environment_of_ones_own_in_ten_lines() -> None:
    @environment("guess_seven")
    class GuessSeven(SingleTurn):
        async def step(self, action: Message) -> StepResult:
            if action.content == "7":
                return StepResult(done=True, stop_reason=StopReason.DONE)
            return StepResult(messages=(Message(role="user", content="no, again"),), done=False)

    async def episode() -> list[StepResult]:
        env = make_environment(task("guess_seven"))
        await env.reset()
        return [await env.step(Message(role="assistant", content=text)) for text in ("3", "7")]

    wrong, right = asyncio.run(episode())
    assert not wrong.done and wrong.messages[0].content == "no, again"
    assert right.done


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match=r"'math' is already registered by environments\.single_turn\.SingleTurn"):

        @environment("math")
        class Other(SingleTurn):
            pass

    with pytest.raises(ValueError, match="non-empty"):
        environment("")(SingleTurn)


def test_a_plugin_file_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "my_plugin.py"
    plugin.write_text(
        "from pathlib import Path\n"
        "from environments.registry import environment\n"
        "from environments.single_turn import SingleTurn\n"
        "with Path(__file__).with_suffix('.count').open('a') as file:\n"
        "    file.write('x')\n"
        "@environment('from_file')\n"
        "class FromFile(SingleTurn):\n"
        "    pass\n"
    )
    load_plugins([str(plugin)])
    monkeypatch.chdir(tmp_path)
    load_plugins(["my_plugin.py", str(plugin)])
    assert plugin.with_suffix(".count").read_text() == "x"
    assert type(make_environment(task("from_file"))).__name__ == "FromFile"


def test_a_plugin_may_be_a_module() -> None:
    load_plugins(["environments.single_turn"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module_here", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("1/0", "ZeroDivisionError"),
    ],
)
def test_a_plugin_that_fails_is_named_and_can_be_repaired(tmp_path: Path, text: str, message: str) -> None:
    plugin = tmp_path / "broken.py"
    header = "from environments.registry import environment\nfrom environments.single_turn import SingleTurn\n"
    name = f"repaired_{message}"
    body = f"@environment({name!r})\nclass Repaired(SingleTurn):\n    pass\n"
    plugin.write_text(header + body + text)
    with pytest.raises(ValueError, match=rf"broken\.py failed to import: {message}"):
        load_plugins([str(plugin)])
    plugin.write_text(header + body + "# repaired\n")
    load_plugins([str(plugin)])
    assert name in known_environments()


def test_missing_plugins_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.plugins: no file .*absent\.py"):
        load_plugins([str(tmp_path / "absent.py")])
    with pytest.raises(ValueError, match=r"cannot import 'no\.such\.module': ModuleNotFoundError.*ending in \.py"):
        load_plugins(["no.such.module"])


def test_unknown_task_source_is_an_error() -> None:
    class Nothing:
        size = 0

        def problem(self, index: int) -> Problem:
            raise IndexError(index)

    @task_source("counting_source")
    def counting_source(name: str, /, *, config: TaskConfig, seed: int) -> ProblemSource:
        return Nothing()

    factory: SourceFactory = counting_source
    assert plugin_source("counting_source") is factory
    with pytest.raises(ValueError, match="did you mean 'counting_source'"):
        plugin_source("counting_sauce")
