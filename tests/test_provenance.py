"""What says which code played and graded: it changes with the code, and with nothing else."""

from pathlib import Path

import pytest

from environments.provenance import OWN, source_hash
from environments.registry import environment_version, load_plugins
from rewards.registry import grader_hash

PLUGIN = """
from environments.registry import environment
from environments.single_turn import SingleTurn
from rewards.registry import reward

@environment("parrot")
class Parrot(SingleTurn):
    pass

@reward("short")
def short(problem, response):
    return {bound} - len(response)
"""


def plugin(folder: Path, *, bound: int) -> tuple[str, str]:
    folder.mkdir()
    (folder / "parrot.py").write_text(PLUGIN.replace("{bound}", str(bound)))
    load_plugins([str(folder / "parrot.py")])
    return environment_version("parrot"), grader_hash("short")


def test_a_plugin_is_told_by_the_hash_of_its_file(tmp_path: Path) -> None:
    version, scorer = plugin(tmp_path / "first", bound=10)
    assert version.startswith("sha256:") and len(version) == len("sha256:") + 16
    assert len(scorer) == 16 and int(scorer, 16) >= 0


@pytest.mark.parametrize(("bound", "same"), [(10, True), (11, False)])
def test_the_hash_changes_with_the_code_alone(tmp_path: Path, bound: int, same: bool) -> None:
    from environments.registry import _environments
    from rewards.registry import _graders

    first = plugin(tmp_path / "first", bound=10)
    del _environments.entries["parrot"], _graders.entries["short"]
    (tmp_path / "first").rename(tmp_path / "moved")
    second = plugin(tmp_path / "second", bound=bound)
    assert [(old == new) for old, new in zip(first, second, strict=True)] == [same, same]


def test_built_in_code_is_told_by_the_package() -> None:
    assert environment_version("math").startswith(f"{OWN} ")
    assert grader_hash("math") == grader_hash("math") != grader_hash("2*math")
    assert source_hash("json") != source_hash("re")
