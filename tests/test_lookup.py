"""Names beyond the registries: dotted paths, and entry points of installed distributions."""

import sys
from pathlib import Path

import pytest

from configs.schema import TaskConfig
from environments.records import Message, Task
from environments.registry import check_environment, environment, known_environments, make_environment, plugin_source
from environments.single_turn import SingleTurn
from rewards.registry import known_graders, make_grader
from rl.graders import check_rewards

MODULE = """
from environments.single_turn import SingleTurn

class {name}(SingleTurn):
    pass

def brevity(problem, response):
    return -len(response)

def tasks(name, *, config, seed):
    raise AssertionError

number = 3
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, for packages and for the metadata of distributions."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def distribution(folder: Path, name: str, **groups: str) -> None:
    """What pip leaves of an installed distribution."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("".join(f"[codeworld_rl.{group}]\n{line}\n" for group, line in groups.items()))


def task(env: str) -> Task:
    return Task(id="t", env=env, prompt=(Message(role="user", content="1+1="),))


def test_a_dotted_path_is_an_environment_a_reward_and_a_task_source(installed: Path) -> None:
    (installed / "dotted_one.py").write_text(MODULE.format(name="Mine"))
    assert type(make_environment(task("dotted_one:Mine"))).__name__ == "Mine"
    assert plugin_source("dotted_one:tasks").__name__ == "tasks"
    make_grader("dotted_one:brevity")
    assert "dotted_one:Mine" not in known_environments()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_pkg:Mine", r"cannot import no_such_pkg: ModuleNotFoundError.*install its package, or start rl in the folder"),
        ("dotted_two:Mein", r"unknown name in dotted_two 'Mein'; did you mean 'Mine'"),
        ("dotted_two:", "is not a dotted path: write package.module:Name"),
        (":Mine", "is not a dotted path"),
        ("dotted_two.py:Mine", "cannot import dotted_two.py"),
        ("dotted_two:number", "of type int; it must be a class or a function"),
        ("dotted_broken:Mine", "cannot import dotted_broken: ZeroDivisionError"),
    ],
)
def test_a_dotted_path_that_leads_nowhere_says_which_half_is_wrong(path: str, says: str, installed: Path) -> None:
    (installed / "dotted_two.py").write_text(MODULE.format(name="Mine"))
    (installed / "dotted_broken.py").write_text("1/0")
    with pytest.raises(ValueError, match=says):
        check_environment(path)


def test_installed_distributions_offer_names(installed: Path) -> None:
    (installed / "offers_pkg.py").write_text(MODULE.format(name="Offered"))
    distribution(
        installed,
        "offers",
        environments="offered_env = offers_pkg:Offered",
        rewards="offered_reward = offers_pkg:brevity",
        task_sources="offered_tasks = offers_pkg:tasks",
    )
    assert "offered_env" in known_environments() and "offered_reward" in known_graders()
    assert "offers_pkg" not in sys.modules, "listing names imports nothing"
    assert type(make_environment(task("offered_env"))).__name__ == "Offered"
    assert plugin_source("offered_tasks").__name__ == "tasks"
    make_grader("math + 0.5*offered_reward")


def test_a_broken_or_doubly_offered_entry_point_names_its_distribution(installed: Path) -> None:
    (installed / "twice_pkg.py").write_text(MODULE.format(name="Twice"))
    distribution(installed, "broken-dist", environments="broken_env = not_there_pkg:Env\ntwice_env = twice_pkg:Twice")
    distribution(installed, "other-dist", environments="twice_env = twice_pkg:Twice\nmath = twice_pkg:Twice")
    with pytest.raises(
        ValueError, match=r"'broken_env' of distribution broken-dist 1\.0 \(broken_env = not_there_pkg:Env\) cannot be loaded"
    ):
        check_environment("broken_env")
    with pytest.raises(ValueError, match=r"offered by distribution .*-dist 1\.0 .* and by distribution .*-dist 1\.0"):
        check_environment("twice_env")
    with pytest.raises(ValueError, match=r"'math' is registered by .*SingleTurn, and an installed distribution offers twice_pkg\.Twice"):
        from environments.registry import ENVIRONMENT_GROUP, Registry

        registry: Registry[object] = Registry("environment", group=ENVIRONMENT_GROUP, accept=lambda found, name: found)
        registry.add("math", SingleTurn)
        registry.find("math")


@pytest.mark.parametrize("name", ["a b", "a+b", "2*a", "a:b", ""])
def test_a_name_has_no_signs_that_mean_something_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="without spaces"):
        environment(name)(SingleTurn)


def test_a_dotted_environment_needs_a_reward() -> None:
    with pytest.raises(ValueError, match=r"reward is not set, and .*'my_pkg\.env:Mine'.*my_pkg\.env:my_reward"):
        TaskConfig(kind="programs", env="my_pkg.env:Mine")
    assert TaskConfig(kind="programs", env="my_pkg.env:Mine", reward="math").reward == "math"
    with pytest.raises(ValueError, match="reward is empty"):
        TaskConfig(kind="programs", env="math", reward=" ")


def test_rewards_are_checked_before_a_run_starts(installed: Path) -> None:
    (installed / "checked_pkg.py").write_text(MODULE.format(name="Checked"))
    check_rewards({"sums": TaskConfig(kind="programs", env="math", reward="math + 0.1*checked_pkg:brevity")})
    with pytest.raises(ValueError, match=r"tasks\.sums\.reward: .*unknown name in checked_pkg 'brevty'; did you mean 'brevity'"):
        check_rewards({"sums": TaskConfig(kind="programs", env="math", reward="math + 0.1*checked_pkg:brevty")})
    with pytest.raises(ValueError, match=r"tasks\.sums\.reward: unknown reward 'mth'.*reward is not set"):
        check_rewards({"sums": TaskConfig(kind="programs", env="mth")})
